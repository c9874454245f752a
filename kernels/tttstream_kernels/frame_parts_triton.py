"""Shared by the frame kernels: tiles of tokens, and the begin and end of a frame (README, equations 10 and 15).

One program runs one head of one row, so nothing here knows of another row or head. Tokens of a tile beyond the frame
are zeros with a learning rate of zero, and what is computed for them is not stored. Pointers begin with p_, tiles in
registers with b_. The functions on weights in memory see the P weights of a cell as one list of numbers, of which the
last layer begins at LAST.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections import namedtuple

import triton
import triton.language as tl

from tttstream_kernels.norm_triton import standardise, through
from tttstream_kernels.token_parts_triton import everything

CHUNK_OF_ALL = tl.constexpr(1024)
"""Weights that a pass over all of them processes at once."""


Sizes = namedtuple(
    "Sizes",
    "D P LAST TILE CHUNK HEIGHT WIDE TYPE PRECISION LOSS KEEP RESET FORGET MAX_NORM RESTORE BACKWARD",
)
"""Constants at compile time. D: width of a head; P: weights of a cell, LAST: where its last layer begins; TILE: tokens
of a tile; CHUNK: hidden units of a chunk (mlp); HEIGHT, WIDE: of the picture (conv); TYPE, PRECISION: of products;
LOSS: whether losses are wanted; KEEP: whether checkpoints are; RESET, FORGET, MAX_NORM: whether there are resets,
forgetting and a limit of the norm; RESTORE: whether the norm is put back to the limit; BACKWARD: whether this is the
backward pass."""


Tile = namedtuple("Tile", "p stride first count")
"""Addresses of the tokens of a tile: from `first` on of a frame of `count` that begins at `p`, `stride` apart."""


Frame = namedtuple("Frame", "p_q p_k p_v p_eta s_q s_k s_v s_eta count size")
"""Pointers to the queries, keys, values and rates of a frame, the strides from token to token, how many of its tokens
count, and how many a frame has."""


Norm = namedtuple("Norm", "b_gamma b_beta")
"""Scale and shift of the layer normalisation, [D]."""


Settling = namedtuple("Settling", "share limit")
"""The share of the weights that is forgotten after each frame, and the limit of the last layer's norm."""


@triton.jit
def frame_at(cell, begin, length):
    """The frame whose first token is `begin`, of a row of `length` tokens; cell: the row's first frame."""
    count = tl.minimum(length - begin, cell.size)
    return Frame(
        cell.p_q + begin * cell.s_q, cell.p_k + begin * cell.s_k, cell.p_v + begin * cell.s_v,
        cell.p_eta + begin * cell.s_eta, cell.s_q, cell.s_k, cell.s_v, cell.s_eta, count, cell.size,
    )  # fmt: skip


@triton.jit
def keys_of(frame, first):
    """The addresses of a tile of keys."""
    return Tile(frame.p_k, frame.s_k, first, frame.count)


@triton.jit
def load_tile(at, C):
    """The tokens of a tile [TILE, D], zeros beyond the frame."""
    token = at.first + tl.arange(0, C.TILE)
    offsets = token.to(tl.int64)[:, None] * at.stride + tl.arange(0, C.D)[None, :]
    return tl.load(at.p + offsets, mask=(token < at.count)[:, None], other=0.0)


@triton.jit
def store_tile(at, b_x, C):
    """Store what `load_tile` loads."""
    token = at.first + tl.arange(0, C.TILE)
    offsets = token.to(tl.int64)[:, None] * at.stride + tl.arange(0, C.D)[None, :]
    tl.store(at.p + offsets, b_x.to(at.p.dtype.element_ty), mask=(token < at.count)[:, None])


@triton.jit
def load_scalars(at, C):
    """One number a token [TILE, 1], zeros beyond the frame."""
    token = (at.first + tl.arange(0, C.TILE))[:, None]
    return tl.load(at.p + token.to(tl.int64) * at.stride, mask=token < at.count, other=0.0).to(tl.float32)


@triton.jit
def store_scalars(at, b_x, C):
    """Store what `load_scalars` loads."""
    token = (at.first + tl.arange(0, C.TILE))[:, None]
    tl.store(at.p + token.to(tl.int64) * at.stride, b_x.to(at.p.dtype.element_ty), mask=token < at.count)


@triton.jit
def targets(b_k, frame, first, C):
    """The targets of the keys of a tile, v - k, in float32."""
    return load_tile(Tile(frame.p_v, frame.s_v, first, frame.count), C).to(tl.float32) - b_k.to(tl.float32)


@triton.jit
def rates(frame, first, C):
    """Learning rates of a tile of tokens, [TILE, 1]."""
    return load_scalars(Tile(frame.p_eta, frame.s_eta, first, frame.count), C)


@triton.jit
def operand(b_w, p, C):
    """A matrix of weights as an operand of one product. For heads wider than 64 it is loaded again for each product,
    volatile so that the compiler keeps the loads apart: kept, it would take up to 128 KB of shared memory."""
    if C.D > 64:
        return tl.load(p, volatile=True)
    return b_w


