"""Frame-causal TTT: one frame is one mini-batch of N tokens, and every token sees the weights after its own frame.

W_t = W_{t-1} - (1/N) sum_{j in frame t} eta_j grad(W_{t-1}; j),   z_j = f(q_j; W_t)

No order inside a frame, so no triangle and no N x N matrix. Nothing here reads a value, so it exports with any masks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tttstream_kernels.inner import Inner, flatten
from tttstream_kernels.norm import normalise, reconstruction_gradient
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Update, finish, rate_factor


def _rows(mask: Tensor, new: InnerState, old: InnerState) -> InnerState:
    """Row by row: `new` where mask [B], else `old`."""
    return InnerState(*(torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True)))


def frame_causal(
    inner: Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    update: Update,
    tokens: int,
    state: InnerState,
    reset: Tensor | None,
    lengths: Tensor | None,
    return_loss: bool,
) -> tuple[Tensor, InnerState, Loss | None]:
    """Whole frames of `tokens` tokens each: q, k, v [B, T, H, D], eta [B, T, H, rates] -> (outputs, state, loss)."""
    if lengths is not None:
        inside = (torch.arange(q.shape[1], device=q.device) < lengths[:, None])[:, :, None, None]
        q, k, v, eta = (torch.where(inside, x, 0.0) for x in (q, k, v, eta))
    fresh = InnerState(*(torch.zeros_like(part) for part in state))
    outputs, before, after = [], [], []
    for begin in range(0, q.shape[1], tokens):
        if reset is not None:
            cut = reset[:, begin] if lengths is None else reset[:, begin] & (lengths > begin)
            state = _rows(cut, fresh, state)
        here = slice(begin, begin + tokens)
        y, new, losses = one_frame(
            inner, q[:, here], k[:, here], v[:, here], eta[:, here], start, gamma, beta, update, state, return_loss
        )
        state = new if lengths is None else _rows(lengths > begin, new, state)
        outputs.append(y)
        if losses is not None:
            before.append(losses.before)
            after.append(losses.after)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    if lengths is not None:
        y = torch.where(inside, y, 0.0)
    if not return_loss:
        return y, state, None
    loss = Loss(torch.cat(before, dim=1), torch.cat(after, dim=1))
    if lengths is not None:
        loss = Loss(*(torch.where(inside[..., 0], part, 0.0) for part in loss))
    return y, state, loss


def one_frame(
    inner: Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    update: Update,
    state: InnerState,
    return_loss: bool,
) -> tuple[Tensor, InnerState, Loss | None]:
    """Learn one frame, then read it: q, k, v [B, N, H, D], eta [B, N, H, rates] -> (outputs, state, loss)."""
    rows, tokens, heads, width = q.shape
    q, k, v, rate = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v, eta))
    gamma, beta = (x[:, None].repeat(rows, 1, 1) for x in (gamma, beta))
    update = update.cells(rows)
    starts = tuple(w.repeat(rows, 1, 1) for w in inner.split(start, width))
    delta = inner.split(state.delta.flatten(0, 1), width)
    momentum = inner.split(state.momentum.flatten(0, 1), width) if update.has_momentum else ()
    weights = tuple(s + d for s, d in zip(starts, delta, strict=True))
    factor = rate_factor(update, starts, delta)
    rate = rate / tokens if factor is None else rate * (factor / tokens)

    z, saved = inner.forward(k, weights)
    if inner.residual:
        gradient, error = reconstruction_gradient(z, v - k, gamma, beta)
        loss_before = 0.5 * error.square().sum(-1)
    else:
        gradient, loss_before = -v, -(z * v).sum(-1)
    step = inner.gradients(gradient, rate, weights, saved)
    if update.has_momentum:
        weights = tuple(w - update.momentum * m for w, m in zip(weights, momentum, strict=True))
    now = tuple(w - s for w, s in zip(weights, step, strict=True))
    delta, momentum = finish(update, starts, delta, step, momentum)

    y = inner.forward(q, now)[0]
    if inner.residual:
        y = q + normalise(y, gamma, beta)
    loss = None
    if return_loss:
        z = inner.forward(k, now)[0]
        loss_after = (
            0.5 * (normalise(z, gamma, beta) - (v - k)).square().sum(-1) if inner.residual else -(z * v).sum(-1)
        )
        loss = Loss(*(part.unflatten(0, (rows, heads)).transpose(1, 2) for part in (loss_before, loss_after)))
    new = InnerState(
        delta=flatten(delta).view_as(state.delta),
        pending=state.pending,
        momentum=flatten(momentum).view_as(state.delta) if momentum else state.momentum,
        phase=state.phase,
    )
    return y.unflatten(0, (rows, heads)).transpose(1, 2), new, loss
