"""Reads a memory without learning: every token uses the current weights."""

import torch
from torch import Tensor

from tttstream_kernels.factors import look
from tttstream_kernels.inner import Inner
from tttstream_kernels.norm import half_square, normalise
from tttstream_kernels.precision import cast, full_precision
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Update, normalised_scale


def read(
    inner: Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    state: InnerState,
    mini_batch: int,
    causal: str | None = None,
    tau: Tensor | None = None,
    reset: Tensor | None = None,
    update: Update | None = None,
) -> tuple[Tensor, Loss]:
    """(outputs [B, T, H, D], Loss with before = after) at the weights learned so far, W - mu M - tau_p S inside a
    mini-batch that holds p tokens; at the learned start from a reset on. Arguments as those of
    `ttt`; causal: the mode of the state unless given."""
    dtype = state.delta.dtype
    output = q.dtype
    if causal is None:
        causal = "token" if state.grad_sum.shape[-1] else "frame"
    with full_precision(q.device.type):
        q, k, v, start, gamma, beta = cast(dtype, q, k, v, start, gamma, beta)
        weights = start + state.delta
        if causal == "token":
            tau = 1.0 / torch.arange(1, mini_batch + 1, device=q.device) if tau is None else tau
            phase = state.phase.long()
            scale = torch.where(phase > 0, tau.to(dtype)[(phase - 1).clamp(min=0)], 0.0)
            kept = look(state.grad_sum)
            scale, grad_sum = scale[:, None, None], kept[..., : weights.shape[-1]]
            if update is not None and update.normalised:
                scale = normalised_scale(scale, grad_sum.square().sum(-1, keepdim=True), kept[..., -1:])
            weights = weights - scale * grad_sum
            if update is not None and update.has_momentum:
                mu = update.momentum[:, None] if isinstance(update.momentum, Tensor) else update.momentum
                momentum = state.momentum[..., : weights.shape[-1]]
                weights = weights - torch.where((phase > 0)[:, None, None], mu * momentum, 0.0)
        y, loss = _at(inner, q, k, v, weights, gamma, beta, mini_batch)
        if reset is not None:
            since = (reset.cumsum(1) > 0)[..., None]
            y_start, loss_start = _at(inner, q, k, v, start.expand_as(weights), gamma, beta, mini_batch)
            y, loss = torch.where(since[..., None], y_start, y), torch.where(since, loss_start, loss)
    return y.to(output), Loss(loss, loss)


def _at(
    inner: Inner, q: Tensor, k: Tensor, v: Tensor, flat: Tensor, gamma: Tensor, beta: Tensor, tokens: int
) -> tuple[Tensor, Tensor]:
    """Outputs and losses at given weights [B, H, P]; frames of an inner model that needs them side by side."""
    rows, length, heads, width = q.shape
    tokens = length if inner.token_causal else tokens
    frames = length // tokens
    flat = flat[:, None].expand(-1, frames, -1, -1).reshape(rows * frames * heads, -1)
    gamma, beta = (x[:, None].repeat(rows * frames, 1, 1) for x in (gamma, beta))
    q, k, v = (x.unflatten(1, (frames, tokens)).transpose(2, 3).flatten(0, 2) for x in (q, k, v))
    weights = inner.split(flat, width)
    z_q, z_k = inner.forward(q, weights)[0], inner.forward(k, weights)[0]
    if inner.residual:
        y = q + normalise(z_q, gamma, beta)
        loss = half_square(normalise(z_k, gamma, beta) - (v - k))[..., None]
    else:
        y, loss = z_q, -(z_k * v).sum(-1, keepdim=True)
    y, loss = (x.unflatten(0, (rows, frames, heads)).transpose(2, 3).flatten(1, 2) for x in (y, loss))
    return y, loss[..., 0]