@triton.jit
def column_sums(b_x):
    """[TILE, WIDTH] -> [WIDTH]."""
    return tl.sum(b_x, axis=0)


@triton.jit
def half_square(b_error):
    """1/2 |error|^2 of every token, [TILE, 1]."""
    return 0.5 * tl.sum(b_error * b_error, axis=1, keep_dims=True)


@triton.jit
def loss_terms(b_z, b_target, b_rate, norm):
    """Equations 1 to 3 for a tile of keys: the error of LN(z), u, the step J u, z^ and 1 / s."""
    b_z_hat, b_rstd = standardise(b_z)
    b_error = norm.b_gamma * b_z_hat + norm.b_beta - b_target
    b_u = b_rate * norm.b_gamma * b_error
    return b_error, b_u, through(b_u, b_z_hat, b_rstd), b_z_hat, b_rstd


@triton.jit
def row_length(p_lengths, row, tokens):
    """How many tokens of the row count."""
    if p_lengths is not None:
        return tl.minimum(tl.load(p_lengths + row).to(tl.int64), tokens)
    return tl.cast(tokens, tl.int64)


@triton.jit
def is_reset(p_reset, at):
    """Whether the memory is reset before the frame whose first token is at this place."""
    if p_reset is not None:
        return tl.load(p_reset + at)
    return tl.cast(0, tl.int1)


@triton.jit
def settling_of(model, p_start, learned, head, C):
    """The share that is forgotten, and the limit of the norm: under RESTORE the norm that the last layer must have,
    otherwise the largest it may be, its norm at the learned start or `max_norm` if that is more."""
    share, limit = 0.0, 0.0
    if C.FORGET:
        share = tl.load(learned.p_forget + head)
    if C.MAX_NORM:
        limit = tl.load(learned.p_max_norm + head)
        if not C.RESTORE:
            limit = tl.maximum(model.last_norm(p_start, C), limit)
    return Settling(share, limit)


