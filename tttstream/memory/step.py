"""One token through a TTTLayer on the CPU where no graph is wanted: what its forward gives, in a third of the calls."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream_kernels import InnerState
from tttstream_kernels import step as op
from tttstream_kernels.inner import Dense

if TYPE_CHECKING:
    from tttstream.memory.ttt import TTTLayer, TTTState


def suits(layer: TTTLayer) -> bool:
    """Whether there is such a step of this layer: tokens one by one, nothing but sums inside a mini-batch, and not the
    other backend."""
    return layer.causal == "token" and layer.conv is None and op.covers(layer._update) and layer.backend != "triton"


def step(layer: TTTLayer, x: Tensor, state: TTTState | None, reset: Tensor | None) -> tuple[Tensor, TTTState] | None:
    """x [B, 1, dim], reset [B, 1]: (y [B, 1, dim], state); None where the layer's forward is needed: for many tokens,
    a graph, a compiler, autocast, other types, other devices, or an argument that is not as it should be."""
    if state is None or torch.is_grad_enabled() or not layer.one_by_one or not isinstance(state, layer.state_type):
        return None
    modules, start, inner, scale = layer._modules, layer.start, layer.inner, layer.scale
    rows, dim, dtype = x.shape[0] if x.dim() else 0, layer.dim, x.dtype
    delta, pending, momentum, phase, window = tuple(state)
    shapes = delta.shape, pending.shape, momentum.shape, phase.shape, window.shape
    types = start.dtype, delta.dtype, pending.dtype, phase.dtype
    if not rows or x.shape != (rows, 1, dim) or shapes != layer.state_shapes(rows) or types != (dtype,) * 4:
        return None
    if not x.is_cpu or torch.is_autocast_enabled("cpu") or dtype not in (torch.float32, torch.float64):
        return None
    assert isinstance(inner, Dense) and scale is not None  # noqa: PT018
    if reset is not None:
        if reset.shape != (rows, 1) or reset.dtype != torch.bool:
            return None
        if bool(reset.any()):
            state = state.map(torch.zeros_like).where(reset[:, 0], state)
            delta, pending, momentum, phase, window = tuple(state)

    heads, width, tokens = layer.heads, layer.width, layer.tokens
    places = [int(p) % tokens if math.isfinite(p) else 0 for p in phase.tolist()]  # NaN: a row that is lost
    seen = x.view(rows, dim)
    views = _call(modules["project"], seen)
    if rows == 1:
        views = views.view(3, heads, 1, width)
    else:
        views = views.view(rows, 3, heads, width).transpose(0, 1).reshape(3, rows * heads, 1, width)
    if layer.unit_qk:
        views = torch.cat([F.normalize(views[:2], dim=-1), views[2:]])
    if len(set(places)) == 1:
        place: int | Tensor = places[0]
        tau: float | Tensor = max(1.0 / (places[0] + 1) + scale.tolist()[places[0]], 0.0)
    else:
        place = torch.tensor(places).repeat_interleave(heads)
        tau = (layer.ramp.value + scale).clamp(min=0.0)[place].view(-1, 1, 1)
    rotary = layer.rotary
    if rotary is not None:
        views = rotary.turned(views, place)
    eta = _call(modules["rate"], seen).sigmoid().view(-1, 1, 1)
    token = op.Token(views, eta, layer.base_lr / width, tau, [p == tokens - 1 for p in places])
    update = layer.update if layer._numbers else layer._update
    old = InnerState(delta, pending, momentum, phase)
    z, new = op.step(inner, token, start, layer.gamma, layer.beta, update, old)
    gate, alpha = layer.gate, layer.alpha
    y = _call(modules["norm"], z.view(rows, dim))
    if gate is not None:
        y = F.gelu(_call(gate, seen), approximate="tanh") * y
    y = _call(modules["out"], y).view(x.shape)
    return y if alpha is None else alpha.tanh() * y, type(state)(*new, window)


def _call(module: nn.Module | None, x: Tensor) -> Tensor:
    """module(x), straight away where it is what the layer made, without hooks."""
    assert module is not None
    parameters: dict[str, Any] = module._parameters
    if not module._forward_hooks and not module._forward_pre_hooks:
        if module.__class__ is nn.Linear:
            return F.linear(x, parameters["weight"], parameters["bias"])
        if module.__class__ is nn.LayerNorm:
            return torch.layer_norm(x, module.normalized_shape, parameters["weight"], parameters["bias"], module.eps)
    y: Tensor = module(x)
    return y
