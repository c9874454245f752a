"""One token through a TTTLayer on the CPU without a graph: the results of its forward with a third of the operator
calls, and the same for a compiler."""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.memory.positions import ShortConv
from tttstream_kernels import InnerState
from tttstream_kernels import step as op
from tttstream_kernels.factors import GradSum
from tttstream_kernels.inner import Dense
from tttstream_kernels.traced import step as one_step

TTTLayer: TypeAlias = Any  # those of tttstream.memory.ttt, which imports this module
TTTState: TypeAlias = Any


def suits(layer: TTTLayer) -> bool:
    """Whether this layer has such a step: token mode, an update that acts only at mini-batch ends, keys that are the
    training view, and a backend other than triton."""
    return layer.causal == "token" and op.covers(layer._update) and layer.task.plain and layer.backend != "triton"


def step(layer: TTTLayer, x: Tensor, state: TTTState | None, reset: Tensor | None) -> tuple[Tensor, TTTState] | None:
    """x [B, 1, dim], reset [B, 1]: (y [B, 1, dim], state); None if the layer's forward is needed: for many tokens,
    a graph, a compiler, autocast, other types, other devices, or an argument that is not as it should be."""
    if state is None or torch.is_grad_enabled() or not layer.one_by_one or not isinstance(state, layer.state_type):
        return None
    if not isinstance(x, Tensor) or not (reset is None or isinstance(reset, Tensor)):
        return None
    modules, inner, conv = layer._modules, layer.inner, layer.conv
    if conv is not None and (conv.__class__ is not ShortConv or _changed(conv)):
        return None
    parameters: dict[str, Any] = layer._parameters  # a module's attributes take three times as long to look up
    find = parameters.get
    start, gamma, beta, scale = find("start"), find("gamma"), find("beta"), find("scale")
    if start is None or gamma is None or beta is None or scale is None:  # somebody parametrises them
        return None
    rows, dim, dtype = x.shape[0] if x.dim() else 0, layer.dim, x.dtype
    delta, grad_sum, momentum, phase, window = tuple(state)
    sums = delta if grad_sum.__class__ is GradSum else grad_sum  # whose shape and type these are
    shapes = delta.shape, sums.shape, momentum.shape, phase.shape, window.shape
    types = start.dtype, delta.dtype, sums.dtype, phase.dtype
    if not rows or x.shape != (rows, 1, dim) or shapes != layer.state_shapes(rows) or types != (dtype,) * 4:
        return None
    if not x.is_cpu or torch.is_autocast_enabled("cpu") or dtype not in (torch.float32, torch.float64):
        return None
    assert isinstance(inner, Dense)
    if reset is not None:
        if reset.shape != (rows, 1) or reset.dtype != torch.bool:
            return None
        if bool(reset.any()):
            state = state.map(torch.zeros_like).where(reset[:, 0], state)
            delta, grad_sum, momentum, phase, window = tuple(state)

    heads, width, tokens = layer.heads, layer.width, layer.tokens
    phases = phase.tolist()
    places = [int(p) % tokens if math.isfinite(p) else 0 for p in phases]  # NaN: a row that is lost
    seen = x.view(rows, dim)
    views = _call(modules["project"], seen)
    if conv is not None:
        shared, v = views.split(dim, dim=-1)
        qk, window = conv.one(shared, window)
        views = torch.cat([qk, v.unsqueeze(0)]).view(3, rows * heads, 1, width)
    elif rows == 1:
        views = views.view(3, heads, 1, width)
    else:
        views = views.view(rows, 3, heads, width).transpose(0, 1).reshape(3, rows * heads, 1, width)
    if layer.unit_qk:
        views = torch.cat([F.normalize(views[:2], dim=-1), views[2:]])
    if rows == 1 or len(set(places)) == 1:
        place: int | Tensor = places[0]
        tau: float | Tensor = max(1.0 / (places[0] + 1) + scale.tolist()[places[0]], 0.0)
    else:
        place = torch.tensor(places).repeat_interleave(heads)
        tau = (layer.ramp.value + scale).clamp(min=0.0)[place].view(-1, 1, 1)
    rotary: Any = modules.get("rotary")
    if rotary is not None:
        views = rotary.turned(views, place)
    eta = _call(modules["rate"], seen).sigmoid().view(-1, 1, 1)
    ends = [p == tokens - 1 for p in places]
    token = op.Token(views, eta, layer.base_lr / width, tokens, tau, not any(phases), ends)
    update = layer.update if layer._numbers else layer._update
    old = InnerState(delta, grad_sum, momentum, phase)
    z, new = op.step(inner, token, start, gamma, beta, update, old)
    gate, alpha = modules.get("gate"), find("alpha")
    y = _call(modules["norm"], z.view(rows, dim))
    if gate is not None:
        y = F.gelu(_call(gate, seen), approximate="tanh") * y
    y = _call(modules["out"], y).view(x.shape)
    return y if alpha is None else alpha.tanh() * y, type(state)(*new, window)


