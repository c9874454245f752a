"""Weights of other TTT code: the official PyTorch release's layers as TTTLayers."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tttstream.errors import CheckpointError
from tttstream.memory.positions import Rotary
from tttstream.memory.ttt import TTTLayer
from tttstream_kernels import Update


def load_ttt_lm(
    state_dict: Mapping[str, Tensor],
    heads: int,
    mini_batch: int = 16,
    base_lr: float = 1.0,
    rope_theta: float = 10000.0,
) -> TTTLayer:
    """A TTTLayer with the outputs of a TTTLinear or TTTMLP module of the official PyTorch release.

    Args:
        state_dict: of that one module, keys without a prefix (`q_proj.weight`, `W1`, ...). `W2` makes it an MLP,
            `conv_q.weight` a projection shared by q and k (`k_proj.weight` is absent then), `g_proj.weight` gated.
        heads, mini_batch, base_lr, rope_theta: num_attention_heads, mini_batch_size, ttt_base_lr and rope_theta in its
        configuration; the weights do not contain them.

    Returns:
        the layer, in the type and on the device of the state_dict, with the paper's plain update.

    Raises:
        CheckpointError: a key is missing or unknown, or a tensor has another shape or type; the message names it.
    """
    for name, value in (("mini_batch", mini_batch), ("base_lr", base_lr), ("rope_theta", rope_theta)):
        if not 0 < value < math.inf:
            raise CheckpointError(f"load_ttt_lm: {name}={value}: expected a number above 0")
    expected = _shapes(state_dict, heads, mini_batch)
    unknown, missing = sorted(set(state_dict) - set(expected)), sorted(set(expected) - set(state_dict))
    if unknown or missing:
        found = [f"{what} {', '.join(keys)}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys]
        raise CheckpointError(
            f"load_ttt_lm: {'; '.join(found)}: expected the state_dict of one TTTLinear or TTTMLP module, "
            f"without a prefix: {', '.join(expected)}"
        )
    like = state_dict["q_proj.weight"]
    if not like.is_floating_point():
        raise CheckpointError(f"load_ttt_lm: q_proj.weight: expected a floating type, got {like.dtype}")
    for key, shape in expected.items():
        tensor = state_dict[key]
        if list(tensor.shape) != shape:
            raise CheckpointError(
                f"load_ttt_lm: {key}: expected shape {shape} for heads={heads}, mini_batch={mini_batch}, "
                f"got {list(tensor.shape)}"
            )
        if tensor.dtype != like.dtype:
            raise CheckpointError(f"load_ttt_lm: {key}: expected {like.dtype} as q_proj.weight, got {tensor.dtype}")

    inner = "mlp" if "W2" in state_dict else "linear"
    taps = expected["conv_q.weight"][-1] if "conv_q.weight" in expected else 0
    layer = TTTLayer(
        like.shape[0],
        heads,
        inner,
        mini_batch,
        conv=taps,
        gate="g_proj.weight" in expected,
        base_lr=base_lr,
        update=Update(),
    )
    layer.rotary = Rotary(layer.width, mini_batch, rope_theta, dtype=torch.float32)
    layer.to(like.device, like.dtype).load_state_dict(_renamed(state_dict, inner, taps))
    return layer


def _shapes(state_dict: Mapping[str, Tensor], heads: int, mini_batch: int) -> dict[str, list[int]]:
    """The shape of every tensor of a module with these keys."""
    query = state_dict.get("q_proj.weight")
    if query is None or query.dim() != 2:
        got = "none" if query is None else f"shape {list(query.shape)}"
        raise CheckpointError(f"load_ttt_lm: q_proj.weight: expected shape [dim, dim], got {got}")
    dim = query.shape[0]
    if heads < 1 or dim % heads or dim // heads % 2:
        raise CheckpointError(f"load_ttt_lm: heads={heads} does not cut q_proj.weight, {dim} wide, into even widths")
    width = dim // heads
    hidden = 4 * width if {"W2", "b2"} & set(state_dict) else width
    shapes = {f"{name}_proj.weight": [dim, dim] for name in ("q", "k", "v", "o")}
    shapes |= {"W1": [heads, width, hidden], "b1": [heads, 1, hidden]}
    if hidden != width:
        shapes |= {"W2": [heads, hidden, width], "b2": [heads, 1, width]}
    shapes |= {
        "learnable_token_idx": [mini_batch],
        "learnable_ttt_lr_weight": [heads, 1, dim],
        "learnable_ttt_lr_bias": [heads, 1],
        "ttt_norm_weight": [heads, width],
        "ttt_norm_bias": [heads, width],
        "post_norm.weight": [dim],
        "post_norm.bias": [dim],
    }
    if "g_proj.weight" in state_dict:
        shapes["g_proj.weight"] = [dim, dim]
    convolutions = [key for key in state_dict if key.startswith(("conv_q.", "conv_k."))]
    if convolutions and "k_proj.weight" not in state_dict:
        del shapes["k_proj.weight"]
        weight = state_dict.get("conv_q.weight")
        taps = weight.shape[-1] if weight is not None and weight.dim() == 3 and weight.numel() else 4
        for name in ("conv_q", "conv_k"):
            shapes |= {f"{name}.weight": [dim, 1, taps], f"{name}.bias": [dim]}
    return shapes


def _renamed(theirs: Mapping[str, Tensor], inner: str, taps: int) -> dict[str, Tensor]:
    """Their parameters in our layout: one matrix for all views, one flat vector of inner weights for each head."""
    views = ("q", "v") if taps else ("q", "k", "v")
    layers = ("1", "2") if inner == "mlp" else ("1",)
    ours = {
        "project.weight": torch.cat([theirs[f"{view}_proj.weight"] for view in views]),
        "rate.weight": theirs["learnable_ttt_lr_weight"][:, 0],
        "rate.bias": theirs["learnable_ttt_lr_bias"][:, 0],
        "start": torch.cat([theirs[name + layer].flatten(1) for layer in layers for name in ("W", "b")], dim=1),
        "gamma": theirs["ttt_norm_weight"],
        "beta": theirs["ttt_norm_bias"],
        "scale": theirs["learnable_token_idx"],
        "norm.weight": theirs["post_norm.weight"],
        "norm.bias": theirs["post_norm.bias"],
        "out.weight": theirs["o_proj.weight"],
    }
    if taps:
        ours["conv.weight"] = torch.stack([theirs[f"conv_{view}.weight"][:, 0].T for view in ("q", "k")])
        ours["conv.bias"] = torch.stack([theirs[f"conv_{view}.bias"] for view in ("q", "k")])
    if "g_proj.weight" in theirs:
        ours["gate.weight"] = theirs["g_proj.weight"]
    return ours
