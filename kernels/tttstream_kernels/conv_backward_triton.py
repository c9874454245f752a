"""The conv model, backward from checkpoints (README, equations 15 to 20). `frame_triton` says what the arguments
are."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.conv_triton import convolve, convolve_back, correlate, learn, see
from tttstream_kernels.frame_parts_triton import (
    again,
    begin_gradients,
    counted,
    cut,
    end_gradients,
    found,
    length_of_last,
    limit_of,
    nothing_learned,
    numbers,
    put,
    put_numbers,
    settle_backward,
    starts_anew,
    taught,
    tile,
    total,
)
from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import gelu, gelu_bend, gelu_slope, gradient_backward, through
from tttstream_kernels.token_parts_triton import matrix, product


@triton.jit
def _see_backward(
    x_t, stride, first, count, z, d_z, d_h_t, w_2, at_2,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What comes back through g(x) of a tile to the weights of both layers from its d_z (equation 16); leaves that of
    the hidden layer at `d_h_t`."""
    d_w_2 = product(tl.trans(gelu(z)), d_z, TYPE, PRECISION)
    d_h = product(d_z, tl.trans(again(w_2, at_2, D)), TYPE, PRECISION) * gelu_slope(z)
    put(d_h_t, D, first, count, d_h, D, TILE)
    return correlate(x_t, stride, first, count, d_h, D, TILE, HEIGHT, WIDE), d_w_2


