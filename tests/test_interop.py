"""Weights of the official PyTorch release: the loaded layer equals the paper's equations with these weights.

The reconstruction here walks token by token, with autograd for every inner gradient, and shares no code with the layer.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import CheckpointError
from tttstream.interop import load_ttt_lm
from tttstream_kernels import Update

DIM, HEADS, K = 16, 2, 4
WIDTH = DIM // HEADS


def state_dict(
    kind: str, shared: bool, gate: bool, dtype: torch.dtype = torch.float64, mini_batch: int = K
) -> dict[str, Tensor]:
    """The state_dict of one module of the release, with random values."""
    hidden = 4 * WIDTH if kind == "mlp" else WIDTH
    sizes = {f"{name}_proj.weight": [DIM, DIM] for name in ("q", "v", "o")}
    sizes |= {"W1": [HEADS, WIDTH, hidden], "b1": [HEADS, 1, hidden]}
    if kind == "mlp":
        sizes |= {"W2": [HEADS, hidden, WIDTH], "b2": [HEADS, 1, WIDTH]}
    if shared:
        sizes |= {f"conv_{name}.weight": [DIM, 1, 4] for name in ("q", "k")}
        sizes |= {f"conv_{name}.bias": [DIM] for name in ("q", "k")}
    else:
        sizes["k_proj.weight"] = [DIM, DIM]
    if gate:
        sizes["g_proj.weight"] = [DIM, DIM]
    sizes |= {
        "learnable_token_idx": [mini_batch],
        "learnable_ttt_lr_weight": [HEADS, 1, DIM],
        "learnable_ttt_lr_bias": [HEADS, 1],
        "ttt_norm_weight": [HEADS, WIDTH],
        "ttt_norm_bias": [HEADS, WIDTH],
        "post_norm.weight": [DIM],
        "post_norm.bias": [DIM],
    }
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.3 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
        for name, size in sizes.items()
    }


def rotated(x: Tensor, position: int, theta: float, mini_batch: int) -> Tensor:
    """[H, D] with every pair (2d, 2d + 1) turned by position * theta^(-2d / D), the angles rounded to float32.

    All angles of a mini-batch are made in one go, as the release does: float32 powers and cosines may round otherwise
    one by one than side by side, depending on the processor.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, WIDTH, 2) / WIDTH)
    angles = torch.arange(mini_batch, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos()[position].double(), angles.sin()[position].double()
    y = x.clone()
    y[:, ::2] = cos * x[:, ::2] - sin * x[:, 1::2]
    y[:, 1::2] = sin * x[:, ::2] + cos * x[:, 1::2]
    return y


def inner_model(x: Tensor, weights: list[Tensor], gamma: Tensor, beta: Tensor) -> Tensor:
    """f(x; W) = x + LN(g(x; W)) of every head, [H, 1, D]."""
    z = x @ weights[0] + weights[1]
    if len(weights) == 4:
        z = F.gelu(z, approximate="tanh") @ weights[2] + weights[3]
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x + gamma[:, None] * z + beta[:, None]


def by_the_paper(p: dict[str, Tensor], x: Tensor, base_lr: float, theta: float) -> Tensor:
    """Output of the module for one stream x [T, dim], equations 4 to 7 and section 2.7, one token after another."""
    names = ["W1", "b1", "W2", "b2"] if "W2" in p else ["W1", "b1"]
    weights = [p[name] for name in names]
    mini_batch = len(p["learnable_token_idx"])
    total = [torch.zeros_like(w) for w in weights]
    outputs = []
    for t in range(len(x)):
        i = t % mini_batch
        if "k_proj.weight" in p:
            q, k = p["q_proj.weight"] @ x[t], p["k_proj.weight"] @ x[t]
        else:
            q, k = p["conv_q.bias"].clone(), p["conv_k.bias"].clone()
            for lag in range(min(t + 1, 4)):
                seen = p["q_proj.weight"] @ x[t - lag]
                q += p["conv_q.weight"][:, 0, 3 - lag] * seen
                k += p["conv_k.weight"][:, 0, 3 - lag] * seen
        q, k, v = (part.view(HEADS, WIDTH) for part in (q, k, p["v_proj.weight"] @ x[t]))
        q, k = (rotated(part, i, theta, mini_batch)[:, None] for part in (q, k))
        at = [w.clone().requires_grad_() for w in weights]
        loss = 0.5 * (inner_model(k, at, p["ttt_norm_weight"], p["ttt_norm_bias"]) - v[:, None]).square().sum()
        rate = (p["learnable_ttt_lr_weight"][:, 0] @ x[t] + p["learnable_ttt_lr_bias"][:, 0]).sigmoid()
        rate = (base_lr * rate / WIDTH)[:, None, None]
        total = [s + rate * d for s, d in zip(total, torch.autograd.grad(loss, at), strict=True)]
        scale = (1.0 / (i + 1) + p["learnable_token_idx"][i]).clamp(min=0.0)
        now = [w - scale * s for w, s in zip(weights, total, strict=True)]
        outputs.append(inner_model(q, now, p["ttt_norm_weight"], p["ttt_norm_bias"]).flatten())
        if i == mini_batch - 1:
            weights, total = now, [torch.zeros_like(w) for w in weights]
    z = F.layer_norm(torch.stack(outputs), (DIM,), p["post_norm.weight"], p["post_norm.bias"], eps=1e-6)
    if "g_proj.weight" in p:
        z = F.gelu(x @ p["g_proj.weight"].T, approximate="tanh") * z
    return z @ p["o_proj.weight"].T


@pytest.mark.parametrize("tokens", [3, 4, 10])
@pytest.mark.parametrize("gate", [False, True], ids=["", "gate"])
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_same_outputs(kind: str, shared: bool, gate: bool, tokens: int) -> None:
    theirs = state_dict(kind, shared, gate)
    layer = load_ttt_lm(theirs, HEADS, mini_batch=K)
    x = torch.randn(2, tokens, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([by_the_paper(theirs, row, 1.0, 10000.0) for row in x])
    torch.testing.assert_close(layer(x)[0], expected, rtol=0, atol=1e-9)

    state, steps = None, []
    for t in range(tokens):
        y, state = layer(x[:, t : t + 1], state)
        steps.append(y)
    torch.testing.assert_close(torch.cat(steps, dim=1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_base_rate_and_rope_theta(kind: str) -> None:
    theirs = state_dict(kind, False, True, mini_batch=64)
    x = torch.randn(70, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = load_ttt_lm(theirs, HEADS, 64, base_lr=0.2, rope_theta=300.0)
    torch.testing.assert_close(layer(x[None])[0][0], by_the_paper(theirs, x, 0.2, 300.0), rtol=0, atol=1e-9)
    for other in ({"base_lr": 1.0, "rope_theta": 300.0}, {"base_lr": 0.2}):
        assert (load_ttt_lm(theirs, HEADS, 64, **other)(x[None])[0] - layer(x[None])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_layer_is_the_papers_in_the_type_of_the_weights(dtype: torch.dtype) -> None:
    theirs = state_dict("mlp", True, True, dtype)
    layer = load_ttt_lm(theirs, HEADS, mini_batch=K)
    assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
    assert layer.update == Update()
    assert layer.base_lr == 1.0
    assert all(parameter.requires_grad for parameter in layer.parameters())
    assert sum(p.numel() for p in layer.parameters()) == sum(t.numel() for t in theirs.values())
    x = torch.randn(1, 6, DIM, generator=torch.Generator().manual_seed(1)).to(dtype)
    y, _ = layer(x)
    assert y.dtype == dtype
    exact = by_the_paper({key: value.double() for key, value in theirs.items()}, x[0].double(), 1.0, 10000.0)
    relative = {torch.float32: 1e-5, torch.float64: 1e-9, torch.bfloat16: 5e-2}[dtype] * exact.abs().max()
    torch.testing.assert_close(y[0].double(), exact, rtol=0, atol=float(relative))


def test_the_weights_are_copied() -> None:
    theirs = state_dict("linear", False, False)
    layer = load_ttt_lm(theirs, HEADS, mini_batch=K)
    before = theirs["W1"].clone()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(theirs["W1"], before)


@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_missing_key_is_named(kind: str, shared: bool) -> None:
    theirs = state_dict(kind, shared, gate=False)
    for key in theirs:
        with pytest.raises(CheckpointError, match=rf"\b{key}\b".replace(".", r"\.")):
            load_ttt_lm({name: value for name, value in theirs.items() if name != key}, HEADS, mini_batch=K)


@pytest.mark.parametrize(
    "extra", ["W3", "model.layers.0.seq_modeling_block.W1", "conv_q.weight", "rotary_emb.inv_freq"]
)
def test_an_unknown_key_is_named(extra: str) -> None:
    theirs = state_dict("linear", False, False) | {extra: torch.zeros(DIM, 1, 4, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=f"unknown {extra}".replace(".", r"\.")):
        load_ttt_lm(theirs, HEADS, mini_batch=K)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_every_wrong_shape_is_named(kind: str) -> None:
    for shared in (False, True):
        theirs = state_dict(kind, shared, gate=True)
        for key, value in theirs.items():
            with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
                load_ttt_lm(theirs | {key: value[:-1]}, HEADS, mini_batch=K)


def test_other_mistakes_are_named() -> None:
    theirs = state_dict("linear", False, False)
    with pytest.raises(CheckpointError, match=r"learnable_token_idx: expected shape \[16\].* got \[4\]"):
        load_ttt_lm(theirs, HEADS)
    with pytest.raises(CheckpointError, match="heads=3"):
        load_ttt_lm(theirs, 3, mini_batch=K)
    with pytest.raises(CheckpointError, match=r"W1.*heads=4"):
        load_ttt_lm(theirs, 4, mini_batch=K)
    with pytest.raises(CheckpointError, match=r"b1: expected torch.float64.*torch.float32"):
        load_ttt_lm(theirs | {"b1": theirs["b1"].float()}, HEADS, mini_batch=K)
    with pytest.raises(CheckpointError, match=r"q_proj.weight: expected a floating type, got torch.int64"):
        load_ttt_lm({key: value.long() for key, value in theirs.items()}, HEADS, mini_batch=K)
    for wrong in ({"base_lr": -1.0}, {"rope_theta": 0.0}, {"mini_batch": 0}, {"base_lr": math.nan}):
        with pytest.raises(CheckpointError, match=f"{next(iter(wrong))}=.* above 0"):
            load_ttt_lm(theirs, HEADS, **({"mini_batch": K} | wrong))
    with pytest.raises(CheckpointError, match=r"q_proj.weight"):
        load_ttt_lm({}, HEADS)
    whole = {f"model.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    with pytest.raises(CheckpointError, match=r"q_proj.weight"):
        load_ttt_lm(whole, HEADS)
