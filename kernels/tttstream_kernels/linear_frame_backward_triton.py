"""The linear inner model in frame mode, backward from checkpoints (README, equations 15 to 20).

The gradient at the weights stays in registers from the last frame to the first. `frame_triton` says what the arguments
are.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.frame_parts_triton import (
    again,
    counted,
    found,
    limit_backward,
    limit_of,
    nothing_learned,
    numbers,
    put,
    put_numbers,
    starts_anew,
    taught,
    tile,
    total,
    where_cut,
)
from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.linear_frame_triton import learn, norm_of, settled
from tttstream_kernels.norm_triton import gradient_backward, standardise, through
from tttstream_kernels.token_parts_triton import everything, matrix, product


@triton.jit(**VARYING)
def backward(
    q, k, v, eta, start, gamma, beta, forget, longest, reset, lengths, checkpoints, d_y, d_new, d_before, d_after,
    d_q, d_k, d_v, d_eta, d_start, d_gamma, d_beta, d_delta, d_forget, d_longest, slots, scales, scratch,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, TILE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, LOSS: tl.constexpr,
    RESTORE: tl.constexpr,
):  # fmt: skip
    """From the last frame of a cell to the first: the weights of a group of frames are made again from its checkpoint,
    then the group is walked backward."""
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
    stride = heads * D
    d_y += own * D
    d_q += own * D
    d_k += own * D
    d_v += own * D
    d_eta += own
    if LOSS:
        d_before += own
        d_after += own
    start += head * P
    d_start += cell * P
    d_new += cell * P
    d_delta += cell * P
    slots += cell * (group + 1) * P
    spare = slots + group * P
    scales += cell * group
    square, columns = matrix(D, D), tl.arange(0, D)
    bias = D * D + columns
    gamma = tl.load(gamma + head * D + columns)
    beta = tl.load(beta + head * D + columns)
    sum_gamma, sum_beta = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    sum_forget, sum_limit = 0.0, 0.0
    limit, alpha = 0.0, 0.0
    if LONGEST:
        limit = limit_of(norm_of(tl.load(start + square), tl.load(start + bias)), tl.load(longest + head), RESTORE)
    if FORGET:
        alpha = tl.load(forget + head)
    length = counted(lengths, row, tokens)
    frames = tl.cdiv(length, n)
    d_w, d_b = tl.load(d_new + square), tl.load(d_new + bias)
    tl.store(d_start + square, -d_w)
    tl.store(d_start + bias, -d_b)
    tl.debug_barrier()

    for index in range(0, tl.cdiv(frames, group)):
        earliest = (tl.cdiv(frames, group) - 1 - index) * group
        checkpoint = checkpoints + (cell * kept + earliest // group) * P
        held = tl.minimum(frames - earliest, group)
        w, b = tl.load(checkpoint + square), tl.load(checkpoint + bias)
        for i in range(0, held):
            begin = (earliest + i) * tl.cast(n, tl.int64)
            count = tl.minimum(length - begin, n)
            if reset is not None:
                anew = tl.load(reset + row * tokens + begin)
                w = tl.where(anew, tl.load(start + square), w)
                b = tl.where(anew, tl.load(start + bias), b)
            w, b = learn(
                w, b, k + begin * sk[1], v + begin * sv[1], eta + begin * heads, d_before, sk[1], sv[1], heads,
                gamma, beta, count, n, D, TILE, TYPE, PRECISION, False,
            )  # fmt: skip
            tl.store(slots + i * P + square, w)
            tl.store(slots + i * P + bias, b)
            w, b, scale = settled(w, b, start, forget, head, limit, D, FORGET, LONGEST, RESTORE)
            tl.store(scales + i, scale)
        tl.debug_barrier()

        for i in range(0, held):
            slot = held - 1 - i
            begin = (earliest + slot) * tl.cast(n, tl.int64)
            count = tl.minimum(length - begin, n)
            q_t, k_t, v_t = q + begin * sq[1], k + begin * sk[1], v + begin * sv[1]
            here, place = begin * stride, begin * heads
            weights = slots + slot * P
            w, b = tl.load(weights + square), tl.load(weights + bias)

            # through settle, equation 15
            before_w, before_b = w, b
            if FORGET:
                away_w, away_b = tl.load(start + square) - w, tl.load(start + bias) - b
                before_w += alpha * away_w
                before_b += alpha * away_b
            if LONGEST:
                scale = tl.load(scales + slot)
                along = scale * (everything(d_w * before_w) + tl.sum(d_b * before_b, axis=0))
                ratio = where_cut(scale, scale * along / (limit * limit), RESTORE)
                d_w = scale * (d_w - ratio * before_w)
                d_b = scale * (d_b - ratio * before_b)
                sum_limit += where_cut(scale, along / limit, RESTORE)
            if FORGET:
                sum_forget += everything(d_w * away_w) + tl.sum(d_b * away_b, axis=0)
                tl.store(d_start + square, tl.load(d_start + square) + alpha * d_w)
                tl.store(d_start + bias, tl.load(d_start + bias) + alpha * d_b)
                d_w *= 1.0 - alpha
                d_b *= 1.0 - alpha

            # what the queries read, equation 16
            for first in range(0, count, TILE):
                x = tile(q_t, sq[1], first, count, D, TILE)
                d_read = tile(d_y + here, stride, first, count, D, TILE).to(tl.float32)
                z_hat, rstd = standardise(product(x, again(w, weights + square, D), TYPE, PRECISION) + b)
                d_z = through(gamma * d_read, z_hat, rstd)
                sum_gamma += total(d_read * z_hat)
                sum_beta += total(d_read)
                d_w += product(tl.trans(x), d_z, TYPE, PRECISION)
                d_b += total(d_z)
                d_x = d_read + product(d_z, tl.trans(again(w, weights + square, D)), TYPE, PRECISION)
                put(d_q + here, stride, first, count, d_x, D, TILE)
            if LOSS:
                for first in range(0, count, TILE):
                    x = tile(k_t, sk[1], first, count, D, TILE)
                    target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
                    z_hat, rstd = standardise(product(x, again(w, weights + square, D), TYPE, PRECISION) + b)
                    d_error = numbers(d_after + place, heads, first, count, TILE) * (gamma * z_hat + beta - target)
                    d_z = through(gamma * d_error, z_hat, rstd)
                    sum_gamma += total(d_error * z_hat)
                    sum_beta += total(d_error)
                    d_w += product(tl.trans(x), d_z, TYPE, PRECISION)
                    d_b += total(d_z)
                    d_x = d_error + product(d_z, tl.trans(again(w, weights + square, D)), TYPE, PRECISION)
                    put(d_k + here, stride, first, count, d_x, D, TILE)
                    put(d_v + here, stride, first, count, -d_error, D, TILE)
            tl.debug_barrier()

            # what the keys taught, equations 17 to 20: w, b are those that the frame found
            anew = starts_anew(reset, row * tokens + begin)
            source = found(checkpoint, slots, scales, spare, start, anew, slot, alpha, FORGET, LONGEST, 0, P)
            w, b = tl.load(source + square), tl.load(source + bias)
            d_step, d_step_b = -d_w / n, -d_b / n
            if D > 64:
                tl.store(d_delta + square, d_step)
                tl.debug_barrier()
            for first in range(0, count, TILE):
                x = tile(k_t, sk[1], first, count, D, TILE)
                target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32) - x.to(tl.float32)
                rate = numbers(eta + place, heads, first, count, TILE)
                error, u, g, z_hat, rstd = taught(
                    product(x, again(w, source + square, D), TYPE, PRECISION) + b, target, rate, gamma, beta
                )
                d_g = product(x, again(d_step, d_delta + square, D), TYPE, PRECISION) + d_step_b
                d_u, d_z = gradient_backward(d_g, g, u, rate * gamma * gamma, z_hat, rstd)
                put_numbers(d_eta + place, heads, first, count, tl.sum(d_u * gamma * error, 1, keep_dims=True), TILE)
                d_error = rate * gamma * d_u
                sum_gamma += total(rate * d_u * (error + gamma * z_hat))
                if LOSS:
                    own_error = numbers(d_before + place, heads, first, count, TILE) * error
                    sum_gamma += total(own_error * z_hat)
                    d_z += through(gamma * own_error, z_hat, rstd)
                    d_error += own_error
                sum_beta += total(d_error)
                d_x = product(d_z, tl.trans(again(w, source + square, D)), TYPE, PRECISION) + product(
                    g, tl.trans(again(d_step, d_delta + square, D)), TYPE, PRECISION
                )
                d_x += d_error
                d_target = -d_error
                if LOSS:
                    d_x += tile(d_k + here, stride, first, count, D, TILE)
                    d_target += tile(d_v + here, stride, first, count, D, TILE)
                put(d_k + here, stride, first, count, d_x, D, TILE)
                put(d_v + here, stride, first, count, d_target, D, TILE)
                d_w += product(tl.trans(x), d_z, TYPE, PRECISION)
                d_b += total(d_z)
            if reset is not None:
                kept_w, kept_b = tl.where(anew, d_w, 0.0), tl.where(anew, d_b, 0.0)
                tl.store(d_start + square, tl.load(d_start + square) + kept_w)
                tl.store(d_start + bias, tl.load(d_start + bias) + kept_b)
                d_w, d_b = tl.where(anew, 0.0, d_w), tl.where(anew, 0.0, d_b)
            tl.debug_barrier()

    tl.store(d_delta + square, d_w)
    tl.store(d_delta + bias, d_b)
    d_w += tl.load(d_start + square)
    d_b += tl.load(d_start + bias)
    if LONGEST:
        w, b = tl.load(start + square), tl.load(start + bias)
        length_at_start = norm_of(w, b)
        d_own, d_bound = limit_backward(length_at_start, tl.load(longest + head), sum_limit, RESTORE)
        d_w += d_own / length_at_start * w
        d_b += d_own / length_at_start * b
        tl.store(d_longest + cell, d_bound)
    if FORGET:
        tl.store(d_forget + cell, sum_forget)
    tl.store(d_start + square, d_w)
    tl.store(d_start + bias, d_b)
    tl.store(d_gamma + cell * D + columns, sum_gamma)
    tl.store(d_beta + cell * D + columns, sum_beta)
    if lengths is not None:
        nothing_learned(d_q, d_k, d_v, d_eta, heads, length, tokens, D, TILE)