@triton.jit(**VARYING)
def backward(
    q, k, v, eta, start, gamma, beta, forget, longest, reset, lengths, checkpoints, d_y, d_new, d_before, d_after,
    d_q, d_k, d_v, d_eta, d_start, d_gamma, d_beta, d_delta, d_forget, d_longest, slots, scales, scratch,
    heads, tokens, n, group, kept, sq, sk, sv,
    D: tl.constexpr, TILE: tl.constexpr, HEIGHT: tl.constexpr, WIDE: tl.constexpr, TYPE: tl.constexpr,
    PRECISION: tl.constexpr, LOSS: tl.constexpr, RESTORE: tl.constexpr,
):  # fmt: skip
    """From the last frame of a cell to the first: the weights of a group of frames are made again from its checkpoint,
    then the group is walked backward. The gradient at the weights stands in `d_delta`."""
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
    d_weights = d_delta + cell * P
    slots += cell * (group + 1) * P
    spare = slots + group * P
    scales += cell * group
    d_h_t = scratch + 2 * cell * n * D
    back_t = d_h_t + n * D
    columns = tl.arange(0, D)
    gamma = tl.load(gamma + head * D + columns)
    beta = tl.load(beta + head * D + columns)
    sum_gamma, sum_beta = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    sum_forget, sum_limit = tl.cast(0.0, tl.float32), tl.cast(0.0, tl.float32)
    limit, share = 0.0, 0.0
    if LONGEST:
        limit = limit_of(length_of_last(start, LAST, P), tl.load(longest + head), RESTORE)
    if FORGET:
        share = tl.load(forget + head)
    length = counted(lengths, row, tokens)
    frames = tl.cdiv(length, n)
    at, at_2, at_b = matrix(16, D), 10 * D + matrix(D, D), 10 * D + D * D + columns
    used = tl.arange(0, 16)[:, None] < 10
    begin_gradients(d_new, d_weights, d_start, P)

    for index in range(0, tl.cdiv(frames, group)):
        earliest = (tl.cdiv(frames, group) - 1 - index) * group
        checkpoint = checkpoints + (cell * kept + earliest // group) * P
        held = tl.minimum(frames - earliest, group)
        for i in range(0, held):
            begin = (earliest + i) * tl.cast(n, tl.int64)
            anew = starts_anew(reset, row * tokens + begin)
            source = found(checkpoint, slots, scales, spare, start, anew, i, share, FORGET, LONGEST, LAST, P)
            long = learn(
                source, slots + i * P, False, checkpoint, k + begin * sk[1], v + begin * sv[1],
                eta + begin * heads, d_before, sk[1], sv[1], heads, start, gamma, beta, share,
                tl.minimum(length - begin, n), n, D, TILE, HEIGHT, WIDE, TYPE, PRECISION, False, False, FORGET, LONGEST,
            )  # fmt: skip
            tl.store(scales + i, cut(long, limit, RESTORE) if LONGEST else 1.0)
            tl.debug_barrier()

        for i in range(0, held):
            slot = held - 1 - i
            begin = (earliest + slot) * tl.cast(n, tl.int64)
            count = tl.minimum(length - begin, n)
            q_t, k_t, v_t = q + begin * sq[1], k + begin * sk[1], v + begin * sv[1]
            here, place = begin * stride, begin * heads
            weights = slots + slot * P
            more_forget, more_limit = settle_backward(
                weights, start, d_weights, d_start, share, tl.load(scales + slot), limit,
                FORGET, LONGEST, RESTORE, LAST, P,
            )  # fmt: skip
            sum_forget += more_forget
            sum_limit += more_limit

            # what the queries read, equation 16
            d_w, d_w_2 = tl.load(d_weights + at, mask=used, other=0.0), tl.load(d_weights + at_2)
            d_b_2 = tl.load(d_weights + at_b)
            w_2 = tl.load(weights + at_2)
            for first in range(0, count, TILE):
                d_read = tile(d_y + here, stride, first, count, D, TILE).to(tl.float32)
                z, z_hat, rstd = see(q_t, sq[1], first, count, weights, D, TILE, HEIGHT, WIDE, TYPE, PRECISION)
                d_z = through(gamma * d_read, z_hat, rstd)
                sum_gamma += total(d_read * z_hat)
                sum_beta += total(d_read)
                more, more_2 = _see_backward(
                    q_t, sq[1], first, count, z, d_z, d_h_t, w_2, weights + at_2, D, TILE, HEIGHT, WIDE, TYPE, PRECISION
                )
                d_w += more
                d_w_2 += more_2
                d_b_2 += total(d_z)
            tl.debug_barrier()
            for first in range(0, count, TILE):
                d_x = tile(d_y + here, stride, first, count, D, TILE).to(tl.float32)
                d_x += convolve_back(d_h_t, first, count, weights, D, TILE, HEIGHT, WIDE)
                put(d_q + here, stride, first, count, d_x, D, TILE)
            tl.debug_barrier()
            if LOSS:
                for first in range(0, count, TILE):
                    target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32)
                    target -= tile(k_t, sk[1], first, count, D, TILE).to(tl.float32)
                    z, z_hat, rstd = see(k_t, sk[1], first, count, weights, D, TILE, HEIGHT, WIDE, TYPE, PRECISION)
                    d_error = numbers(d_after + place, heads, first, count, TILE) * (gamma * z_hat + beta - target)
                    d_z = through(gamma * d_error, z_hat, rstd)
                    sum_gamma += total(d_error * z_hat)
                    sum_beta += total(d_error)
                    more, more_2 = _see_backward(
                        k_t, sk[1], first, count, z, d_z, d_h_t, w_2, weights + at_2,
                        D, TILE, HEIGHT, WIDE, TYPE, PRECISION,
                    )  # fmt: skip
                    d_w += more
                    d_w_2 += more_2
                    d_b_2 += total(d_z)
                    put(d_v + here, stride, first, count, -d_error, D, TILE)
                tl.debug_barrier()
                for first in range(0, count, TILE):
                    d_x = -tile(d_v + here, stride, first, count, D, TILE)
                    d_x += convolve_back(d_h_t, first, count, weights, D, TILE, HEIGHT, WIDE)
                    put(d_k + here, stride, first, count, d_x, D, TILE)
            tl.store(d_weights + at, d_w, mask=used)
            tl.debug_barrier()

            # what the keys taught, equations 17 to 20, from the weights that the frame found
            anew = starts_anew(reset, row * tokens + begin)
            source = found(checkpoint, slots, scales, spare, start, anew, slot, share, FORGET, LONGEST, LAST, P)
            w_2 = tl.load(source + at_2)
            b_2 = tl.load(source + at_b)
            taught_w_2, taught_b_2 = -d_w_2 / n, -d_b_2 / n
            if D > 64:
                tl.store(d_weights + at_2, taught_w_2)
                tl.debug_barrier()
            for first in range(0, count, TILE):
                target = tile(v_t, sv[1], first, count, D, TILE).to(tl.float32)
                target -= tile(k_t, sk[1], first, count, D, TILE).to(tl.float32)
                rate = numbers(eta + place, heads, first, count, TILE)
                hidden = convolve(k_t, sk[1], first, count, source, D, TILE, HEIGHT, WIDE)
                slope = gelu_slope(hidden)
                d_back = convolve(
                    k_t, sk[1], first, count, d_weights, D, TILE, HEIGHT, WIDE
                ) * (-1.0 / n)  # fmt: skip
                # products with one matrix stand side by side, so that no two matrices are operands at a time
                z = product(gelu(hidden), again(w_2, source + at_2, D), TYPE, PRECISION) + b_2
                d_g = product(d_back * slope, again(w_2, source + at_2, D), TYPE, PRECISION) + taught_b_2
                d_g += product(gelu(hidden), again(taught_w_2, d_weights + at_2, D), TYPE, PRECISION)
                error, u, g, z_hat, rstd = taught(z, target, rate, gamma, beta)
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
                d_x, d_target = d_error, -d_error
                if LOSS:
                    d_x += tile(d_k + here, stride, first, count, D, TILE)
                    d_target += tile(d_v + here, stride, first, count, D, TILE)
                put(d_k + here, stride, first, count, d_x, D, TILE)
                put(d_v + here, stride, first, count, d_target, D, TILE)
                back = product(g, tl.trans(again(w_2, source + at_2, D)), TYPE, PRECISION)
                d_h = product(d_z, tl.trans(again(w_2, source + at_2, D)), TYPE, PRECISION)
                d_h += product(g, tl.trans(again(taught_w_2, d_weights + at_2, D)), TYPE, PRECISION)
                d_h = slope * d_h + d_back * back * gelu_bend(hidden)
                d_w_2 += product(tl.trans(d_back * slope), g, TYPE, PRECISION)
                d_w_2 += product(tl.trans(gelu(hidden)), d_z, TYPE, PRECISION)
                d_b_2 += total(d_z)
                d_w += correlate(k_t, sk[1], first, count, d_h, D, TILE, HEIGHT, WIDE)
                put(d_h_t, D, first, count, d_h, D, TILE)
                put(back_t, D, first, count, back * slope, D, TILE)
            tl.debug_barrier()
            for first in range(0, count, TILE):
                d_x = convolve_back(back_t, first, count, d_weights, D, TILE, HEIGHT, WIDE) * (-1.0 / n)
                d_x += convolve_back(d_h_t, first, count, source, D, TILE, HEIGHT, WIDE)
                d_x += tile(d_k + here, stride, first, count, D, TILE)
                put(d_k + here, stride, first, count, d_x, D, TILE)
            tl.debug_barrier()
            if reset is not None:
                more = tl.load(d_start + at, mask=used, other=0.0) + tl.where(anew, d_w, 0.0)
                tl.store(d_start + at, more, mask=used)
                tl.store(d_start + at_2, tl.load(d_start + at_2) + tl.where(anew, d_w_2, 0.0))
                tl.store(d_start + at_b, tl.load(d_start + at_b) + tl.where(anew, d_b_2, 0.0))
                d_w, d_w_2, d_b_2 = tl.where(anew, 0.0, d_w), tl.where(anew, 0.0, d_w_2), tl.where(anew, 0.0, d_b_2)
            tl.store(d_weights + at, d_w, mask=used)
            tl.store(d_weights + at_2, d_w_2)
            tl.store(d_weights + at_b, d_b_2)
            tl.debug_barrier()

    bound = tl.load(longest + head) if LONGEST else 0.0
    sum_longest = end_gradients(start, d_weights, d_start, bound, sum_limit, LONGEST, RESTORE, LAST, P)
    if LONGEST:
        tl.store(d_longest + cell, sum_longest)
    if FORGET:
        tl.store(d_forget + cell, sum_forget)
    tl.store(d_gamma + cell * D + columns, sum_gamma)
    tl.store(d_beta + cell * D + columns, sum_beta)
    if lengths is not None:
        nothing_learned(d_q, d_k, d_v, d_eta, heads, length, tokens, D, TILE)
