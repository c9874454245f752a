"""TTTLayer: a plain restatement of its forward, its options, and its errors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream import TTTLayer
from tttstream.errors import BackendError, ConfigError, ShapeError, StateError
from tttstream.inner import CATALOGUE
from tttstream.memory.tasks import Denoising, Masking, NextValue
from tttstream.testing import assert_close
from tttstream_kernels import RMS, Muon, Update, definition
from tttstream_kernels.definition import f, layer_norm, losses, separate, tanh_gelu

DIM, HEADS, K = 12, 2, 4
WIDTH = DIM // HEADS
FRAME: dict[str, Any] = {"causal": "frame", "grid": (2, 2)}
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"conv": 3, "gate": True, "unit_qk": True, "insert": 0.3}),
    ("linear", {"rotary": False, "update": Update(), "base_lr": 0.5}),
    ("linear", {"rotary": False, "unit_qk": True, **FRAME}),
    ("linear", {"task": "next"}),
    ("linear", {"task": "masking", "conv": 3, "update": Update(direction=Muon(), momentum=0.5)}),
    ("conv", {"task": "next", "unit_qk": True, **FRAME}),
    ("mlp", {}),
    ("mlp", {"conv": 4, "unit_qk": True, "update": Update(momentum=0.5, forget=0.1)}),
    ("mlp", {"gate": True, "insert": 0.1, **FRAME}),
    ("mlp", {"task": "denoising", "update": Update(direction=RMS())}),
    ("conv", {**FRAME, "gate": True}),
    ("conv", {**FRAME, "registers": 2}),
    ("swiglu", {**FRAME, "unit_qk": True, "insert": 0.2}),
    ("swiglu_dot", FRAME),
]
layers = pytest.mark.parametrize(
    ("inner", "options"), LAYERS, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default"
)


def random(*size: int, seed: int = 1) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(inner: str, options: dict[str, Any]) -> TTTLayer:
    """A layer in float64 with every parameter moved off its special start; one token scale below 0, so it is cut."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = TTTLayer(DIM, HEADS, inner, mini_batch=K, **options).double()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            if layer.scale is not None:
                layer.scale[2] = -0.8
    return layer


def restated(layer: TTTLayer, x: Tensor) -> Tensor:
    """What the layer gives for one stream x [T, dim], from its parameters, one token and one pair at a time."""
    tokens = layer.tokens
    views = layer.project.weight.split(DIM)
    q, k, v, rates, last = [], [], [], [], []
    for t in range(len(x)):
        if layer.conv is not None:
            taps = layer.conv.taps
            pair = [bias.clone() for bias in layer.conv.bias]
            for lag in range(min(t + 1, taps)):
                shared = views[0] @ x[t - lag]
                pair = [y + weight[taps - 1 - lag] * shared for y, weight in zip(pair, layer.conv.weight, strict=True)]
        else:
            pair = [views[0] @ x[t], views[1] @ x[t]]
        pair = [y.view(HEADS, WIDTH) for y in pair]
        if layer.unit_qk:
            pair = [y / y.square().sum(-1, keepdim=True).sqrt() for y in pair]
        pair, last = [pair[0], trained(layer, pair[1], t, last)], [*last, pair[1]]
        if layer.rotary is not None:
            pair = [turned(y, t % tokens) for y in pair]
        q.append(pair[0])
        k.append(pair[1])
        v.append((views[-1] @ x[t]).view(HEADS, WIDTH))
        logit = layer.rate.weight @ x[t] + layer.rate.bias
        rate = (layer.base_lr / (1.0 + torch.exp(-logit)) / WIDTH).view(HEADS, -1)
        rates.append(rate if pair[1].abs().max() > 0 else 0.0 * rate)
    tau = None
    if layer.scale is not None:
        tau = torch.stack([max(1.0 / (i + 1) + layer.scale[i], 0.0 * layer.scale[i]) for i in range(tokens)])
    z = definition.ttt(
        layer.inner, *(torch.stack(part)[None] for part in (q, k, v, rates)), layer.start, layer.gamma, layer.beta,
        mini_batch=tokens, causal=layer.causal, tau=tau, update=layer.update,
    )[0][0].flatten(1)  # fmt: skip
    y = layer_norm(z, layer.norm.weight, layer.norm.bias)
    if layer.gate is not None:
        y = tanh_gelu(x @ layer.gate.weight.T) * y
    y = y @ layer.out.weight.T
    return y if layer.alpha is None else torch.tanh(layer.alpha) * y


