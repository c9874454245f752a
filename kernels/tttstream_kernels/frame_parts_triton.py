"""What the frame kernels share: tiles of tokens, products, and the two ends of a frame (README, equations 10 and 15).

One program is one cell, so nothing here knows of another row or head. Tokens of a tile beyond their frame are zeros
with a rate of zero: they teach nothing, and what they read is not stored. Functions that take LAST and P work on the
weights of a cell as they lie in memory, P numbers of which the last layer begins at LAST.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.norm_triton import standardise, through

BLOCK = tl.constexpr(1024)
"""Numbers that a pass over all weights takes at once."""


@triton.jit
def places(stride, first, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Offsets of the tokens of a tile, [TILE, WIDTH]."""
    return (first + tl.arange(0, TILE)).to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]


@triton.jit
def tile(base, stride, first, count, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """TILE tokens from `first` on of a frame that holds `count`, [TILE, WIDTH], zeros beyond it."""
    inside = (first + tl.arange(0, TILE) < count)[:, None]
    return tl.load(base + places(stride, first, WIDTH, TILE), mask=inside, other=0.0)


@triton.jit
def put(base, stride, first, count, x, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """Store what `tile` would load."""
    inside = (first + tl.arange(0, TILE) < count)[:, None]
    tl.store(base + places(stride, first, WIDTH, TILE), x.to(base.dtype.element_ty), mask=inside)


@triton.jit
def numbers(base, stride, first, count, TILE: tl.constexpr):
    """One number a token, [TILE, 1], zeros beyond the frame."""
    token = (first + tl.arange(0, TILE))[:, None]
    return tl.load(base + token.to(tl.int64) * stride, mask=token < count, other=0.0).to(tl.float32)


@triton.jit
def put_numbers(base, stride, first, count, x, TILE: tl.constexpr):
    """Store what `numbers` would load."""
    token = (first + tl.arange(0, TILE))[:, None]
    tl.store(base + token.to(tl.int64) * stride, x.to(base.dtype.element_ty), mask=token < count)


@triton.jit
def again(w, at, D: tl.constexpr):
    """A matrix of weights as the operand of one product. Of heads 128 wide it is fetched for each, as volatile so that
    the compiler keeps the fetches apart: as an operand that stays it takes up to 128 KB of shared memory."""
    if D > 64:
        return tl.load(at, volatile=True)
    return w


@triton.jit
def total(x):
    """Sum of the columns of a tile: [TILE, WIDTH] -> [WIDTH]."""
    return tl.sum(x, axis=0)


@triton.jit
def half_square(error):
    """1/2 |error|^2 of every token, [TILE, 1]."""
    return 0.5 * tl.sum(error * error, axis=1, keep_dims=True)


@triton.jit
def taught(z, target, rate, gamma, beta):
    """What keys teach (equations 1 to 3): the error of LN(z), u, the step J u, z^ and 1 / s."""
    z_hat, rstd = standardise(z)
    error = gamma * z_hat + beta - target
    u = rate * gamma * error
    return error, u, through(u, z_hat, rstd), z_hat, rstd


@triton.jit
def counted(lengths, row, tokens):
    """How many tokens of the row count."""
    if lengths is not None:
        return tl.minimum(tl.load(lengths + row).to(tl.int64), tokens)
    return tl.cast(tokens, tl.int64)


@triton.jit
def starts_anew(reset, at):
    """Whether the frame whose first token is at this place forgets all that came before."""
    if reset is not None:
        return tl.load(reset + at)
    return tl.cast(0, tl.int1)


@triton.jit
def limit_of(own, longest, RESTORE: tl.constexpr):
    """How long a last layer may be (must be, under RESTORE) that is `own` long at the learned start."""
    if RESTORE:
        return longest
    return tl.maximum(own, longest)


@triton.jit
def cut(length, limit, RESTORE: tl.constexpr):
    """What a last layer of this length is multiplied by."""
    if RESTORE:
        return limit / length
    return tl.minimum(limit / length, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where_cut(scale, x, RESTORE: tl.constexpr):
    """x where the norm cut had something to do, else 0."""
    if RESTORE:
        return x
    return tl.where(scale < 1.0, x, 0.0)


@triton.jit
def limit_backward(own, longest, d_limit, RESTORE: tl.constexpr):
    """Backward pass of `limit_of`: what (own, longest) get."""
    if RESTORE:
        return 0.0 * own, d_limit
    return tl.where(own > longest, d_limit, 0.0), tl.where(own > longest, 0.0, d_limit)


@triton.jit
def length_of_last(weights, LAST: tl.constexpr, P: tl.constexpr):
    """Joint norm of the last layer's (W, b)."""
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(LAST, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        w = tl.load(weights + at, mask=at < P, other=0.0)
        squares += w * w
    return tl.sqrt(tl.sum(squares, axis=0))


@triton.jit
def begin_weights(start, delta, weights, P: tl.constexpr):
    """The weights with which a call begins."""
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        w = tl.load(start + at, mask=at < P) + tl.load(delta + at, mask=at < P)
        tl.store(weights + at, w, mask=at < P)
    tl.debug_barrier()


@triton.jit
def settle(
    weights, start, to, share, scale,
    FORGET: tl.constexpr, LONGEST: tl.constexpr, LAST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Weights right after a step, drawn to the learned start by `share`, and the last layer times `scale`."""
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        w = tl.load(weights + at, mask=at < P)
        if FORGET:
            w += share * (tl.load(start + at, mask=at < P) - w)
        if LONGEST:
            w *= tl.where(at >= LAST, scale, 1.0)
        tl.store(to + at, w, mask=at < P)
    tl.debug_barrier()


@triton.jit
def end_weights(start, delta, weights, learned, P: tl.constexpr):
    """Leave the weights' difference from the start in their place; what came in where no frame was `learned`."""
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        w = tl.load(weights + at, mask=at < P) - tl.load(start + at, mask=at < P)
        tl.store(weights + at, tl.where(learned, w, tl.load(delta + at, mask=at < P)), mask=at < P)


@triton.jit
def found(
    checkpoint, slots, scales, spare, start, anew, slot, share,
    FORGET: tl.constexpr, LONGEST: tl.constexpr, LAST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Where the weights stand that a frame of a group found: at the checkpoint before the group, at the learned start
    after a reset, else what the frame before left in its slot, which is settled at `spare`."""
    last = slots + (slot - 1) * P
    if FORGET or LONGEST:
        if slot > 0:
            settle(last, start, spare, share, tl.load(scales + slot - 1), FORGET, LONGEST, LAST, P)
        last = spare
    return tl.where(anew, start, tl.where(slot == 0, checkpoint, last))


@triton.jit
def begin_gradients(d_new, d_weights, d_start, P: tl.constexpr):
    """The gradient at the weights after the last frame; the state is their difference from the start."""
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        d_w = tl.load(d_new + at, mask=at < P)
        tl.store(d_weights + at, d_w, mask=at < P)
        tl.store(d_start + at, -d_w, mask=at < P)
    tl.debug_barrier()


@triton.jit
def settle_backward(
    weights, start, d_weights, d_start, share, scale, limit,
    FORGET: tl.constexpr, LONGEST: tl.constexpr, RESTORE: tl.constexpr, LAST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Take the gradient at settled weights to those right after the step, `weights` (equation 15). Returns the
    gradients of the share that is forgotten and of the limit."""
    d_share, d_limit, ratio = tl.zeros([BLOCK], tl.float32), 0.0, 0.0
    if LONGEST:
        products = tl.zeros([BLOCK], tl.float32)
        for first in range(LAST, P, BLOCK):
            at = first + tl.arange(0, BLOCK)
            w = tl.load(weights + at, mask=at < P, other=0.0)
            if FORGET:
                w += share * (tl.load(start + at, mask=at < P, other=0.0) - w)
            products += w * tl.load(d_weights + at, mask=at < P, other=0.0)
        along = scale * tl.sum(products, axis=0)
        ratio = where_cut(scale, scale * along / (limit * limit), RESTORE)
        d_limit = where_cut(scale, along / limit, RESTORE)
        tl.debug_barrier()
    if FORGET or LONGEST:
        for first in range(0, P, BLOCK):
            at = first + tl.arange(0, BLOCK)
            w = tl.load(weights + at, mask=at < P, other=0.0)
            d_w = tl.load(d_weights + at, mask=at < P, other=0.0)
            away = tl.load(start + at, mask=at < P, other=0.0) - w
            if LONGEST:
                behind = w + share * away if FORGET else w
                d_w = tl.where(at >= LAST, scale * (d_w - ratio * behind), d_w)
            if FORGET:
                d_share += d_w * away
                more = tl.load(d_start + at, mask=at < P) + share * d_w
                tl.store(d_start + at, more, mask=at < P)
                d_w *= 1.0 - share
            tl.store(d_weights + at, d_w, mask=at < P)
        tl.debug_barrier()
    return tl.sum(d_share, axis=0), d_limit


@triton.jit
def end_gradients(
    start, d_weights, d_start, longest, d_limit,
    LONGEST: tl.constexpr, RESTORE: tl.constexpr, LAST: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Add to the gradient of the start what the weights got with which the call began, and what its own norm got as
    the limit; returns the gradient of `longest`."""
    pull, d_longest = 0.0, 0.0
    if LONGEST:
        own = length_of_last(start, LAST, P)
        d_own, d_longest = limit_backward(own, longest, d_limit, RESTORE)
        pull = d_own / own
    tl.debug_barrier()
    for first in range(0, P, BLOCK):
        at = first + tl.arange(0, BLOCK)
        d_w = tl.load(d_start + at, mask=at < P) + tl.load(d_weights + at, mask=at < P)
        if LONGEST:
            d_w += tl.where(at >= LAST, pull, 0.0) * tl.load(start + at, mask=at < P)
        tl.store(d_start + at, d_w, mask=at < P)
    return d_longest


@triton.jit
def nothing_read(y, before, after, heads, length, tokens, D: tl.constexpr, TILE: tl.constexpr, LOSS: tl.constexpr):
    """Zeros for the tokens beyond a row's length."""
    for first in range(length, tokens, TILE):
        put(y, heads * D, first, tokens, tl.zeros([TILE, D], tl.float32), D, TILE)
        if LOSS:
            put_numbers(before, heads, first, tokens, tl.zeros([TILE, 1], tl.float32), TILE)
            put_numbers(after, heads, first, tokens, tl.zeros([TILE, 1], tl.float32), TILE)


@triton.jit
def nothing_learned(d_q, d_k, d_v, d_eta, heads, length, tokens, D: tl.constexpr, TILE: tl.constexpr):
    """Zeros for the gradients of the tokens beyond a row's length."""
    for first in range(length, tokens, TILE):
        nothing = tl.zeros([TILE, D], tl.float32)
        put(d_q, heads * D, first, tokens, nothing, D, TILE)
        put(d_k, heads * D, first, tokens, nothing, D, TILE)
        put(d_v, heads * D, first, tokens, nothing, D, TILE)
        put_numbers(d_eta, heads, first, tokens, tl.zeros([TILE, 1], tl.float32), TILE)
