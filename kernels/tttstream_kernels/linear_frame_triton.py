"""The linear inner model in frame mode (README, equation 10).

One program a cell. Its weights stay in registers from the first frame to the last. `frame_triton` says what the
arguments are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.frame_parts_triton import (
    counted,
    cut,
    half_square,
    limit_of,
    nothing_read,
    numbers,
    put,
    put_numbers,
    taught,
    tile,
    total,
)
from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import standardise
from tttstream_kernels.token_parts_triton import everything, matrix, product


@triton.jit
def norm_of(w, b):
    """Joint norm of (W, b)."""
    return tl.sqrt(everything(w * w) + tl.sum(b * b, axis=0))


@triton.jit
def learn(
    w, b, k, v, eta, before, sk, sv, heads, gamma, beta, count, n,
    D: tl.constexpr, TILE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr,
):  # fmt: skip
    """(W, b) after the step of a frame (equation 10)."""
    d_w, d_b = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    for first in range(0, count, TILE):
        x = tile(k, sk, first, count, D, TILE)
        target = tile(v, sv, first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
        rate = numbers(eta, heads, first, count, TILE)
        error, _, g, _, _ = taught(product(x, w, TYPE, PRECISION) + b, target, rate, gamma, beta)
        if LOSS:
            put_numbers(before, heads, first, count, half_square(error), TILE)
        d_w += product(tl.trans(x), g, TYPE, PRECISION)
        d_b += total(g)
    return w - d_w / n, b - d_b / n


@triton.jit
def settled(
    w, b, start, forget, head, limit,
    D: tl.constexpr, FORGET: tl.constexpr, LONGEST: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """(W, b) with which the next frame starts, and the scale of the norm cut."""
    scale = 1.0
    if FORGET:
        alpha = tl.load(forget + head)
        w += alpha * (tl.load(start + matrix(D, D)) - w)
        b += alpha * (tl.load(start + D * D + tl.arange(0, D)) - b)
    if LONGEST:
        scale = cut(norm_of(w, b), limit, RESTORE)
    return w * scale, b * scale, scale


@triton.jit(**VARYING)
def forward(
    q, k, v, eta, start, gamma, beta, delta, phase, forget, longest, reset, lengths,
    y, new_delta, new_phase, before, after, checkpoints, scratch,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, TILE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr,
    KEEP: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """Learn and read every frame of a cell."""
    FORGET: tl.constexpr = forget is not None
    LONGEST: tl.constexpr = longest is not None
    P: tl.constexpr = D * D + D
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
    new_delta += cell * P
    square, columns = matrix(D, D), tl.arange(0, D)
    bias = D * D + columns
    gamma = tl.load(gamma + head * D + columns)
    beta = tl.load(beta + head * D + columns)
    w, b = tl.load(start + square), tl.load(start + bias)
    limit = 0.0
    if LONGEST:
        limit = limit_of(norm_of(w, b), tl.load(longest + head), RESTORE)
    w += tl.load(delta + square)
    b += tl.load(delta + bias)
    length = counted(lengths, row, tokens)
    seen = tl.cast(0, tl.int32)

    for t in range(0, tl.cdiv(length, n)):
        begin = t * tl.cast(n, tl.int64)
        count = tl.minimum(length - begin, n)
        if reset is not None:
            anew = tl.load(reset + row * tokens + begin)
            w = tl.where(anew, tl.load(start + square), w)
            b = tl.where(anew, tl.load(start + bias), b)
            seen = tl.maximum(seen, anew.to(tl.int32))
        if KEEP:
            if t % group == 0:
                checkpoint = checkpoints + (cell * kept + t // group) * P
                tl.store(checkpoint + square, w)
                tl.store(checkpoint + bias, b)
        k_t, v_t, place = k + begin * sk[1], v + begin * sv[1], begin * heads
        w, b = learn(
            w, b, k_t, v_t, eta + place, before + place if LOSS else before, sk[1], sv[1], heads,
            gamma, beta, count, n, D, TILE, TYPE, PRECISION, LOSS,
        )  # fmt: skip
        for first in range(0, count, TILE):
            x = tile(q + begin * sq[1], sq[1], first, count, D, TILE)
            z_hat, _ = standardise(product(x, w, TYPE, PRECISION) + b)
            put(y + begin * heads * D, heads * D, first, count, x + gamma * z_hat + beta, D, TILE)
        if LOSS:
            for first in range(0, count, TILE):
                x = tile(k_t, sk[1], first, count, D, TILE)
                z_hat, _ = standardise(product(x, w, TYPE, PRECISION) + b)
                target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
                put_numbers(after + place, heads, first, count, half_square(gamma * z_hat + beta - target), TILE)
        w, b, _ = settled(w, b, start, forget, head, limit, D, FORGET, LONGEST, RESTORE)

    w -= tl.load(start + square)
    b -= tl.load(start + bias)
    if lengths is not None:
        w = tl.where(length > 0, w, tl.load(delta + square))
        b = tl.where(length > 0, b, tl.load(delta + bias))
        nothing_read(y, before, after, heads, length, tokens, D, TILE, LOSS)
    tl.store(new_delta + square, w)
    tl.store(new_delta + bias, b)
    if head == 0:
        tl.store(new_phase + row, tl.where(seen > 0, 0.0, tl.load(phase + row)))