def trained(layer: TTTLayer, key: Tensor, t: int, last: list[Tensor]) -> Tensor:
    """What the inner model is given for token t, its training view [H, D] and those before."""
    place, task = t % layer.tokens, layer.task
    if isinstance(task, NextValue):
        unit = 1 if layer.causal == "token" else layer.tokens
        return last[t - unit] if t >= unit else torch.zeros_like(key)
    if isinstance(task, Denoising):
        rms = (key.square().mean(1, keepdim=True) + 1e-12).sqrt()
        return key + 0.3 * rms * task.noise[place]
    if isinstance(task, Masking):
        assert (task.mask.sum(-1) == round(0.25 * WIDTH)).all()
        return torch.where(task.mask[place], 0.0, key)
    return key


def turned(x: Tensor, position: int) -> Tensor:
    """Every pair (2d, 2d + 1) of [H, D] turned by position * 10000^(-2d / D)."""
    pairs = []
    for d in range(WIDTH // 2):
        angle = position * 10000.0 ** (-2 * d / WIDTH)
        cos, sin = math.cos(angle), math.sin(angle)
        pairs.append(x[:, 2 * d : 2 * d + 2] @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64))
    return torch.cat(pairs, dim=1)


@layers
def test_the_layer_is_its_restatement(inner: str, options: dict[str, Any]) -> None:
    layer = build(inner, options)
    tokens = 11 if layer.causal == "token" else 3 * layer.tokens
    x = random(2, tokens, DIM).requires_grad_()
    ours, theirs = layer(x)[0], torch.stack([restated(layer, row) for row in x])
    assert_close(ours, theirs)
    weight = random(*ours.shape, seed=2)
    inputs = {"x": x, **{name: p for name, p in layer.named_parameters() if p.requires_grad}}
    mine, other = (torch.autograd.grad((y * weight).sum(), list(inputs.values())) for y in (ours, theirs))
    for name, a, b in zip(inputs, mine, other, strict=True):
        assert b.abs().max() > 0, f"{name} has no part in the outputs"
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * max(1.0, float(b.abs().max())), msg=name)


@layers
def test_a_reset_is_a_new_stream(inner: str, options: dict[str, Any]) -> None:
    layer = build(inner, options)
    unit = 1 if layer.causal == "token" else layer.tokens
    cut = 6 if unit == 1 else unit
    x = random(1, 2 * cut + 3 * unit, DIM)
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[0, cut] = True
    pieces = [restated(layer, x[0, :cut]), restated(layer, x[0, cut:])]
    assert_close(layer(x, reset=reset)[0][0], torch.cat(pieces))


@layers
def test_reading_without_learning(inner: str, options: dict[str, Any]) -> None:
    layer = build(inner, {**options, "update": Update()})
    unit = 1 if layer.causal == "token" else layer.tokens
    x = random(1, 8 * unit, DIM)
    with torch.no_grad():
        _, state = layer(x[:, : 6 * unit])
        y, after, loss = layer(x[:, 6 * unit :], state, learn=False, return_loss=True)
        assert_close(after, state)
        assert loss.before.shape == (1, HEADS, 2 * unit)
        assert torch.equal(loss.before, loss.after)
        again, _, later = layer(x[:, 6 * unit :], state, learn=False, return_loss=True)
        assert torch.equal(y, again)
        assert torch.equal(loss.before, later.before)
        # the loss before learning is that of the weights that stand, at a mini-batch's start
        if unit > 1:
            _, _, learned = layer(x[:, 6 * unit : 7 * unit], state, return_loss=True)
            assert_close(loss.before[..., :unit], learned.before)
        reset = torch.ones(1, 2 * unit, dtype=torch.bool) if unit == 1 else None
        if reset is not None:
            forgotten = layer(x[:, 6:], state, reset=reset, learn=False)[1]
            assert_close(forgotten, layer.init_state(1))


