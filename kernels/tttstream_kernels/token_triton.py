"""Token mode on the GPU: the ops `tttstream::token` and `tttstream::token_backward` around the Triton kernels.

The ops work on [B, H, P] weights and sums of rows as they stand, start + delta; the state's difference is taken
outside, by autograd. No value is read on the host, so calls with any phases, lengths and resets run in a CUDA graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
from tttstream_kernels.launch_triton import launch, operator, shared_memory
from tttstream_kernels.norm import half_square
from tttstream_kernels.precision import cast
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.step_triton import token_step
from tttstream_kernels.token_parts_triton import Cuts, Gradients, Learned, Results, Room, Streams, numerics
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
    given_rows = Rows(
        call.inner.name, call.q, call.k, call.v, eta, weights, pending, start, gamma, beta, tau, forget, limit, phase,
        lengths, reset, call.update.restore, 3 if return_loss else 1, span_of(tokens, size) if wanted else 0,
    )  # fmt: skip
    y, seen, after, sums, _ = token(*given_rows)
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
    """The fields of an update that kernels use: `forget` and `max_norm` of each head, [H] or None. last: [H, rows,
    columns] the last layer at the learned start."""

    def heads(value: float | Tensor) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(torch.float32).contiguous()
        return torch.full(last.shape[:1], value, dtype=torch.float32, device=last.device)

    forget = None if isinstance(update.forget, float | int) and update.forget == 0 else heads(update.forget)
    if update.max_norm is None:
        return forget, None
    limit = heads(update.max_norm)
    return forget, limit if update.restore else norm(last)[:, 0, 0].clamp(min=limit)


class Rows(NamedTuple):
    """Arguments of both ops: the inner model; q, k, v [B, T, H, D] of one type, any strides with the last 1; eta [B, T,
    H], weights, sums [B, H, P], start [H, P], gamma, beta [H, D], tau [K], forget, limit [H] float32, contiguous but
    for the rows of `weights`; phase [B] int32, lengths [B], reset [B, T], contiguous; restore: as in `Update`; reads:
    1, or 3 for what keys see after and before they are learned; span: tokens between checkpoints, 0: none."""

    inner: str
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    weights: Tensor
    sums: Tensor
    start: Tensor
    gamma: Tensor
    beta: Tensor
    tau: Tensor
    forget: Tensor | None
    limit: Tensor | None
    phase: Tensor
    lengths: Tensor | None
    reset: Tensor | None
    restore: bool
    reads: int
    span: int

    @property
    def block(self) -> int:
        """Places of a block."""
        return block_of(self.inner, self.q.shape[3], len(self.tau), shared_memory(self.q.device))

    def launch(self, way: str, results: Results, *more: Any, **constants: Any) -> None:
        """Launch a kernel on these rows."""
        rows, tokens, heads, width = self.q.shape
        size, block = len(self.tau), self.block
        cut = blocks(self.phase, self.lengths, self.reset, tokens, size, block, self.span)
        launch(
            KERNELS[self.inner, way], rows * heads, self.q, Streams(self.q, self.k, self.v),
            Learned(self.weights, self.sums, self.start, self.gamma, self.beta, self.tau, self.forget, self.limit),
            results, Cuts(cut.number, cut.begins, cut.first), self.eta, cut.phase, self.lengths, self.reset,
            *(x.stride()[:3] for x in (self.q, self.k, self.v)), self.weights.stride(0),
            tokens, heads, results.p_kept.shape[2], self.span, *more,
            D=width, P=self.sums.shape[2], K=size, BLOCK=block, READS=self.reads, RESTORE=self.restore,
            **numerics(self.q.dtype), **constants,
            **launch_options(self.inner, way, width, self.q.dtype, way == "backward" or block == size),
        )  # fmt: skip


class Upstream(NamedTuple):
    """Further arguments of the backward pass: the checkpoints, and gradients of the forward pass's outputs."""

    kept: Tensor
    d_y: Tensor
    d_seen: Tensor
    d_weights: Tensor
    d_sums: Tensor