@triton.jit
def norm_scale(norm, limit, C):
    """The factor that brings a last layer of this norm to the limit."""
    if C.RESTORE:
        return limit / norm
    return tl.minimum(limit / norm, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where_scaled(scale, x, C):
    """x where the limit changed the norm, else 0."""
    if C.RESTORE:
        return x
    return tl.where(scale < 1.0, x, 0.0)


@triton.jit
def last_norm_in_memory(p_weights, C):
    """Joint norm of the last layer's (W, b)."""
    squares = tl.zeros([CHUNK_OF_ALL], tl.float32)
    for first in range(C.LAST, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_w = tl.load(p_weights + at, mask=at < C.P, other=0.0)
        squares += b_w * b_w
    return tl.sqrt(tl.sum(squares, axis=0))


@triton.jit
def load_in_memory(p_weights, C):
    """Weights that stay in memory: only their pointer."""
    return (p_weights,)


@triton.jit
def begin_in_memory(p_start, p_delta, p_weights, C):
    """The weights with which a call begins, start + delta, at `p_weights`."""
    for first in range(0, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_w = tl.load(p_start + at, mask=at < C.P) + tl.load(p_delta + at, mask=at < C.P)
        tl.store(p_weights + at, b_w, mask=at < C.P)
    tl.debug_barrier()
    return (p_weights,)


@triton.jit
def _settle(p_from, p_to, p_start, scale, settling, C):
    for first in range(0, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_w = tl.load(p_from + at, mask=at < C.P)
        if C.FORGET:
            b_w += settling.share * (tl.load(p_start + at, mask=at < C.P) - b_w)
        if C.MAX_NORM:
            b_w *= tl.where(at >= C.LAST, scale, 1.0)
        tl.store(p_to + at, b_w, mask=at < C.P)
    tl.debug_barrier()


@triton.jit
def settle_in_memory(weights, norm, p_start, p_to, settling, used, C):
    """Settle the weights right after a step: forget a share, and scale the last layer, whose norm is `norm`. The result
    stands at `p_to`, if it is `used`. Returns it and the scale."""
    scale = norm_scale(norm, settling.limit, C) if C.MAX_NORM else 1.0
    if C.FORGET or C.MAX_NORM:
        if used:
            _settle(weights[0], p_to, p_start, scale, settling, C)
        return (p_to,), scale
    return weights, scale


@triton.jit
def end_in_memory(weights, p_start, p_delta, p_end, learned, C):
    """Leave the difference from the start in the weights' place; where no frame was `learned`, what came in."""
    for first in range(0, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_w = tl.load(p_end + at, mask=at < C.P) - tl.load(p_start + at, mask=at < C.P)
        tl.store(p_end + at, tl.where(learned, b_w, tl.load(p_delta + at, mask=at < C.P)), mask=at < C.P)


@triton.jit
def weights_before(p_checkpoint, p_slots, p_scales, p_spare, p_start, reset, slot, settling, C):
    """The address of the weights with which a frame of a group began: at the checkpoint before the group, at the
    learned start after a reset, otherwise what the frame before left in its slot, which is settled at `p_spare`."""
    p_last = p_slots + (slot - 1) * C.P
    if C.FORGET or C.MAX_NORM:
        if slot > 0:
            _settle(p_last, p_spare, p_start, tl.load(p_scales + slot - 1), settling, C)
        p_last = p_spare
    return tl.where(reset, p_start, tl.where(slot == 0, p_checkpoint, p_last))


@triton.jit
def begin_gradients_in_memory(p_d_end, p_d_weights, p_d_start, C):
    """The gradient at the weights after the last frame; the state is their difference from the start."""
    for first in range(0, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_d_w = tl.load(p_d_end + at, mask=at < C.P)
        tl.store(p_d_weights + at, b_d_w, mask=at < C.P)
        tl.store(p_d_start + at, -b_d_w, mask=at < C.P)
    tl.debug_barrier()
    return (p_d_weights,)


@triton.jit
def settle_backward_in_memory(weights, gradient, p_start, p_d_start, scale, settling, C):
    """Take the gradient at settled weights to those right after the step, `weights` (equation 15). Returns it and the
    gradients of the share that is forgotten and of the limit."""
    p_weights, p_d_weights = weights[0], gradient[0]
    share, limit = settling.share, settling.limit
    d_share, d_limit, ratio = tl.zeros([CHUNK_OF_ALL], tl.float32), 0.0, 0.0
    if C.MAX_NORM:
        products = tl.zeros([CHUNK_OF_ALL], tl.float32)
        for first in range(C.LAST, C.P, CHUNK_OF_ALL):
            at = first + tl.arange(0, CHUNK_OF_ALL)
            b_w = tl.load(p_weights + at, mask=at < C.P, other=0.0)
            if C.FORGET:
                b_w += share * (tl.load(p_start + at, mask=at < C.P, other=0.0) - b_w)
            products += b_w * tl.load(p_d_weights + at, mask=at < C.P, other=0.0)
        along = scale * tl.sum(products, axis=0)
        ratio = where_scaled(scale, scale * along / (limit * limit), C)
        d_limit = where_scaled(scale, along / limit, C)
        tl.debug_barrier()
    if C.FORGET or C.MAX_NORM:
        for first in range(0, C.P, CHUNK_OF_ALL):
            at = first + tl.arange(0, CHUNK_OF_ALL)
            b_w = tl.load(p_weights + at, mask=at < C.P, other=0.0)
            b_d_w = tl.load(p_d_weights + at, mask=at < C.P, other=0.0)
            b_away = tl.load(p_start + at, mask=at < C.P, other=0.0) - b_w
            if C.MAX_NORM:
                b_forgotten = b_w + share * b_away if C.FORGET else b_w
                b_d_w = tl.where(at >= C.LAST, scale * (b_d_w - ratio * b_forgotten), b_d_w)
            if C.FORGET:
                d_share += b_d_w * b_away
                b_more = tl.load(p_d_start + at, mask=at < C.P) + share * b_d_w
                tl.store(p_d_start + at, b_more, mask=at < C.P)
                b_d_w *= 1.0 - share
            tl.store(p_d_weights + at, b_d_w, mask=at < C.P)
        tl.debug_barrier()
    return gradient, tl.sum(d_share, axis=0), d_limit


@triton.jit
def limit_backward(model, p_start, learned, head, d_limit, C):
    """The gradient of the limit of the norm: its part in the gradient of the learned start, as a factor of the start's
    last layer, and the gradient of `max_norm`."""
    if C.RESTORE:
        return 0.0, d_limit
    own, max_norm = model.last_norm(p_start, C), tl.load(learned.p_max_norm + head)
    return tl.where(own > max_norm, d_limit, 0.0) / own, tl.where(own > max_norm, 0.0, d_limit)


@triton.jit
def end_gradients_in_memory(gradient, pull, p_start, p_d_weights, p_d_start, C):
    """Add to the gradient of the start that of the weights with which the call began, and `pull` times the start's last
    layer."""
    tl.debug_barrier()
    for first in range(0, C.P, CHUNK_OF_ALL):
        at = first + tl.arange(0, CHUNK_OF_ALL)
        b_d_w = tl.load(p_d_start + at, mask=at < C.P) + tl.load(p_d_weights + at, mask=at < C.P)
        if C.MAX_NORM:
            b_d_w += tl.where(at >= C.LAST, pull, 0.0) * tl.load(p_start + at, mask=at < C.P)
        tl.store(p_d_start + at, b_d_w, mask=at < C.P)


@triton.jit
def add_at_reset(p_d_start, b_d, reset, mask=None):
    """The gradient that continues to before a frame: zero where the memory is reset there, because it goes to the
    learned start."""
    tl.store(p_d_start, tl.load(p_d_start, mask=mask) + tl.where(reset, b_d, 0.0), mask=mask)
    return tl.where(reset, 0.0, b_d)


@triton.jit
def sum_of_squares(b_w, b_bias):
    """Squared joint norm of a layer (W, b)."""
    return everything(b_w * b_w) + tl.sum(b_bias * b_bias, axis=0)