@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_reading_inside_a_mini_batch(inner: str) -> None:
    layer = build(inner, {"rotary": False, "update": Update()})
    x = random(1, 7, DIM)
    _, state = layer(x[:, :6])
    assert state.phase.tolist() == [2]
    _, _, loss = layer(x[:, 6:], state, learn=False, return_loss=True)
    tau = max(0.0, 0.5 + float(layer.scale.detach()[1]))  # that of the last token, the second of its mini-batch
    _, k, v = (layer.project.weight @ x[0, 6]).view(3, HEADS, 1, WIDTH)
    for head in range(HEADS):
        flat = layer.start[head] + state.delta[0, head] - tau * state.grad_sum[0, head]
        expected = losses(
            layer.inner, k[head], v[head], separate(layer.inner, flat, WIDTH), layer.gamma[head], layer.beta[head]
        )
        torch.testing.assert_close(loss.before[0, head], expected, rtol=1e-10, atol=0)


def test_losses_have_heads_before_tokens() -> None:
    layer = build("linear", {"rotary": False, "update": Update()})
    x = random(2, 6, DIM)
    _, _, loss = layer(x, return_loss=True)
    assert loss.before.shape == loss.after.shape == (2, HEADS, 6)
    k, v = (layer.project.weight[DIM:] @ x[1, 0]).view(2, HEADS, 1, WIDTH)
    weights = separate(layer.inner, layer.start[1], WIDTH)
    expected = losses(layer.inner, k[1], v[1], weights, layer.gamma[1], layer.beta[1])
    torch.testing.assert_close(loss.before[1, 1, :1], expected)
    assert f(layer.inner, k[1], weights, layer.gamma[1], layer.beta[1]).shape == (1, WIDTH)


@layers
def test_a_state_is_small_zero_and_of_the_right_type(inner: str, options: dict[str, Any]) -> None:
    layer = build(inner, options)
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        layer = layer.to(dtype)
        state = layer.init_state(3)
        assert all(leaf.dtype == expected and not leaf.any() for _, leaf in state.leaves())
        y, after = layer(random(3, 4 * layer.tokens, DIM).to(dtype), state)
        assert y.dtype == dtype
        assert [(leaf.shape, leaf.dtype) for _, leaf in after.leaves()] == [
            (leaf.shape, leaf.dtype) for _, leaf in state.leaves()
        ]
        assert y.isfinite().all()


@layers
def test_arguments_are_not_changed(inner: str, options: dict[str, Any]) -> None:
    layer = build(inner, options)
    x = random(2, 3 * layer.tokens, DIM)
    with torch.no_grad():
        _, state = layer(x)
    lengths = torch.tensor([layer.tokens, 3 * layer.tokens])
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[1, layer.tokens] = True
    given = [x, lengths, reset, *(leaf for _, leaf in state.leaves()), *layer.state_dict().values()]
    before = [value.clone() for value in given]
    for learning in (True, False):  # without gradients the ops work in place
        with torch.set_grad_enabled(learning):
            layer(x)
            layer(x, state, reset, lengths)
            layer(x[:, : layer.tokens], state, return_loss=True)
            layer(x, state, learn=False)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize(("inner", "options"), [LAYERS[1], LAYERS[4]], ids=["linear", "mlp"])
def test_many_tokens_of_fresh_rows_are_one_graph_for_the_compiler(inner: str, options: dict[str, Any]) -> None:
    torch.compiler.reset()
    layer, x = build(inner, options), random(2, 3 * K, DIM)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for learning in (True, False):
        with torch.set_grad_enabled(learning):
            assert_close(compiled(x), layer(x))


def test_a_branch_that_starts_at_zero_changes_nothing() -> None:
    layer = TTTLayer(DIM, HEADS, insert=0.0)
    y, _ = layer(random(1, 5, DIM).float())
    assert not y.any()
    y.sum().backward()
    assert layer.alpha is not None
    assert layer.alpha.grad is not None
    assert layer.alpha.grad.abs().min() > 0


