"""Token mode on the GPU: the ops `tttstream::token` and `tttstream::token_backward` around the Triton kernels.

The ops work on [B, H, P] weights and sums of rows as they stand, start + delta; the state's difference is taken
outside, by autograd. No value is read on the host, so calls with any phases, lengths and resets run in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tttstream_kernels import (
    linear_token_backward_triton,
    linear_token_triton,
    mlp_token_backward_triton,
    mlp_token_triton,
)
from tttstream_kernels.blocks import block_of, blocks, launch_options, span_of
from tttstream_kernels.call import Call
from tttstream_kernels.launch_triton import launch, shared_memory
from tttstream_kernels.norm import half_square
from tttstream_kernels.precision import cast
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.step_triton import token_step
from tttstream_kernels.token_parts_triton import numerics
from tttstream_kernels.update import Update, norm

KERNELS: dict[tuple[str, str], Any] = {
    ("linear", "forward"): linear_token_triton.forward,
    ("linear", "backward"): linear_token_backward_triton.backward,
    ("mlp", "forward"): mlp_token_triton.forward,
    ("mlp", "backward"): mlp_token_backward_triton.backward,
}


def token_causal(
    call: Call, state: InnerState, fresh: bool, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """`token.token_causal` where `triton_unavailable` gives no reason; q, k, v as they come."""
    dtype = torch.promote_types(torch.promote_types(call.q.dtype, call.k.dtype), call.v.dtype)
    streams = cast(torch.float32 if dtype == torch.float64 else dtype, call.q, call.k, call.v)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in streams)
    call = call._replace(q=q, k=k, v=v)
    reset, lengths = (None if x is None else x.contiguous() for x in (reset, lengths))
    update = call.update
    learned = (*call[1:8], call.tau, state.delta, state.grad_sum, update.forget, update.max_norm)
    wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in learned)
    if q.shape[1] == 1 and not wanted:
        return _one_token(call, state, reset, lengths, return_loss)
    return _any_tokens(call, state, fresh, reset, lengths, return_loss, wanted)


def _any_tokens(
    call: Call,
    state: InnerState,
    fresh: bool,
    reset: Tensor | None,
    lengths: Tensor | None,
    return_loss: bool,
    wanted: bool,
) -> tuple[Tensor, InnerState, Loss | None]:
    """wanted: whether a gradient is."""
    assert call.tau is not None
    (rows, tokens, _, width), size = call.q.shape, call.tokens
    given = cast(torch.float32, call.eta[..., 0], call.start, call.gamma, call.beta, call.tau, state.grad_sum)
    eta, start, gamma, beta, tau, pending = (x.contiguous() for x in given)
    weights = start.expand(rows, -1, -1) if fresh else (start + state.delta).contiguous()
    forget, limit = _settling(call.update, call.inner.split(start, width)[-1])
    phase = state.phase.nan_to_num(0.0, 0.0, 0.0).to(torch.int32) % size
    y, seen, after, sums, _ = token(
        call.inner.name, call.q, call.k, call.v, eta, weights, pending, start, gamma, beta, tau,
        forget, limit, phase, lengths, reset, call.update.restore,
        3 if return_loss else 1, span_of(tokens, size) if wanted else 0,
    )  # fmt: skip
    end = blocks(phase, lengths, reset, tokens, size, size, 0).end
    new = InnerState(after - start, sums, state.momentum, end.to(state.phase.dtype))
    loss = None
    if return_loss:
        error = seen - call.v.to(torch.float32)
        if lengths is not None:
            inside = torch.arange(tokens, device=lengths.device) < lengths[:, None]
            error = torch.where(inside[..., None, None], error, 0.0)
        learned, stood = half_square(error)
        loss = Loss(stood, learned)
    if lengths is not None:
        new = new.where(lengths > 0, state)
    return y, new, loss


def _one_token(
    call: Call, state: InnerState, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    assert call.tau is not None
    forget, longest = call.update.forget, call.update.max_norm
    each = [x.contiguous() if isinstance(x, Tensor) else None for x in (forget, longest)]
    number = [0.0 if isinstance(x, Tensor) or x is None else float(x) for x in (forget, longest)]
    weights = (x.contiguous() for x in (call.start, call.gamma, call.beta, call.tau))
    y, delta, pending, phase, before, after = token_step(
        call.inner.name, call.q, call.k, call.v, call.eta.contiguous(),
        state.delta.contiguous(), state.grad_sum.contiguous(), state.phase.contiguous(), *weights,
        each[0], number[0], each[1], number[1], call.update.restore,
        lengths, reset, return_loss,
    )  # fmt: skip
    return y, InnerState(delta, pending, state.momentum, phase), Loss(before, after) if return_loss else None


def _settling(update: Update, last: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What kernels take of an update: what each head forgets and the longest its last layer may be, [H] or None.
    last: [H, rows, columns] the last layer at the learned start."""

    def heads(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(torch.float32).contiguous()
        return torch.full(last.shape[:1], value, dtype=torch.float32, device=last.device)

    forget = None if isinstance(update.forget, float | int) and update.forget == 0 else heads(update.forget)
    if update.max_norm is None:
        return forget, None
    limit = heads(update.max_norm)
    return forget, limit if update.restore else norm(last)[:, 0, 0].clamp(min=limit)


@torch.library.custom_op("tttstream::token", mutates_args=())
def token(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    pending: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    tau: Tensor,
    forget: Tensor | None,
    limit: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    restore: bool,
    reads: int,
    span: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(outputs [B, T, H, D], what keys see [reads - 1, B, T, H, D], weights, sums [B, H, P], checkpoints).

    q, k, v [B, T, H, D] of one type, any strides with the last 1; eta [B, T, H], weights, pending [B, H, P], start
    [H, P], gamma, beta [H, D], tau [K], forget, limit [H] float32, contiguous but for the rows of `weights`; phase [B]
    int32; reads: 1, or 3 to see keys after and before they are learned; span: tokens between checkpoints, 0: none.
    """
    rows, tokens, heads, width = q.shape
    y, seen, after, sums, kept = room(q, pending, lengths, reads, span)
    block = block_of(inner, width, len(tau), shared_memory(q.device))
    cut = blocks(phase, lengths, reset, tokens, len(tau), block, span)
    launch(
        KERNELS[inner, "forward"], rows * heads,
        q, k, v, eta, weights, pending, start, gamma, beta, tau, forget, limit,
        cut.phase, lengths, reset, cut.number, cut.begins,
        y, seen, after, sums, kept,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], weights.stride(0),
        tokens, heads, kept.shape[2], span,
        D=width, K=len(tau), BLOCK=block, KEEP=span > 0, READS=reads, RESTORE=restore, **numerics(q.dtype),
        **launch_options(inner, "forward", width, q.dtype, block == len(tau)),
    )  # fmt: skip
    return y, seen, after, sums, kept


def room(
    q: Tensor, pending: Tensor, lengths: Tensor | None, reads: int, span: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for what `token` returns; tokens beyond a row's length stay zero."""
    rows, tokens, heads, size = *q.shape[:3], pending.shape[2]
    segments = -(-tokens // span) if span else 0
    room = torch.empty if lengths is None else torch.zeros
    return (
        room(q.shape, dtype=q.dtype, device=q.device),
        room((reads - 1, *q.shape), dtype=pending.dtype, device=q.device),
        torch.empty_like(pending),
        torch.empty_like(pending),
        pending.new_empty(rows, heads, segments, size),
    )


@token.register_fake
def _(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    pending: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    tau: Tensor,
    forget: Tensor | None,
    limit: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    restore: bool,
    reads: int,
    span: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return room(q, pending, lengths, reads, span)


Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("tttstream::token_backward", mutates_args=())
def token_backward(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    pending: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    tau: Tensor,
    forget: Tensor | None,
    limit: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    restore: bool,
    reads: int,
    span: int,
    kept: Tensor,
    d_y: Tensor,
    d_seen: Tensor,
    d_weights_end: Tensor,
    d_pending_end: Tensor,
) -> Gradients:
    """Gradients with respect to q, k, v, eta, weights, pending, start, gamma, beta, tau, forget and limit (without
    elements where there is none) from those of what `token` gave; kept are its checkpoints."""
    rows, tokens, heads, width = q.shape
    size, segments = len(tau), kept.shape[2]
    tiles, shared = _gradients(q, eta, weights, start, tau, forget, limit, lengths, reset)
    block = block_of(inner, width, size, shared_memory(q.device))
    cut = blocks(phase, lengths, reset, tokens, size, block, span)
    shelves, cuts, hidden = scratch(inner, weights, span, size, block, width)
    launch(
        KERNELS[inner, "backward"], rows * heads,
        q, k, v, eta, weights, pending, start, gamma, beta, tau, forget, limit,
        cut.phase, lengths, reset, cut.number, cut.begins, cut.first,
        kept, shelves, cuts, hidden, d_y, d_seen, d_weights_end, d_pending_end,
        *tiles, *shared,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], weights.stride(0),
        tokens, heads, segments, span,
        D=width, K=size, BLOCK=block, READS=reads, RESTORE=restore, **numerics(q.dtype),
        **launch_options(inner, "backward", width, q.dtype),
    )  # fmt: skip
    d_q, d_k, d_v, d_eta, d_weights, d_pending = tiles
    d_start, d_gamma, d_beta, d_tau, d_forget, d_limit = shared
    return (
        d_q, d_k, d_v, d_eta, d_weights, d_pending, d_start.sum(0), d_gamma.sum(0), d_beta.sum(0), d_tau.sum((0, 1)),
        d_forget.sum(0), d_limit.sum(0),
    )  # fmt: skip


def scratch(inner: str, weights: Tensor, span: int, size: int, block: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the backward pass works in: weights at the ends of one segment's mini-batches and sums at those of their
    blocks, the factors of the cuts, and what belongs to the hidden units of one block of the MLP."""
    rows, heads, numbers = weights.shape
    shelves = weights.new_empty(rows, heads, (span + size) // block + 2, numbers)
    hidden = weights.new_empty(rows, heads, 5, 4 * width if inner == "mlp" else 0, block)
    return shelves, shelves.new_empty(shelves.shape[:3]), hidden


def _gradients(
    q: Tensor,
    eta: Tensor,
    weights: Tensor,
    start: Tensor,
    tau: Tensor,
    forget: Tensor | None,
    limit: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Room for the gradients: of q, k, v, eta, weights, pending; and cell by cell of what cells share."""
    rows, _, heads, width = q.shape
    room = torch.empty if lengths is None else torch.zeros
    tiles = [room(q.shape, dtype=q.dtype, device=q.device) for _ in range(3)]
    tiles.append(room(eta.shape, dtype=eta.dtype, device=eta.device))
    tiles += [weights.new_empty(weights.shape) for _ in range(2)]
    met = forget is not None or reset is not None
    shared = [
        start.new_zeros(rows, *start.shape) if met else start.new_zeros(0, *start.shape),
        start.new_empty(rows, heads, width),
        start.new_empty(rows, heads, width),
        start.new_empty(rows, heads, len(tau)),
        start.new_empty(rows, heads if forget is not None else 0),
        start.new_empty(rows, heads if limit is not None else 0),
    ]
    return tiles, shared


@token_backward.register_fake
def _(
    inner: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    weights: Tensor,
    pending: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    tau: Tensor,
    forget: Tensor | None,
    limit: Tensor | None,
    phase: Tensor,
    lengths: Tensor | None,
    reset: Tensor | None,
    restore: bool,
    reads: int,
    span: int,
    kept: Tensor,
    d_y: Tensor,
    d_seen: Tensor,
    d_weights_end: Tensor,
    d_pending_end: Tensor,
) -> Gradients:
    tiles, shared = _gradients(q, eta, weights, start, tau, forget, limit, lengths, reset)
    first, *rest = shared
    d_q, d_k, d_v, d_eta, d_weights, d_pending = tiles
    d_gamma, d_beta, d_tau, d_forget, d_limit = (x[0] for x in rest)
    return d_q, d_k, d_v, d_eta, d_weights, d_pending, first.sum(0), d_gamma, d_beta, d_tau[0], d_forget, d_limit


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.arguments = inputs[0], *inputs[-3:]
    ctx.save_for_backward(*inputs[1:-3], *output)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    inner, restore, reads, span = ctx.arguments
    *inputs, y, seen, weights, pending, kept = ctx.saved_tensors
    given = (
        torch.zeros_like(x) if g is None else g.contiguous()
        for g, x in zip(gradients, (y, seen, weights, pending), strict=False)
    )
    found = token_backward(inner, *inputs, restore, reads, span, kept, *given)
    forget, limit = (g if x is not None else None for g, x in zip(found[10:], inputs[10:12], strict=True))
    return None, *found[:10], forget, limit, None, None, None, None, None, None


torch.library.register_autograd("tttstream::token", _backward, setup_context=_save)
