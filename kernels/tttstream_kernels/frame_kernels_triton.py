"""The two kernels of frame mode, for every inner model: forward, and backward from checkpoints (README, equations 10
and 15 to 20).

A program runs one head of one row and goes through its frames. What differs between inner models is a `Model`, a tuple
of functions that the compiler puts in place.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import triton
import triton.language as tl

from tttstream_kernels import conv_triton, frame_parts_triton, linear_frame_triton, mlp_frame_triton
from tttstream_kernels.frame_parts_triton import (
    Frame,
    Norm,
    Sizes,
    Tile,
    column_sums,
    frame_at,
    half_square,
    is_reset,
    keys_of,
    limit_backward,
    load_scalars,
    load_tile,
    loss_terms,
    rates,
    row_length,
    settling_of,
    store_scalars,
    store_tile,
    targets,
    weights_before,
)
from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import gradient_backward, standardise, through


class Model(NamedTuple):
    """The functions of an inner model. Its weights are a tuple of tiles, or a pointer where they stay in memory."""

    begin: Any
    """The weights with which a call begins."""
    load: Any
    """Weights, or their gradient, that lie at a place in memory."""
    last_norm: Any
    """The norm of the last layer of weights that lie at a place in memory."""
    end: Any
    """Store the state after the last frame."""
    apply: Any
    """g(x) of a tile of tokens."""
    learn: Any
    """The step of a frame: new weights and, where they stay in memory, the norm of their last layer."""
    settle: Any
    """Forgetting and the limit of the norm, after the step."""
    settle_backward: Any
    """Back through `settle`."""
    open_reads: Any
    """Before the tiles of a frame that read: weights and gradients that they share."""
    apply_backward: Any
    """Back through `apply`, tile by tile."""
    close_reads: Any
    """After them: what needs all tiles of the frame."""
    open_step: Any
    """Before the tiles of a frame that are learned."""
    step: Any
    """Forward again: g(k), and what the next two need."""
    step_gradient: Any
    """The gradient at the steps."""
    step_backward: Any
    """Back through the steps, tile by tile."""
    close_step: Any
    """After them: the gradient at the weights that the frame before left."""
    begin_gradients: Any
    """The gradient at the weights after the last frame, from that of the state."""
    end_gradients: Any
    """Store the gradients of the state with which the call began, and of the learned start."""


def _model(module: Any) -> Model:
    """The functions of a module; those that it lacks work on weights in memory."""
    names = Model._fields
    return Model(*(getattr(module, name, None) or getattr(frame_parts_triton, f"{name}_in_memory") for name in names))


MODELS = {"linear": _model(linear_frame_triton), "mlp": _model(mlp_frame_triton), "conv": _model(conv_triton)}


Learned = namedtuple("Learned", "p_start p_gamma p_beta p_forget p_max_norm")
"""Parameters of each head: start [H, P], gamma, beta [H, D], forget and max_norm [H] or None."""


Results = namedtuple("Results", "p_y p_delta p_phase p_before p_after p_checkpoints p_scratch")
"""Outputs and scratch memory of the forward pass."""


Upstream = namedtuple("Upstream", "p_y p_delta p_before p_after")
"""Gradients of the outer loss at what the forward pass gave."""


Gradients = namedtuple("Gradients", "p_q p_k p_v p_eta p_start p_gamma p_beta p_delta p_forget p_max_norm")
"""Gradients that the backward pass gives, those of what heads have of their own cell by cell."""


Room = namedtuple("Room", "p_checkpoints p_slots p_scales p_scratch")
"""Checkpoints [B, H, groups, P]; and what the backward pass works in: the weights after each frame of a group and
one more place, their scales, and tiles of hidden layers."""


FrameGradients = namedtuple("FrameGradients", "p_y p_before p_after p_q p_k p_v p_eta")
"""Of these, what belongs to the tokens of a frame."""


@triton.jit
def _cell(streams, p_eta, i_row, i_head, heads, tokens, n, sq, sk, sv):
    """The first frame of a cell."""
    return Frame(
        streams.p_q + i_row * sq[0] + i_head * sq[2], streams.p_k + i_row * sk[0] + i_head * sk[2],
        streams.p_v + i_row * sv[0] + i_head * sv[2], p_eta + i_row * tokens * heads + i_head,
        sq[1], sk[1], sv[1], heads, n, n,
    )  # fmt: skip


@triton.jit
def _norm(learned, i_head, C):
    at = i_head * C.D + tl.arange(0, C.D)
    return Norm(tl.load(learned.p_gamma + at), tl.load(learned.p_beta + at))


@triton.jit
def _gradients_at(up, down, at, C):
    """Gradients at a frame; at: its first number, where a token of a head has one."""
    return FrameGradients(
        up.p_y + at * C.D, up.p_before + at, up.p_after + at,
        down.p_q + at * C.D, down.p_k + at * C.D, down.p_v + at * C.D, down.p_eta + at,
    )  # fmt: skip


@triton.jit
def _clear(p, stride, first, tokens, C):
    """Zeros for the tokens of a tile beyond a row's length."""
    store_tile(Tile(p, stride, first, tokens), tl.zeros([C.TILE, C.D], tl.float32), C)


