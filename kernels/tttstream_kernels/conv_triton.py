"""The conv model (README, equation 10).

One program a cell. Neighbours of a token are loaded again, shifted and masked at the edges of the picture; the
convolution's way back is the same with the kernel turned round. `frame_triton` says what the arguments are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.frame_parts_triton import (
    again,
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
from tttstream_kernels.token_parts_triton import everything, matrix, product


@triton.jit
def neighbours(
    x_t, stride, first, count, tap, D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr
):
    """What a tap of the kernel (0 .. 8 in reading order) sees at the tokens of a tile: [TILE, D], zeros outside of the
    picture. Tokens beyond the picture have themselves in the middle and nothing around."""
    down, right = tap // 3 - 1, tap % 3 - 1
    token = first + tl.arange(0, TILE)
    y, x = token // WIDE + down, token % WIDE + right
    inside = (token < HEIGHT * WIDE) & (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDE)
    inside = inside | (tap == 4)
    token += down * WIDE + right
    at = token.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]
    return tl.load(x_t + at, mask=(inside & (token < count))[:, None], other=0.0).to(tl.float32)


@triton.jit
def convolve(
    x_t, stride, first, count, weights,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x C + b1 of the tokens of a tile."""
    columns = tl.arange(0, D)
    z = tl.zeros([TILE, D], tl.float32) + tl.load(weights + 9 * D + columns)
    for tap in range(0, 9):
        weight = tl.load(weights + tap * D + columns)
        z += neighbours(x_t, stride, first, count, tap, D, TILE, HEIGHT, WIDE) * weight
    return z


@triton.jit
def convolve_back(
    g_t, first, count, weights,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """g Cᵀ at the tokens of a tile."""
    columns = tl.arange(0, D)
    d_x = tl.zeros([TILE, D], tl.float32)
    for tap in range(0, 9):
        weight = tl.load(weights + tap * D + columns)
        d_x += neighbours(g_t, D, first, count, 8 - tap, D, TILE, HEIGHT, WIDE) * weight
    return d_x


@triton.jit
def correlate(
    x_t, stride, first, count, g, D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr
):
    """xᵀ g for the kernel and the bias of the convolution: [16, D], of which the first ten rows are used."""
    row = tl.arange(0, 16)[:, None]
    d_w = tl.where(row == 9, total(g)[None, :], 0.0)
    for tap in range(0, 9):
        share = total(neighbours(x_t, stride, first, count, tap, D, TILE, HEIGHT, WIDE) * g)
        d_w += tl.where(row == tap, share[None, :], 0.0)
    return d_w


@triton.jit
def learn(
    source, to, keep, checkpoint, k, v, eta, before, sk, sv, heads, start, gamma, beta, forget,
    count, n,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr, LOSS: tl.constexpr, KEEP: tl.constexpr, FORGET: tl.constexpr, LONGEST: tl.constexpr,
):  # fmt: skip
    """Take the step of a frame (equation 10) from the weights at `source` to those at `to`; returns the norm that their
    last layer has after forgetting. `checkpoint` gets the weights before the step if `keep`."""
    at, at_2, at_b = matrix(16, D), 10 * D + matrix(D, D), 10 * D + D * D + tl.arange(0, D)
    used = tl.arange(0, 16)[:, None] < 10
    w_2 = tl.load(source + at_2)
    b_2 = tl.load(source + at_b)
    d_w, d_w_2, d_b_2 = tl.zeros([16, D], tl.float32), tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    for first in range(0, count, TILE):
        x = tile(k, sk, first, count, D, TILE)
        target = tile(v, sv, first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
        rate = numbers(eta, heads, first, count, TILE)
        z = convolve(k, sk, first, count, source, D, TILE, HEIGHT, WIDE)
        hidden = gelu(z)
        error, _, g, _, _ = taught(
            product(hidden, again(w_2, source + at_2, D), TYPE, PRECISION) + b_2, target, rate, gamma, beta
        )
        if LOSS:
            put_numbers(before, heads, first, count, half_square(error), TILE)
        d_w_2 += product(tl.trans(hidden), g, TYPE, PRECISION)
        d_b_2 += total(g)
        back = product(g, tl.trans(again(w_2, source + at_2, D)), TYPE, PRECISION) * gelu_slope(z)
        d_w += correlate(k, sk, first, count, back, D, TILE, HEIGHT, WIDE)
    w = tl.load(source + at, mask=used)
    if KEEP:
        tl.store(checkpoint + at, w, mask=used & keep)
        tl.store(checkpoint + at_2, w_2, mask=keep)
        tl.store(checkpoint + at_b, b_2, mask=keep)
    w_2 -= d_w_2 / n
    b_2 -= d_b_2 / n
    tl.debug_barrier()
    tl.store(to + at, w - d_w / n, mask=used)
    tl.store(to + at_2, w_2)
    tl.store(to + at_b, b_2)
    tl.debug_barrier()
    if FORGET and LONGEST:
        w_2 += forget * (tl.load(start + at_2) - w_2)
        b_2 += forget * (tl.load(start + at_b) - b_2)
    return tl.sqrt(everything(w_2 * w_2) + tl.sum(b_2 * b_2, axis=0)) if LONGEST else 0.0


@triton.jit
def see(
    x_t, stride, first, count, weights,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """z of the hidden layer, z^ and 1 / s of g(x), for a tile of tokens."""
    w_2 = tl.load(weights + 10 * D + matrix(D, D))
    b_2 = tl.load(weights + 10 * D + D * D + tl.arange(0, D))
    z = convolve(x_t, stride, first, count, weights, D, TILE, HEIGHT, WIDE)
    z_hat, rstd = standardise(product(gelu(z), w_2, TYPE, PRECISION) + b_2)
    return z, z_hat, rstd


@triton.jit(**VARYING)
def forward(
    q, k, v, eta, start, gamma, beta, delta, phase, forget, longest, reset, lengths,
    y, new_delta, new_phase, before, after, checkpoints, scratch,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr, LOSS: tl.constexpr, KEEP: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """Learn and read every frame of a cell; its weights stand in `new_delta` until the end."""
    FORGET: tl.constexpr = forget is not None
    LONGEST: tl.constexpr = longest is not None
    LAST: tl.constexpr = 10 * D
    P: tl.constexpr = 10 * D + D * D + D
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
        q_t, k_t, v_t, place = q + begin * sq[1], k + begin * sk[1], v + begin * sv[1], begin * heads
        long = learn(
            tl.where(anew, start, weights), weights, t % group == 0,
            checkpoints + (cell * kept + t // group) * P, k_t, v_t, eta + place,
            before + place if LOSS else before, sk[1], sv[1], heads, start, gamma, beta, share, count, n,
            D, TILE, HEIGHT, WIDE, TYPE, PRECISION, LOSS, KEEP, FORGET, LONGEST,
        )  # fmt: skip
        for first in range(0, count, TILE):
            _, z_hat, _ = see(q_t, sq[1], first, count, weights, D, TILE, HEIGHT, WIDE, TYPE, PRECISION)
            read = tile(q_t, sq[1], first, count, D, TILE) + gamma * z_hat + beta
            put(y + place * D, heads * D, first, count, read, D, TILE)
        if LOSS:
            for first in range(0, count, TILE):
                _, z_hat, _ = see(k_t, sk[1], first, count, weights, D, TILE, HEIGHT, WIDE, TYPE, PRECISION)
                target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32)
                target -= tile(k_t, sk[1], first, count, D, TILE).to(tl.float32)
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