@pytest.mark.parametrize("inner", CATALOGUE)
def test_every_inner_model_has_defaults_that_learn(inner: str) -> None:
    """Shown the same frame again, every default layer knows it better."""
    torch.manual_seed(0)
    layer = TTTLayer(DIM, HEADS, inner, **({} if inner in ("linear", "mlp") else FRAME))
    x = torch.randn(1, layer.tokens, DIM).repeat(1, 20, 1)
    _, _, loss = layer(x, return_loss=True)
    first, last = (loss.before.unflatten(2, (20, -1))[:, :, i].mean() for i in (0, -1))
    assert last < first


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"dim": 7, "heads": 2}, "dim must be a multiple of heads"),
    ({"heads": 0}, "heads=0"),
    ({"dim": 6}, "rotary=False"),
    ({"inner": "cnn"}, "unknown inner model 'cnn'.*linear, mlp, conv"),
    ({"inner": "conv"}, 'causal="frame"'),
    ({"inner": "swiglu", "causal": "token"}, 'causal="frame"'),
    ({"causal": "block"}, "causal.*'block'"),
    ({"mini_batch": 0}, "mini_batch"),
    ({"conv": -1}, "conv"),
    ({"grid": (2, 2)}, "grid"),
    ({"registers": 1}, "registers"),
    ({"causal": "frame"}, "grid"),
    ({"inner": "conv", "causal": "frame"}, "grid"),
    ({"causal": "frame", "grid": (0, 2)}, "grid"),
    ({"causal": "frame", "grid": (2, 2), "registers": -1}, "registers"),
    ({"causal": "frame", "grid": (2, 2), "conv": 4}, "convolution"),
]


@pytest.mark.parametrize(
    ("options", "message"), MISTAKES, ids=lambda value: str(value) if isinstance(value, dict) else ""
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TTTLayer(**{"dim": 8, "heads": 2, **options})


def test_a_wrong_call_is_named() -> None:
    layer = TTTLayer(8, 2)
    x = torch.zeros(2, 3, 8)
    for mistake, message in (
        ({"x": x[0]}, "x of shape"),
        ({"x": x[..., :7]}, "x of shape"),
        ({"x": x[:, :0]}, "x of shape"),
        ({"x": x.long()}, "floating"),
        ({"reset": torch.zeros(2, 2, dtype=torch.bool)}, "reset"),
        ({"reset": torch.zeros(2, 3)}, "reset"),
        ({"lengths": torch.tensor([1, 2, 3])}, "lengths"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths"),
        ({"lengths": torch.tensor([1, 4])}, "lengths.*0 and 3"),
    ):
        with pytest.raises(ShapeError, match=message):
            layer(**{"x": x, **mistake})
    for state in (layer.init_state(3), TTTLayer(8, 2, mini_batch=4, conv=3).init_state(2), (x,)):
        with pytest.raises(StateError):
            layer(x, state)
    with pytest.raises(BackendError, match="backend='triton' cannot run: "):
        TTTLayer(8, 2, backend="triton")(x)
    frames = TTTLayer(8, 2, causal="frame", grid=(2, 2))
    with pytest.raises(ShapeError, match=r"whole frames: 6 tokens.* 4"):
        frames(torch.zeros(1, 6, 8))
    reset = torch.zeros(1, 8, dtype=torch.bool)
    reset[0, 2] = True
    with pytest.raises(ShapeError, match="resets at frame starts only: every 4 tokens"):
        frames(torch.zeros(1, 8, 8), reset=reset)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("inner", ["linear", "conv"])
def test_frame_mode_takes_whole_frames_whether_it_learns_or_not(inner: str, learn: bool) -> None:
    layer = TTTLayer(16, 2, inner, causal="frame", grid=(2, 2))
    x, reset = torch.randn(1, 8, 16), torch.zeros(1, 8, dtype=torch.bool)
    with pytest.raises(ShapeError, match="whole frames"):
        layer(x[:, :6], learn=learn)
    with pytest.raises(ShapeError, match="whole frames"):
        layer(x, lengths=torch.tensor([5]), learn=learn)
    reset[0, 3] = True
    with pytest.raises(ShapeError, match="frame starts"):
        layer(x, reset=reset, learn=learn)


def test_the_inner_optimiser_is_learned_where_it_is_given_as_parameters() -> None:
    forget, max_norm = torch.nn.Parameter(torch.full((HEADS,), 0.1)), torch.full((HEADS,), 0.3)
    layer = TTTLayer(DIM, HEADS, mini_batch=K, update=Update(forget=forget, max_norm=max_norm)).double()
    assert dict(layer.named_parameters())["forget"] is layer.forget
    assert {"forget", "max_norm"} <= set(layer.state_dict())
    assert layer.update.forget is layer.forget
    assert layer.update.max_norm.dtype == torch.float64
    y, state = layer(random(1, 3 * K, DIM))
    layer.forget.grad = None
    y.square().sum().backward()
    assert layer.forget.grad.abs().min() > 0
    with torch.no_grad():
        layer.forget.fill_(0.9)
        assert not torch.allclose(layer(random(1, 3 * K, DIM))[1].delta, state.delta)