@triton.jit
def _clear_scalars(p, stride, first, tokens, C):
    store_scalars(Tile(p, stride, first, tokens), tl.zeros([C.TILE, 1], tl.float32), C)


@triton.jit(**VARYING)
def forward(
    model, streams, learned, results, p_delta, p_eta, p_phase, p_reset, p_lengths,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr,
    KEEP: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """Learn and read every frame of a cell."""
    C: tl.constexpr = Sizes(
        D, P, LAST, TILE, CHUNK, HEIGHT, WIDE, TYPE, PRECISION, LOSS, KEEP, p_reset is not None,
        learned.p_forget is not None, learned.p_max_norm is not None, RESTORE, False,
    )  # fmt: skip
    i_cell = tl.program_id(0).to(tl.int64)
    i_row, i_head = i_cell // heads, i_cell % heads
    cell = _cell(streams, p_eta, i_row, i_head, heads, tokens, n, sq, sk, sv)
    own = i_row * tokens * heads + i_head
    p_y, p_before, p_after = results.p_y + own * D, results.p_before + own, results.p_after + own
    p_start, p_delta, p_end = learned.p_start + i_head * P, p_delta + i_cell * P, results.p_delta + i_cell * P
    p_scratch = results.p_scratch + i_cell * n * D
    norm = _norm(learned, i_head, C)
    settling = settling_of(model, p_start, learned, i_head, C)
    weights = model.begin(p_start, p_delta, p_end, C)
    length = row_length(p_lengths, i_row, tokens)
    seen = tl.cast(0, tl.int32)

    for t in range(0, tl.cdiv(length, n)):
        begin = t * tl.cast(n, tl.int64)
        frame = frame_at(cell, begin, length)
        reset = is_reset(p_reset, i_row * tokens + begin)
        seen = tl.maximum(seen, reset.to(tl.int32))
        p_kept = results.p_checkpoints + (i_cell * kept + t // group) * P
        weights, last_norm = model.learn(
            weights, reset, p_start, p_end, frame, norm, settling, p_before + begin * heads, p_kept, t % group == 0,
            p_scratch, False, C,
        )  # fmt: skip
        for first in range(0, frame.count, TILE):
            at = Tile(frame.p_q, frame.s_q, first, frame.count)
            b_q = load_tile(at, C)
            b_z_hat = standardise(model.apply(weights, b_q, at, C)[0])[0]
            b_y = b_q + norm.b_gamma * b_z_hat + norm.b_beta
            store_tile(Tile(p_y + begin * heads * D, heads * D, first, frame.count), b_y, C)
        if LOSS:
            for first in range(0, frame.count, TILE):
                at = keys_of(frame, first)
                b_k = load_tile(at, C)
                b_z_hat = standardise(model.apply(weights, b_k, at, C)[0])[0]
                b_error = norm.b_gamma * b_z_hat + norm.b_beta - targets(b_k, frame, first, C)
                store_scalars(Tile(p_after + begin * heads, heads, first, frame.count), half_square(b_error), C)
        tl.debug_barrier()
        weights, _scale = model.settle(weights, last_norm, p_start, p_end, settling, True, C)

    model.end(weights, p_start, p_delta, p_end, length > 0, C)
    if p_lengths is not None:
        for first in range(length, tokens, TILE):
            _clear(p_y, heads * D, first, tokens, C)
            if LOSS:
                _clear_scalars(p_before, heads, first, tokens, C)
                _clear_scalars(p_after, heads, first, tokens, C)
    if i_head == 0:
        tl.store(results.p_phase + i_row, tl.where(seen > 0, 0.0, tl.load(p_phase + i_row)))


@triton.jit
def _reads_backward(model, weights, gradient, sums, frame, norm, here, p_scratch, LOSS: tl.constexpr, C):
    """The outputs of a frame's queries (equation 16); with LOSS, the outputs of its keys for the loss after
    learning."""
    p_x, stride_x, p_d_x = (frame.p_k, frame.s_k, here.p_k) if LOSS else (frame.p_q, frame.s_q, here.p_q)
    stride = frame.s_eta * C.D
    b_d_gamma, b_d_beta = sums
    for first in range(0, frame.count, C.TILE):
        at = Tile(p_x, stride_x, first, frame.count)
        b_x = load_tile(at, C)
        if LOSS:
            b_target = targets(b_x, frame, first, C)
        else:
            b_d_read = load_tile(Tile(here.p_y, stride, first, frame.count), C).to(tl.float32)
        b_z, b_hidden = model.apply(weights, b_x, at, C)
        b_z_hat, b_rstd = standardise(b_z)
        if LOSS:
            b_d_read = load_scalars(Tile(here.p_after, frame.s_eta, first, frame.count), C)
            b_d_read *= norm.b_gamma * b_z_hat + norm.b_beta - b_target
            store_tile(Tile(here.p_v, stride, first, frame.count), -b_d_read, C)
        b_d_z = through(norm.b_gamma * b_d_read, b_z_hat, b_rstd)
        b_d_gamma += column_sums(b_d_read * b_z_hat)
        b_d_beta += column_sums(b_d_read)
        at_d_x = Tile(p_d_x, stride, first, frame.count)
        gradient = model.apply_backward(weights, gradient, b_x, at, b_hidden, b_d_z, b_d_read, at_d_x, p_scratch, C)
    tl.debug_barrier()
    gradient = model.close_reads(weights, gradient, frame, p_x, stride_x, p_d_x, stride, p_scratch, C)
    return gradient, (b_d_gamma, b_d_beta)


@triton.jit
def _step_backward(model, weights, e, gradient, sums, frame, norm, here, p_scratch, C):
    """The backward pass of the step that a frame's keys made (equations 17 to 20)."""
    stride = frame.s_eta * C.D
    b_d_gamma, b_d_beta = sums
    for first in range(0, frame.count, C.TILE):
        at = keys_of(frame, first)
        b_k = load_tile(at, C)
        b_target, b_rate = targets(b_k, frame, first, C), rates(frame, first, C)
        b_z, hidden = model.step(weights, e, b_k, at, frame, C)
        b_error, b_u, b_g, b_z_hat, b_rstd = loss_terms(b_z, b_target, b_rate, norm)
        b_d_g = model.step_gradient(e, b_k, hidden, C)
        b_d_u, b_d_z = gradient_backward(b_d_g, b_g, b_u, b_rate * norm.b_gamma * norm.b_gamma, b_z_hat, b_rstd)
        b_d_eta = tl.sum(b_d_u * norm.b_gamma * b_error, 1, keep_dims=True)
        store_scalars(Tile(here.p_eta, frame.s_eta, first, frame.count), b_d_eta, C)
        b_d_error = b_rate * norm.b_gamma * b_d_u
        b_d_gamma += column_sums(b_rate * b_d_u * (b_error + norm.b_gamma * b_z_hat))
        if C.LOSS:
            b_d_before = load_scalars(Tile(here.p_before, frame.s_eta, first, frame.count), C) * b_error
            b_d_gamma += column_sums(b_d_before * b_z_hat)
            b_d_z += through(norm.b_gamma * b_d_before, b_z_hat, b_rstd)
            b_d_error += b_d_before
        b_d_beta += column_sums(b_d_error)
        at_d_k = Tile(here.p_k, stride, first, frame.count)
        at_d_v = Tile(here.p_v, stride, first, frame.count)
        b_d_k, b_d_v = b_d_error, -b_d_error
        if C.LOSS:
            b_d_k += load_tile(at_d_k, C)
            b_d_v += load_tile(at_d_v, C)
        store_tile(at_d_v, b_d_v, C)
        gradient = model.step_backward(
            weights, e, gradient, b_k, at, hidden, b_g, b_d_z, b_d_k, at_d_k, p_scratch, frame, C
        )
    tl.debug_barrier()
    return gradient, (b_d_gamma, b_d_beta)


@triton.jit(**VARYING)
def backward(
    model, streams, learned, up, down, room, p_eta, p_reset, p_lengths, heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr,
    RESTORE: tl.constexpr,
):  # fmt: skip
    """From the last frame of a cell to the first: the weights of a group of frames are computed again from its
    checkpoint, then the group is walked in reverse."""
    C: tl.constexpr = Sizes(
        D, P, LAST, TILE, CHUNK, HEIGHT, WIDE, TYPE, PRECISION, LOSS, False, p_reset is not None,
        learned.p_forget is not None, learned.p_max_norm is not None, RESTORE, True,
    )  # fmt: skip
    i_cell = tl.program_id(0).to(tl.int64)
    i_row, i_head = i_cell // heads, i_cell % heads
    cell = _cell(streams, p_eta, i_row, i_head, heads, tokens, n, sq, sk, sv)
    own = i_row * tokens * heads + i_head
    p_start, p_d_start, p_d_weights = learned.p_start + i_head * P, down.p_start + i_cell * P, down.p_delta + i_cell * P
    p_slots = room.p_slots + i_cell * (group + 1) * P
    p_spare, p_scales = p_slots + group * P, room.p_scales + i_cell * group
    p_scratch = room.p_scratch + 2 * i_cell * n * D
    norm = _norm(learned, i_head, C)
    settling = settling_of(model, p_start, learned, i_head, C)
    sums = (tl.zeros([D], tl.float32), tl.zeros([D], tl.float32))
    d_forget, d_limit = tl.cast(0.0, tl.float32), tl.cast(0.0, tl.float32)
    length = row_length(p_lengths, i_row, tokens)
    frames = tl.cdiv(length, n)
    gradient = model.begin_gradients(up.p_delta + i_cell * P, p_d_weights, p_d_start, C)

    for index in range(0, tl.cdiv(frames, group)):
        earliest = (tl.cdiv(frames, group) - 1 - index) * group
        p_checkpoint = room.p_checkpoints + (i_cell * kept + earliest // group) * P
        held = tl.minimum(frames - earliest, group)
        weights = model.load(p_checkpoint, C)
        for i in range(0, held):
            begin = (earliest + i) * tl.cast(n, tl.int64)
            weights, last_norm = model.learn(
                weights, is_reset(p_reset, i_row * tokens + begin), p_start, p_slots + i * P,
                frame_at(cell, begin, length), norm, settling, p_scales, p_checkpoint, False, p_scratch, True, C,
            )  # fmt: skip
            weights, scale = model.settle(weights, last_norm, p_start, p_spare, settling, i + 1 < held, C)
            tl.store(p_scales + i, scale)
        tl.debug_barrier()

        for i in range(0, held):
            slot = held - 1 - i
            begin = (earliest + slot) * tl.cast(n, tl.int64)
            frame, here = frame_at(cell, begin, length), _gradients_at(up, down, own + begin * heads, C)
            after = model.load(p_slots + slot * P, C)
            gradient, more_forget, more_limit = model.settle_backward(
                after, gradient, p_start, p_d_start, tl.load(p_scales + slot), settling, C
            )
            d_forget += more_forget
            d_limit += more_limit
            after, inside = model.open_reads(after, gradient, C)
            inside, sums = _reads_backward(model, after, inside, sums, frame, norm, here, p_scratch, False, C)
            if LOSS:
                inside, sums = _reads_backward(model, after, inside, sums, frame, norm, here, p_scratch, True, C)
            reset = is_reset(p_reset, i_row * tokens + begin)
            p_before = weights_before(
                p_checkpoint, p_slots, p_scales, p_spare, p_start, reset, slot, settling, C
            )  # fmt: skip
            before, e, inside = model.open_step(inside, p_before, frame, C)
            inside, sums = _step_backward(model, before, e, inside, sums, frame, norm, here, p_scratch, C)
            gradient = model.close_step(before, e, inside, reset, p_d_start, frame, here.p_k, p_scratch, C)
            tl.debug_barrier()

    pull = 0.0
    if C.MAX_NORM:
        pull, d_max_norm = limit_backward(model, p_start, learned, i_head, d_limit, C)
        tl.store(down.p_max_norm + i_cell, d_max_norm)
    model.end_gradients(gradient, pull, p_start, p_d_weights, p_d_start, C)
    if C.FORGET:
        tl.store(down.p_forget + i_cell, d_forget)
    columns = i_cell * D + tl.arange(0, D)
    tl.store(down.p_gamma + columns, sums[0])
    tl.store(down.p_beta + columns, sums[1])
    if p_lengths is not None:
        here = _gradients_at(up, down, own, C)
        for first in range(length, tokens, TILE):
            _clear(here.p_q, heads * D, first, tokens, C)
            _clear(here.p_k, heads * D, first, tokens, C)
            _clear(here.p_v, heads * D, first, tokens, C)
            _clear_scalars(here.p_eta, heads, first, tokens, C)
