"""The linear inner model in token mode: weights in registers over a whole row (README, equations 7 to 9)."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import standardise, through
from tttstream_kernels.token_parts_triton import (
    blocks_of,
    error_terms,
    everything,
    extent,
    matrix,
    product,
    pupils,
    put,
    scores,
    so_far,
    starts_anew,
    tile,
)


@triton.jit
def load_weights(base, D: tl.constexpr):
    """(W [D, D], b [D]) of a cell."""
    return tl.load(base + matrix(D, D)), tl.load(base + D * D + tl.arange(0, D))


@triton.jit
def store_weights(base, w, b, D: tl.constexpr):
    """Put them there."""
    tl.store(base + matrix(D, D), w)
    tl.store(base + D * D + tl.arange(0, D), b)


@triton.jit
def settled(w, b, start, forget, limit, D: tl.constexpr, RESTORE: tl.constexpr):
    """Weights after forgetting and after the cut of their norm, and the factor of the cut. forget, limit: this head's
    numbers or None."""
    scale = 1.0
    if forget is not None:
        share = tl.load(forget)
        w0, b0 = load_weights(start, D)
        w += share * (w0 - w)
        b += share * (b0 - b)
    if limit is not None:
        scale = tl.load(limit) / tl.sqrt(everything(w * w) + tl.sum(b * b, axis=0))
        if not RESTORE:
            scale = tl.minimum(scale, 1.0, propagate_nan=tl.PropagateNan.ALL)
        w *= scale
        b *= scale
    return w, b, scale


@triton.jit(**VARYING)
def forward(
    q, k, v, eta, weights, pending, start, gamma, beta, tau, forget, limit, phase, lengths, reset, count, begins,
    y, seen, weights_end, pending_end, kept,
    q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head, weights_row,
    T, H, segments, span,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, READS: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell. READS: 1, or 3 with what keys see after and before they are learned, in `seen` [2, B, T, H, D].
    KEEP: whether every `span` tokens the weights go to `kept` [B, H, segments, P]. The sums that a block leaves to the
    next one stand in `pending_end`."""
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // H, cell % H
    P: tl.constexpr = D * D + D
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    eta += row * T * H + head
    y += row * T * H * D + head * D
    start += head * P
    pending += cell * P
    pending_end += cell * P
    if forget is not None:
        forget += head
    if limit is not None:
        limit += head
    if reset is not None:
        reset += row * T
        begins += row * 2 * (T + 1)
    step = H * D
    columns = tl.arange(0, D)
    scale, shift = tl.load(gamma + head * D + columns)[None, :], tl.load(beta + head * D + columns)[None, :]
    slots = tl.arange(0, BLOCK)
    taus, last_tau = tl.load(tau + slots), tl.load(tau + K - 1)
    old = tl.load(phase + row)
    length = T
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + row).to(tl.int32), T)
    blocks = blocks_of(count, row, old, length, BLOCK)
    w, b = load_weights(weights + row * weights_row + head * P, D)
    sums = pending
    if (blocks == 0) | (BLOCK < K):
        store_weights(pending_end, *load_weights(pending, D), D)
    if BLOCK < K:
        sums = pending_end
        tl.debug_barrier()
    before = -1
    for n in range(blocks):
        begin, end, place = extent(n, begins, old, length, K, BLOCK)
        if reset is not None:
            if starts_anew(reset, begin):
                w, b = load_weights(start, D)
        if KEEP:
            segment = begin // span
            keep = (segment != before) & ((place == 0) | (n == 0))
            if keep:
                store_weights(kept + (cell * segments + segment) * P, w, b, D)
            before = tl.where(keep, segment, before)
        if BLOCK < K:
            taus = tl.load(tau + place // BLOCK * BLOCK + slots)
        skip = place % BLOCK
        token = begin - skip + slots
        inside = (slots >= skip) & (token < end)
        keys, target, rate, _good, nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
        nan = tl.where(inside, nan, 0.0)
        z = product(keys, w, TYPE, PRECISION) + b[None, :]
        z_hat, rstd, _error, u = error_terms(z, target, rate[:, None], scale, shift)
        gradient = through(u, z_hat, rstd)
        for read in tl.static_range(READS):
            x = keys
            if read == 0:
                x = tile(q, q_step, token, inside, D).to(TYPE)
            z = product(x, w, TYPE, PRECISION) + b[None, :]
            lost = nan
            if read < 2:
                lost = so_far(nan, BLOCK)
                seeing = scores(x, keys, BLOCK, TYPE, PRECISION) * -taus[:, None]
                z += product(seeing, gradient, TYPE, PRECISION)
                if place > 0:
                    w_pending, b_pending = load_weights(sums, D)
                    z -= taus[:, None] * (product(x, w_pending, TYPE, PRECISION) + b_pending[None, :])
            z = x.to(tl.float32) + standardise(z)[0] * scale + shift + lost[:, None]
            if read == 0:
                put(y, step, token, inside, z, D)
            else:
                put(seen + (read - 1) * (tl.num_programs(0).to(tl.int64) * T * D) + row * T * step + head * D,
                    step, token, inside, z, D)  # fmt: skip
        lost = tl.sum(nan, axis=0)
        w_sum = product(tl.trans(keys), gradient, TYPE, PRECISION) + lost
        b_sum = tl.sum(gradient, axis=0) + lost
        if place > 0:
            w_pending, b_pending = load_weights(sums, D)
            w_sum += w_pending
            b_sum += b_pending
        full = end - begin + place == K
        if full:
            w, b, _cut = settled(w - last_tau * w_sum, b - last_tau * b_sum, start, forget, limit, D, RESTORE)
        if BLOCK == K:  # a loop with a barrier in it does not load ahead
            if n == blocks - 1:
                store_weights(pending_end, tl.where(full, 0.0, w_sum), tl.where(full, 0.0, b_sum), D)
        elif (n == blocks - 1) | (not full):
            tl.debug_barrier()
            store_weights(pending_end, tl.where(full, 0.0, w_sum), tl.where(full, 0.0, b_sum), D)
            tl.debug_barrier()
    store_weights(weights_end + cell * P, w, b, D)