def _changed(module: nn.Module) -> Any:
    """Whether a call of this module does more than its class says: by hooks, or by another `forward` (which wrapping
    libraries set on the instance)."""
    return module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__


def _call(module: nn.Module | None, x: Tensor) -> Tensor:
    """module(x), by a direct call of the function if it is a Linear or LayerNorm that nobody changed."""
    assert module is not None
    parameters: dict[str, Any] = module._parameters
    if not _changed(module):
        if module.__class__ is nn.Linear:
            return F.linear(x, parameters["weight"], parameters["bias"])
        if module.__class__ is nn.LayerNorm:
            return torch.layer_norm(x, module.normalized_shape, parameters["weight"], parameters["bias"], module.eps)
    y: Tensor = module(x)
    return y


def traced(layer: TTTLayer, x: Tensor, state: TTTState | None, reset: Tensor | None) -> tuple[Tensor, TTTState] | None:
    """`step` for a compiler, without phases on the host; None also for resets, learned numbers and convolutions."""
    if (
        state is None
        or reset is not None
        or torch.is_grad_enabled()
        or not layer.one_by_one
        or layer.conv is not None
        or layer._numbers
        or not x.is_cpu
    ):
        return None
    rows, dim, dtype = x.shape[0], layer.dim, x.dtype
    if x.shape != (rows, 1, dim) or state.delta.dtype != dtype or torch.is_autocast_enabled("cpu"):
        return None
    assert layer.scale is not None
    heads, width, tokens, phase, update = layer.heads, layer.width, layer.tokens, state.phase, layer._update
    seen = x.view(rows, dim)
    views = _product(layer.project, seen).view(rows, 3, heads, width).transpose(0, 1).reshape(3, rows * heads, 1, width)
    here = torch.arange(tokens, dtype=dtype) == phase[:, None]
    tau = torch.where(here, (layer.ramp.value + layer.scale).clamp(min=0.0), 0.0).sum(1).view(-1, 1, 1)
    if layer.unit_qk:
        views = torch.cat([F.normalize(views[:2], dim=-1), views[2:]])
    rotary = layer.rotary
    if rotary is not None:
        turn = torch.where(here[..., None], rotary.turns.value.flatten(1), 0.0).sum(1).view(rows, 1, -1, 2)
        turn = turn.expand(-1, heads, -1, -1).reshape(-1, 1, width // 2, 2)
        pairs = views[:2].unflatten(-1, (-1, 2))
        sign = torch.arange(2, dtype=dtype) * 2.0 - 1.0
        qk = (pairs * turn[..., :1] + pairs.flip(-1) * (turn[..., 1:] * sign)).flatten(-2)
        views = torch.cat([qk, views[2:]])
    eta = (_product(layer.rate, seen).sigmoid() * (layer.base_lr / width)).view(-1, 1, 1)
    tau = tau.expand(-1, heads, -1).reshape(-1, 1, 1)
    z, delta, grad_sum, phase = one_step(
        views, eta, tau, phase == tokens - 1, layer.start, layer.gamma, layer.beta, state.delta, state.grad_sum, phase,
        layer.inner.name, update.forget, update.max_norm, update.restore, update.columns,
        update.margin,
    )  # fmt: skip
    y = layer.norm(z.view(rows, dim))
    if layer.gate is not None:
        y = F.gelu(_product(layer.gate, seen), approximate="tanh") * y
    y = _product(layer.out, y).view(x.shape)
    y = y if layer.alpha is None else layer.alpha.tanh() * y
    return y, type(state)(delta, grad_sum, state.momentum, phase, state.window)


def _product(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x); for one row as a sum, which a compiler fuses with later operations, unlike a separate call."""
    if x.shape[0] > 1 or linear.__class__ is not nn.Linear or _changed(linear):
        y: Tensor = linear(x)
        return y
    y = (x[:, None] * linear.weight).sum(-1)
    return y if linear.bias is None else y + linear.bias
