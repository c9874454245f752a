"""The MLP in frame mode (README, equation 10).

One program a cell. Its 8 D^2 weights do not fit into registers: they lie in global memory, where the second-level cache
holds them, and are taken CHUNK hidden units at a time.
`frame_triton` says what the arguments are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.frame_parts_triton import (
    begin_weights,
    counted,
    cut,
    end_weights,
    half_square,
    length_of_last,
    limit_of,
    nothing_read,
    numbers,
    put,
    put_numbers,
    settle,
    starts_anew,
    taught,
    tile,
    total,
)
from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import gelu, gelu_slope, standardise
from tttstream_kernels.token_parts_triton import everything, product


@triton.jit
def first_layer(c, D: tl.constexpr, CHUNK: tl.constexpr):
    """Offsets of hidden units c .. c + CHUNK - 1 in the first layer: (W1 [D, CHUNK], b1 [CHUNK])."""
    columns = c + tl.arange(0, CHUNK)
    return tl.arange(0, D)[:, None] * (4 * D) + columns[None, :], 4 * D * D + columns


@triton.jit
def last_layer(c, D: tl.constexpr, CHUNK: tl.constexpr):
    """Offsets of the same in the last layer: W2 [CHUNK, D]."""
    return 4 * D * D + 4 * D + (c + tl.arange(0, CHUNK))[:, None] * D + tl.arange(0, D)[None, :]


@triton.jit
def last_bias(D: tl.constexpr):
    """Offsets of b2 [D]."""
    return 8 * D * D + 4 * D + tl.arange(0, D)


@triton.jit
def see(x, weights, D: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """g(x) of a tile of tokens."""
    z = tl.zeros([x.shape[0], D], tl.float32) + tl.load(weights + last_bias(D))
    for c in range(0, 4 * D, CHUNK):
        at, bias = first_layer(c, D, CHUNK)
        hidden = gelu(product(x, tl.load(weights + at), TYPE, PRECISION) + tl.load(weights + bias))
        z += product(hidden, tl.load(weights + last_layer(c, D, CHUNK)), TYPE, PRECISION)
    return z


@triton.jit
def learn(
    source, to, keep, checkpoint, steps, k, v, eta, before, sk, sv, heads, start, gamma, beta,
    forget, count, n,
    D: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
    LOSS: tl.constexpr, KEEP: tl.constexpr, FORGET: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """Take the step of a frame (equation 10) from the weights at `source` to those at `to`; returns the norm that their
    last layer has after forgetting. `checkpoint` gets the weights before the step if `keep`."""
    at_b = last_bias(D)
    b_2 = tl.load(source + at_b)
    d_b_2 = tl.zeros([D], tl.float32)
    for first in range(0, count, TILE):
        x = tile(k, sk, first, count, D, TILE)
        target = tile(v, sv, first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
        rate = numbers(eta, heads, first, count, TILE)
        z = see(x, source, D, CHUNK, TYPE, PRECISION)
        error, _, g, _, _ = taught(z, target, rate, gamma, beta)
        if LOSS:
            put_numbers(before, heads, first, count, half_square(error), TILE)
        put(steps, D, first, count, g, D, TILE)
        d_b_2 += total(g)
    tl.debug_barrier()
    if KEEP:
        tl.store(checkpoint + at_b, b_2, mask=keep)
    b_2 -= d_b_2 / n
    tl.store(to + at_b, b_2)
    squares = 0.0
    if LONGEST:
        if FORGET:
            b_2 += forget * (tl.load(start + at_b) - b_2)
        squares = tl.sum(b_2 * b_2, axis=0)
    for c in range(0, 4 * D, CHUNK):
        at, bias = first_layer(c, D, CHUNK)
        at_2 = last_layer(c, D, CHUNK)
        w, b = tl.load(source + at), tl.load(source + bias)
        w_2 = tl.load(source + at_2)
        if KEEP:
            tl.store(checkpoint + at, w, mask=keep)
            tl.store(checkpoint + bias, b, mask=keep)
            tl.store(checkpoint + at_2, w_2, mask=keep)
        d_w, d_b = tl.zeros([D, CHUNK], tl.float32), tl.zeros([CHUNK], tl.float32)
        d_w_2 = tl.zeros([CHUNK, D], tl.float32)
        for first in range(0, count, TILE):
            x = tile(k, sk, first, count, D, TILE)
            g = tile(steps, D, first, count, D, TILE)
            z = product(x, w, TYPE, PRECISION) + b
            d_w_2 += product(tl.trans(gelu(z)), g, TYPE, PRECISION)
            back = product(g, tl.trans(w_2), TYPE, PRECISION) * gelu_slope(z)
            d_w += product(tl.trans(x), back, TYPE, PRECISION)
            d_b += total(back)
        tl.debug_barrier()  # several threads hold each number of the bias
        tl.store(to + at, w - d_w / n)
        tl.store(to + bias, b - d_b / n)
        w_2 -= d_w_2 / n
        tl.store(to + at_2, w_2)
        if LONGEST:
            if FORGET:
                w_2 += forget * (tl.load(start + at_2) - w_2)
            squares += everything(w_2 * w_2)
    tl.debug_barrier()
    return tl.sqrt(squares) if LONGEST else 0.0


@triton.jit(**VARYING)
def forward(
    q, k, v, eta, start, gamma, beta, delta, phase, forget, longest, reset, lengths,
    y, new_delta, new_phase, before, after, checkpoints, scratch,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
    LOSS: tl.constexpr, KEEP: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """Learn and read every frame of a cell; its weights stand in `new_delta` until the end."""
    FORGET: tl.constexpr = forget is not None
    LONGEST: tl.constexpr = longest is not None
    P: tl.constexpr = 8 * D * D + 5 * D
    LAST: tl.constexpr = 4 * D * D + 4 * D
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // heads, cell % heads
    q += row * sq[0] + head * sq[2]
    k += row * sk[0] + head * sk[2]
    v += row * sv[0] + head * sv[2]
    own = row * tokens * heads + head
    eta += own
    y += own * D
    if LOSS:
        before += own
        after += own
    start += head * P
    delta += cell * P
    weights = new_delta + cell * P
    steps = scratch + cell * n * D
    columns = tl.arange(0, D)
    gamma = tl.load(gamma + head * D + columns)
    beta = tl.load(beta + head * D + columns)
    limit, share = 0.0, 0.0
    if LONGEST:
        limit = limit_of(length_of_last(start, LAST, P), tl.load(longest + head), RESTORE)
    if FORGET:
        share = tl.load(forget + head)
    begin_weights(start, delta, weights, P)
    length = counted(lengths, row, tokens)
    seen = tl.cast(0, tl.int32)

    for t in range(0, tl.cdiv(length, n)):
        begin = t * tl.cast(n, tl.int64)
        count = tl.minimum(length - begin, n)
        anew = starts_anew(reset, row * tokens + begin)
        seen = tl.maximum(seen, anew.to(tl.int32))
        k_t, v_t, place = k + begin * sk[1], v + begin * sv[1], begin * heads
        long = learn(
            tl.where(anew, start, weights), weights, t % group == 0,
            checkpoints + (cell * kept + t // group) * P, steps, k_t, v_t, eta + place,
            before + place if LOSS else before, sk[1], sv[1], heads, start, gamma, beta, share, count, n,
            D, TILE, CHUNK, TYPE, PRECISION, LOSS, KEEP, FORGET, LONGEST,
        )  # fmt: skip
        for first in range(0, count, TILE):
            x = tile(q + begin * sq[1], sq[1], first, count, D, TILE)
            z_hat, _ = standardise(see(x, weights, D, CHUNK, TYPE, PRECISION))
            put(y + place * D, heads * D, first, count, x + gamma * z_hat + beta, D, TILE)
        if LOSS:
            for first in range(0, count, TILE):
                x = tile(k_t, sk[1], first, count, D, TILE)
                z_hat, _ = standardise(see(x, weights, D, CHUNK, TYPE, PRECISION))
                target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
                put_numbers(after + place, heads, first, count, half_square(gamma * z_hat + beta - target), TILE)
        tl.debug_barrier()
        if FORGET or LONGEST:
            scale = cut(long, limit, RESTORE) if LONGEST else 1.0
            settle(weights, start, weights, share, scale, FORGET, LONGEST, LAST, P)

    end_weights(start, delta, weights, length > 0, P)
    if lengths is not None:
        nothing_read(y, before, after, heads, length, tokens, D, TILE, LOSS)
    if head == 0:
        tl.store(new_phase + row, tl.where(seen > 0, 0.0, tl.load(phase + row)))