def _forward(rows: Rows) -> tuple[Tensor, ...]:
    results = room(rows)
    rows.launch("forward", Results(*results), KEEP=rows.span > 0)
    return results


def room(rows: Rows) -> tuple[Tensor, ...]:
    """Room for outputs [B, T, H, D], what keys see [reads - 1, B, T, H, D], weights, sums [B, H, P] and checkpoints
    [B, H, segments, P]; tokens beyond a row's length stay zero."""
    q, sums = rows.q, rows.sums
    number, tokens, heads, size = *q.shape[:3], sums.shape[2]
    segments = -(-tokens // rows.span) if rows.span else 0
    empty = torch.empty if rows.lengths is None else torch.zeros
    return (
        empty(q.shape, dtype=q.dtype, device=q.device),
        empty((rows.reads - 1, *q.shape), dtype=sums.dtype, device=q.device),
        torch.empty_like(sums),
        torch.empty_like(sums),
        sums.new_empty(number, heads, segments, size),
    )


def _backward(rows: Rows, up: Upstream) -> tuple[Tensor, ...]:
    tokens, cells = _gradients(rows)
    results = Results(up.d_y, up.d_seen, up.d_weights, up.d_sums, up.kept)
    rows.launch("backward", results, Gradients(*tokens, *cells), scratch(rows))
    return _summed(tokens, cells)


def scratch(rows: Rows) -> Room:
    """Scratch memory of the backward pass: weights at the ends of one segment's mini-batches and sums at those of their
    blocks, their scales, and what belongs to the hidden units of one block of the MLP."""
    (number, heads, size), block = rows.sums.shape, rows.block
    slots = rows.sums.new_empty(number, heads, (rows.span + len(rows.tau)) // block + 2, size)
    units = 4 * rows.q.shape[3] if rows.inner == "mlp" else 0
    return Room(slots, slots.new_empty(slots.shape[:3]), slots.new_empty(number, heads, 5, units, block))


def _gradients(rows: Rows) -> tuple[list[Tensor], list[Tensor]]:
    """Room for the gradients: of q, k, v, eta, weights, sums; and cell by cell of what cells share."""
    (number, _, heads, width), start = rows.q.shape, rows.start
    empty = torch.empty if rows.lengths is None else torch.zeros
    tokens = [empty(x.shape, dtype=x.dtype, device=x.device) for x in (rows.q, rows.q, rows.q, rows.eta)]
    tokens += [rows.sums.new_empty(rows.sums.shape) for _ in range(2)]
    met = rows.forget is not None or rows.reset is not None
    cells = [start.new_zeros(number if met else 0, *start.shape)]
    cells += [start.new_empty(number, heads, size) for size in (width, width, len(rows.tau))]
    cells += [start.new_empty(number, 0 if x is None else heads) for x in (rows.forget, rows.limit)]
    return tokens, cells


def _summed(tokens: list[Tensor], cells: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, eta, weights, sums, start, gamma, beta, tau, forget and limit (without elements where there
    is none)."""
    d_start, d_gamma, d_beta, d_tau, d_forget, d_limit = cells
    return *tokens, d_start.sum(0), d_gamma.sum(0), d_beta.sum(0), d_tau.sum((0, 1)), d_forget.sum(0), d_limit.sum(0)


token = operator("tttstream::token", (Rows,), 5, _forward, room)
token_backward = operator(
    "tttstream::token_backward", (Rows, Upstream), 12, _backward, lambda rows, _: _summed(*_gradients(rows))
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.arguments = inputs[0], *inputs[-3:]
    ctx.save_for_backward(*inputs[1:-3], *output)


def _autograd(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    inner, *options = ctx.arguments
    *inputs, y, seen, weights, sums, kept = ctx.saved_tensors
    given = (
        torch.zeros_like(x) if g is None else g.contiguous()
        for g, x in zip(gradients, (y, seen, weights, sums), strict=False)
    )
    found = token_backward(inner, *inputs, *options, kept, *given)
    bounds = (g if x is not None else None for g, x in zip(found[10:], inputs[10:12], strict=True))
    return None, *found[:10], *bounds, *[None] * 6


token.register_autograd(_autograd, setup_context=_save)
