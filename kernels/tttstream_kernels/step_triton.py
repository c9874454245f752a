"""The one-token step of a stream in one launch: state in, state out, no value read on the host, no gradient.

Everything of `token.one_token` happens inside: resets, rows that are idle, the token's step, the losses, and what
settles the weights when the mini-batch is full. So it runs in a CUDA graph, and moves each weight of the state once.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tttstream_kernels.launch_triton import VARYING, launch, operator
from tttstream_kernels.norm_triton import gelu, gelu_slope, standardise, through
from tttstream_kernels.token_parts_triton import error_terms, everything, matrix


@triton.jit
def _row(x, w):
    """x w for one token: x [D], w [D, columns] -> [1, columns]."""
    return tl.sum(x[:, None] * w, axis=0)[None, :]


@triton.jit
def _flat(x):
    """[1, columns] -> [columns]."""
    return tl.sum(x, axis=0)


@triton.jit
def _of(base, at, anew):
    """A part of the state, zeros where the row starts again."""
    return tl.where(anew, 0.0, tl.load(base + at))


@triton.jit
def _limit(square, max_norm, RESTORE: tl.constexpr):
    """The largest norm that the last layer may have; square: its squared norm at the learned start."""
    limit = max_norm + tl.zeros_like(square)
    if not RESTORE:
        limit = tl.maximum(limit, tl.sqrt(square), propagate_nan=tl.PropagateNan.ALL)
    return limit


@triton.jit
def _cut(limit, square, RESTORE: tl.constexpr):
    """The factor that brings a last layer of this squared norm to its limit."""
    cut = limit / tl.sqrt(square)
    if not RESTORE:
        cut = tl.minimum(cut, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return cut


@triton.jit
def _half_square(error):
    return 0.5 * tl.sum(tl.sum(error * error, axis=1), axis=0)


@triton.jit
def _row_state(p_phase, p_lengths, p_reset, row, K: tl.constexpr):
    """(whether the row's token counts, whether it starts again, its place in the mini-batch) of a row."""
    counts = True
    if p_lengths is not None:
        counts = tl.load(p_lengths + row) > 0
    anew = False
    if p_reset is not None:
        anew = (tl.load(p_reset + row) != 0) & counts
    place = tl.load(p_phase + row)
    place = tl.where((place >= 0) & (place < K), place, 0.0).to(tl.int32)
    return counts, anew, tl.where(anew, 0, place)


@triton.jit
def _number(tensor, number, head):
    """A number of the update, each head's own where there is a tensor."""
    if tensor is not None:
        number = tl.load(tensor + head).to(tl.float32)
    return number


@triton.jit(**VARYING)
def step(
    p_q, p_k, p_v, p_eta, p_delta, p_sums, p_start, p_gamma, p_beta, p_tau, p_forget, p_max_norm,
    p_phase, p_lengths, p_reset, p_y, p_before, p_after, p_delta_end, p_sums_end, p_phase_end,
    forget, max_norm, q_row, q_head, k_row, k_head, v_row, v_head, H,
    D: tl.constexpr, K: tl.constexpr, FORGET: tl.constexpr, MAX_NORM: tl.constexpr, RESTORE: tl.constexpr,
    LOSS: tl.constexpr, MLP: tl.constexpr,
):  # fmt: skip
    """One cell of the linear inner model, or of the MLP in chunks of its hidden layer."""
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // H, cell % H
    F: tl.constexpr = 4 * D
    P: tl.constexpr = 2 * D * F + F + D if MLP else D * D + D
    CHUNK: tl.constexpr = 32 if D == 128 else 64
    columns, units, at = tl.arange(0, D), tl.arange(0, CHUNK), matrix(D, D)
    at_bias = P - D + columns
    p_delta += cell * P
    p_sums += cell * P
    p_delta_end += cell * P
    p_sums_end += cell * P
    p_start += head * P
    counts, anew, place = _row_state(p_phase, p_lengths, p_reset, row, K)
    if counts:
        x_q = tl.load(p_q + row * q_row + head * q_head + columns).to(tl.float32)
        x_k = tl.load(p_k + row * k_row + head * k_head + columns).to(tl.float32)
        target = (tl.load(p_v + row * v_row + head * v_head + columns).to(tl.float32) - x_k)[None, :]
        scale = tl.load(p_gamma + head * D + columns).to(tl.float32)[None, :]
        shift = tl.load(p_beta + head * D + columns).to(tl.float32)[None, :]
        if MLP:
            b2_start = tl.load(p_start + at_bias).to(tl.float32)
            b2 = b2_start + _of(p_delta, at_bias, anew)
            z = b2[None, :]
            for c in range(0, F, CHUNK):
                at1 = columns[:, None] * F + c + units[None, :]
                at2 = (D + 1) * F + (c + units)[:, None] * D + columns[None, :]
                w1 = tl.load(p_start + at1).to(tl.float32) + _of(p_delta, at1, anew)
                b1 = tl.load(p_start + D * F + c + units).to(tl.float32) + _of(p_delta, D * F + c + units, anew)
                w2 = tl.load(p_start + at2).to(tl.float32) + _of(p_delta, at2, anew)
                z += _row(gelu(_flat(_row(x_k, w1)) + b1), w2)
            z_hat, rstd, error, u = error_terms(z, target, tl.load(p_eta + cell).to(tl.float32), scale, shift)
            gradient = _flat(through(u, z_hat, rstd))
            rate = tl.load(p_tau + place).to(tl.float32)
            full = place == K - 1
            share = 0.0
            if FORGET:
                share = tl.where(full, _number(p_forget, forget, head), 0.0)
            b2_sum = _of(p_sums, at_bias, anew) + gradient
            b2 -= rate * b2_sum
            z_q, z_k = b2[None, :], b2[None, :]
            b2 += share * (b2_start - b2)
            square, square_start = tl.sum(b2 * b2, axis=0), tl.sum(b2_start * b2_start, axis=0)
            for c in range(0, F, CHUNK):
                at1 = columns[:, None] * F + c + units[None, :]
                at_b1 = D * F + c + units
                at2 = (D + 1) * F + (c + units)[:, None] * D + columns[None, :]
                w1_start, b1_start = tl.load(p_start + at1).to(tl.float32), tl.load(p_start + at_b1).to(tl.float32)
                w2_start = tl.load(p_start + at2).to(tl.float32)
                w1_delta, w2_delta = _of(p_delta, at1, anew), _of(p_delta, at2, anew)
                b1_delta = _of(p_delta, at_b1, anew)
                w1, b1, w2 = w1_start + w1_delta, b1_start + b1_delta, w2_start + w2_delta
                z1 = _flat(_row(x_k, w1)) + b1
                g1 = tl.sum(w2 * gradient[None, :], axis=1) * gelu_slope(z1)
                w1_sum = _of(p_sums, at1, anew) + x_k[:, None] * g1[None, :]
                b1_sum = _of(p_sums, at_b1, anew) + g1
                w2_sum = _of(p_sums, at2, anew) + gelu(z1)[:, None] * gradient[None, :]
                w1 -= rate * w1_sum
                b1 -= rate * b1_sum
                w2 -= rate * w2_sum
                z_q += _row(gelu(_flat(_row(x_q, w1)) + b1), w2)
                if LOSS:
                    z_k += _row(gelu(_flat(_row(x_k, w1)) + b1), w2)
                if full:  # what settles the weights, but for the cut, which wants the norm of all chunks
                    w1 += share * (w1_start - w1)
                    b1 += share * (b1_start - b1)
                    w2 += share * (w2_start - w2)
                    square += everything(w2 * w2)
                    square_start += everything(w2_start * w2_start)
                    w1_delta, b1_delta, w2_delta = w1 - w1_start, b1 - b1_start, w2 - w2_start
                    w1_sum, b1_sum, w2_sum = tl.zeros_like(w1_sum), tl.zeros_like(b1_sum), tl.zeros_like(w2_sum)
                tl.store(p_delta_end + at1, w1_delta)
                tl.store(p_delta_end + at_b1, b1_delta)
                tl.store(p_delta_end + at2, w2_delta)
                tl.store(p_sums_end + at1, w1_sum)
                tl.store(p_sums_end + at_b1, b1_sum)
                tl.store(p_sums_end + at2, w2_sum)
            out = x_q[None, :] + standardise(z_q)[0] * scale + shift
            tl.store(p_y + cell * D + columns, _flat(out).to(p_y.dtype.element_ty))
            if LOSS:
                tl.store(p_before + cell, _half_square(error))
                tl.store(p_after + cell, _half_square(standardise(z_k)[0] * scale + shift - target))
            b2_delta = _of(p_delta, at_bias, anew)
            if full:
                b2_delta = b2 - b2_start
                b2_sum = tl.zeros_like(b2_sum)
                if MAX_NORM:
                    limit = _limit(square_start, _number(p_max_norm, max_norm, head), RESTORE)
                    cut = _cut(limit, square, RESTORE)
                    b2_delta = cut * b2 - b2_start
                    tl.debug_barrier()
                    for c in range(0, F, CHUNK):
                        at2 = (D + 1) * F + (c + units)[:, None] * D + columns[None, :]
                        w2_start = tl.load(p_start + at2).to(tl.float32)
                        w2 = w2_start + tl.load(p_delta_end + at2)
                        tl.store(p_delta_end + at2, cut * w2 - w2_start)
            tl.store(p_delta_end + at_bias, b2_delta)
            tl.store(p_sums_end + at_bias, b2_sum)
        else:
            w_start, b_start = tl.load(p_start + at).to(tl.float32), tl.load(p_start + at_bias).to(tl.float32)
            w_delta, b_delta = _of(p_delta, at, anew), _of(p_delta, at_bias, anew)
            w, b = w_start + w_delta, b_start + b_delta
            z = _row(x_k, w) + b[None, :]
            z_hat, rstd, error, u = error_terms(z, target, tl.load(p_eta + cell).to(tl.float32), scale, shift)
            gradient = _flat(through(u, z_hat, rstd))
            w_sum = _of(p_sums, at, anew) + x_k[:, None] * gradient[None, :]
            b_sum = _of(p_sums, at_bias, anew) + gradient
            rate = tl.load(p_tau + place).to(tl.float32)
            w -= rate * w_sum
            b -= rate * b_sum
            out = x_q[None, :] + standardise(_row(x_q, w) + b[None, :])[0] * scale + shift
            tl.store(p_y + cell * D + columns, _flat(out).to(p_y.dtype.element_ty))
            if LOSS:
                tl.store(p_before + cell, _half_square(error))
                learned = standardise(_row(x_k, w) + b[None, :])[0] * scale + shift - target
                tl.store(p_after + cell, _half_square(learned))
            if place == K - 1:
                if FORGET:
                    share = _number(p_forget, forget, head)
                    w += share * (w_start - w)
                    b += share * (b_start - b)
                if MAX_NORM:
                    square = everything(w_start * w_start) + tl.sum(b_start * b_start, axis=0)
                    limit = _limit(square, _number(p_max_norm, max_norm, head), RESTORE)
                    cut = _cut(limit, everything(w * w) + tl.sum(b * b, axis=0), RESTORE)
                    w *= cut
                    b *= cut
                w_delta, b_delta = w - w_start, b - b_start
                w_sum, b_sum = tl.zeros_like(w_sum), tl.zeros_like(b_sum)
            tl.store(p_delta_end + at, w_delta)
            tl.store(p_delta_end + at_bias, b_delta)
            tl.store(p_sums_end + at, w_sum)
            tl.store(p_sums_end + at_bias, b_sum)
    else:
        tl.store(p_y + cell * D + columns, tl.zeros([D], p_y.dtype.element_ty))
        if LOSS:
            tl.store(p_before + cell, 0.0)
            tl.store(p_after + cell, 0.0)
        if MLP:
            for c in range(0, P, 1024):
                each = c + tl.arange(0, 1024)
                tl.store(p_delta_end + each, tl.load(p_delta + each, mask=each < P), mask=each < P)
                tl.store(p_sums_end + each, tl.load(p_sums + each, mask=each < P), mask=each < P)
        else:
            tl.store(p_delta_end + at, tl.load(p_delta + at))
            tl.store(p_delta_end + at_bias, tl.load(p_delta + at_bias))
            tl.store(p_sums_end + at, tl.load(p_sums + at))
            tl.store(p_sums_end + at_bias, tl.load(p_sums + at_bias))
    if head == 0:
        tl.store(p_phase_end + row, tl.where(counts, ((place + 1) % K).to(tl.float32), tl.load(p_phase + row)))


def warps(width: int) -> int:
    """Warps of a program."""
    return 4 if width < 64 else 8


class Step(NamedTuple):
    """Arguments of the op: the inner model; q, k, v [B, 1, H, D], any strides with the last 1; all else contiguous: eta
    [B, 1, H], delta, sums [B, H, P], phase [B], start [H, P], gamma, beta [H, D], tau [K], forget, max_norm [H] or one
    number for all heads (0: none), lengths [B], reset [B, 1]; losses: whether they are wanted."""

    inner: str
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    delta: Tensor
    sums: Tensor
    phase: Tensor
    start: Tensor
    gamma: Tensor
    beta: Tensor
    tau: Tensor
    forget: Tensor | None
    forget_number: float
    max_norm: Tensor | None
    max_norm_number: float
    restore: bool
    lengths: Tensor | None
    reset: Tensor | None
    losses: bool


def _step(given: Step) -> tuple[Tensor, ...]:
    results = _results(given)
    y, delta, sums, phase, before, after = results
    rows, _, heads, width = given.q.shape
    launch(
        step, rows * heads, given.q,
        given.q, given.k, given.v, given.eta, given.delta, given.sums, given.start, given.gamma, given.beta, given.tau,
        given.forget, given.max_norm, given.phase, given.lengths, given.reset, y, before, after, delta, sums, phase,
        given.forget_number, given.max_norm_number,
        *(stride for x in (given.q, given.k, given.v) for stride in (x.stride(0), x.stride(2))), heads,
        D=width, K=len(given.tau), FORGET=given.forget is not None or given.forget_number != 0.0,
        MAX_NORM=given.max_norm is not None or given.max_norm_number != 0.0, RESTORE=given.restore, LOSS=given.losses,
        MLP=given.inner == "mlp", num_warps=warps(width),
    )  # fmt: skip
    return results


def _results(given: Step) -> tuple[Tensor, ...]:
    """Room for outputs [B, 1, H, D], delta, sums, phase, and losses before and after [B, 1, H], without elements where
    they are not wanted."""
    rows, _, heads, _ = given.q.shape
    losses = (given.delta.new_empty(rows, 1, heads if given.losses else 0) for _ in range(2))
    y = torch.empty(given.q.shape, dtype=given.q.dtype, device=given.q.device)
    return y, *(torch.empty_like(x) for x in (given.delta, given.sums, given.phase)), *losses


token_step = operator("tttstream::token_step", (Step,), 6, _step, _results)
