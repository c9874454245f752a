"""The MLP in token mode: its weights stay in memory, and a mini-batch goes over them in chunks of the hidden layer.

Two layers of weights in float32 fill half of a multiprocessor's registers at a head width of 64 and twice all of them
at 128, so a program holds one chunk at a time and leaves the rest to the cache (README, equations 7 to 9).
The cut of the last layer's norm is a factor that is applied when that layer is next read. Tokens are columns here:
Triton lays the warps of products that feed products along the rows, of which a mini-batch has too few.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import gelu, gelu_slope, standardise, through
from tttstream_kernels.token_parts_triton import (
    blocks_of,
    causal,
    error_terms,
    everything,
    extent,
    product,
    pupils,
    put,
    so_far,
    starts_anew,
    tile,
)

CHUNK = tl.constexpr(64)
"""Hidden units that a program holds at a time."""


@triton.jit
def first_layer(base, c, D: tl.constexpr):
    """Of a cell's first layer what leads to the hidden units c .. c + CHUNK: (W1 [D, CHUNK], b1 [CHUNK])."""
    hidden = c + tl.arange(0, CHUNK)
    w1 = tl.load(base + tl.arange(0, D)[:, None] * (4 * D) + hidden[None, :])
    return w1, tl.load(base + 4 * D * D + hidden)


@triton.jit
def last_layer(base, c, D: tl.constexpr):
    """Of its last layer what leads away from them: W2 [CHUNK, D]."""
    return tl.load(base + (D + 1) * (4 * D) + (c + tl.arange(0, CHUNK))[:, None] * D + tl.arange(0, D)[None, :])


@triton.jit
def load_units(base, c, D: tl.constexpr):
    """(W1, b1, W2) of these hidden units."""
    w1, b1 = first_layer(base, c, D)
    return w1, b1, last_layer(base, c, D)


@triton.jit
def store_units(base, c, w1, b1, w2, D: tl.constexpr):
    """Put them there."""
    F: tl.constexpr = 4 * D
    hidden, columns = c + tl.arange(0, CHUNK), tl.arange(0, D)
    tl.store(base + columns[:, None] * F + hidden[None, :], w1)
    tl.store(base + D * F + hidden, b1)
    tl.store(base + (D + 1) * F + hidden[:, None] * D + columns[None, :], w2)


@triton.jit
def last_bias(base, D: tl.constexpr):
    """Where the last layer's bias lies, [D]."""
    return base + 8 * D * D + 4 * D + tl.arange(0, D)


@triton.jit
def copy_weights(to, source, factor, D: tl.constexpr):
    """All weights of a cell, those of the last layer times a factor."""
    for c in range(0, 4 * D, CHUNK):
        w1, b1, w2 = load_units(source, c, D)
        store_units(to, c, w1, b1, factor * w2, D)
    tl.store(last_bias(to, D), factor * tl.load(last_bias(source, D)))


@triton.jit
def hidden_place(base, slot, c, BLOCK: tl.constexpr, D: tl.constexpr):
    """Where what belongs to the hidden units of a block lies in a program's scratch, [CHUNK, BLOCK]."""
    row = slot * (4 * D) + c + tl.arange(0, CHUNK)
    return base + row[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]


@triton.jit
def column_scores(x, keys, BLOCK: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """k_j . x_i with the ones that meet the bias, [j, i], where token i sees token j, else 0 (equation 8)."""
    return tl.where(tl.trans(causal(BLOCK)), product(tl.trans(keys), x, TYPE, PRECISION) + 1.0, 0.0)


@triton.jit
def cut_to(square, limit, RESTORE: tl.constexpr):
    """The factor that brings a last layer of this squared norm to its limit."""
    scale = tl.load(limit) / tl.sqrt(square)
    if not RESTORE:
        scale = tl.minimum(scale, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return scale


@triton.jit
def outputs(base, cut, keys, D: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """g(keys) [D, BLOCK] at weights whose last layer counts `cut` times."""
    z = tl.zeros([D, BLOCK], tl.float32)
    for c in range(0, 4 * D, CHUNK):
        w1, b1, w2 = load_units(base, c, D)
        hidden = gelu(product(tl.trans(w1), keys, TYPE, PRECISION) + b1[:, None])
        z += product(tl.trans(w2), hidden, TYPE, PRECISION)
    return cut * (z + tl.load(last_bias(base, D))[:, None])


@triton.jit
def stepped(w1, b1, w2, cut, s1, sb1, s2, last_tau, start, forget, c, D: tl.constexpr):
    """A chunk of the weights after a full mini-batch with these sums, and after forgetting; the cut is yet to come."""
    w1 -= last_tau * s1
    b1 -= last_tau * sb1
    w2 = cut * w2 - last_tau * s2
    if forget is not None:
        share = tl.load(forget)
        w1_start, b1_start, w2_start = load_units(start, c, D)
        w1 += share * (w1_start - w1)
        b1 += share * (b1_start - b1)
        w2 += share * (w2_start - w2)
    return w1, b1, w2


@triton.jit
def stepped_bias(b2, cut, sb2, last_tau, start, forget, D: tl.constexpr):
    """The same for the last layer's bias."""
    b2 = cut * b2 - last_tau * sb2
    if forget is not None:
        b2 += tl.load(forget) * (tl.load(last_bias(start, D)) - b2)
    return b2


@triton.jit(**VARYING)
def forward(
    q, k, v, eta, weights, pending, start, gamma, beta, tau, forget, limit, phase, lengths, reset, count, begins,
    y, seen, weights_end, pending_end, kept,
    q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head, weights_row,
    T, H, segments, span,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, READS: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell, whose weights live in `weights_end` and whose sums in `pending_end`; arguments as those of
    `linear_token_triton.forward`."""
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // H, cell % H
    P: tl.constexpr = 8 * D * D + 5 * D
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    eta += row * T * H + head
    y += row * T * H * D + head * D
    start += head * P
    pending += cell * P
    pending_end += cell * P
    live = weights_end + cell * P
    kept += cell * segments * P
    if forget is not None:
        forget += head
    if limit is not None:
        limit += head
    if reset is not None:
        reset += row * T
        begins += row * 2 * (T + 1)
    step = H * D
    columns, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    scale, shift = tl.load(gamma + head * D + columns)[:, None], tl.load(beta + head * D + columns)[:, None]
    taus, last_tau = tl.load(tau + slots), tl.load(tau + K - 1)
    old = tl.load(phase + row)
    length = T
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + row).to(tl.int32), T)
    blocks = blocks_of(count, row, old, length, BLOCK)
    copy_weights(live, weights + row * weights_row + head * P, 1.0, D)
    copy_weights(pending_end, pending, 1.0, D)
    cut = 1.0
    before = -1
    for n in range(blocks):
        begin, end, place = extent(n, begins, old, length, K, BLOCK)
        tl.debug_barrier()
        if reset is not None:
            if starts_anew(reset, begin):
                copy_weights(live, start, 1.0, D)
                cut = 1.0
                tl.debug_barrier()
        keep = False
        if KEEP:
            segment = begin // span
            keep = (segment != before) & ((place == 0) | (n == 0))
            before = tl.where(keep, segment, before)
        if BLOCK < K:
            taus = tl.load(tau + place // BLOCK * BLOCK + slots)
        full = end - begin + place == K
        skip = place % BLOCK
        token = begin - skip + slots
        inside = (slots >= skip) & (token < end)
        keys, target, rate, _good, nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
        keys, target = tl.trans(keys), tl.trans(target)
        nan = tl.where(inside, nan, 0.0)
        lost = tl.sum(nan, axis=0)
        z = outputs(live, cut, keys, D, BLOCK, TYPE, PRECISION)
        z_hat, rstd, _error, u = error_terms(z, target, rate[None, :], scale, shift, 0)
        gradient = through(u, z_hat, rstd, 0)
        square = 0.0
        for read in tl.static_range(READS):
            x = keys
            if read == 0:
                x = tl.trans(tile(q, q_step, token, inside, D)).to(TYPE)
            if read < 2:
                seeing = column_scores(x, keys, BLOCK, TYPE, PRECISION) * -taus[None, :]
                meeting = tl.zeros([BLOCK, BLOCK], tl.float32)
            z = tl.zeros([D, BLOCK], tl.float32)
            for c in range(0, 4 * D, CHUNK):
                w1, b1, w2 = load_units(live, c, D)
                z1 = product(tl.trans(w1), keys, TYPE, PRECISION) + b1[:, None]
                g1 = cut * product(w2, gradient, TYPE, PRECISION) * gelu_slope(z1)
                hidden = gelu(z1)
                x1 = product(tl.trans(w1), x, TYPE, PRECISION) + b1[:, None]
                if read < 2:
                    x1 += product(g1, seeing, TYPE, PRECISION)
                    if place > 0:
                        s1, sb1 = first_layer(pending_end, c, D)
                        x1 -= taus[None, :] * (product(tl.trans(s1), x, TYPE, PRECISION) + sb1[:, None])
                x2 = gelu(x1)
                z += cut * product(tl.trans(w2), x2, TYPE, PRECISION)
                if read < 2:
                    meeting += product(tl.trans(hidden), x2, TYPE, PRECISION)
                    if place > 0:
                        s2 = last_layer(pending_end, c, D)
                        z -= taus[None, :] * product(tl.trans(s2), x2, TYPE, PRECISION)
                if read == READS - 1:  # nothing reads these weights any more
                    if keep:
                        store_units(kept + segment * P, c, w1, b1, cut * w2, D)
                    s1 = product(keys, tl.trans(g1), TYPE, PRECISION) + lost
                    sb1 = tl.sum(g1, axis=1) + lost
                    s2 = product(hidden, tl.trans(gradient), TYPE, PRECISION) + lost
                    if place > 0:
                        s1_old, sb1_old, s2_old = load_units(pending_end, c, D)
                        s1 += s1_old
                        sb1 += sb1_old
                        s2 += s2_old
                    if full:
                        w1, b1, w2 = stepped(w1, b1, w2, cut, s1, sb1, s2, last_tau, start, forget, c, D)
                        tl.debug_barrier()  # several threads hold each number of the bias
                        store_units(live, c, w1, b1, w2, D)
                        square += everything(w2 * w2)
                    if (n == blocks - 1) | (not full):
                        tl.debug_barrier()
                        s1, sb1, s2 = tl.where(full, 0.0, s1), tl.where(full, 0.0, sb1), tl.where(full, 0.0, s2)
                        store_units(pending_end, c, s1, sb1, s2, D)
            b2 = tl.load(last_bias(live, D))
            z += cut * b2[:, None]
            own = nan
            if read < 2:
                own = so_far(nan, BLOCK)
                meeting = tl.where(tl.trans(causal(BLOCK)), (meeting + 1.0) * -taus[None, :], 0.0)
                z += product(gradient, meeting, TYPE, PRECISION)
                if place > 0:
                    z -= taus[None, :] * tl.load(last_bias(pending_end, D))[:, None]
            z = tl.trans(x.to(tl.float32) + standardise(z, 0)[0] * scale + shift + own[None, :])
            if read == 0:
                put(y, step, token, inside, z, D)
            else:
                put(seen + (read - 1) * (tl.num_programs(0).to(tl.int64) * T * D) + row * T * step + head * D,
                    step, token, inside, z, D)  # fmt: skip
        b2 = tl.load(last_bias(live, D))
        if keep:
            tl.store(last_bias(kept + segment * P, D), cut * b2)
        sb2 = tl.sum(gradient, axis=1) + lost
        if place > 0:
            sb2 += tl.load(last_bias(pending_end, D))
        if full:
            b2 = stepped_bias(b2, cut, sb2, last_tau, start, forget, D)
            tl.debug_barrier()
            tl.store(last_bias(live, D), b2)
            cut = 1.0
            if limit is not None:
                cut = cut_to(square + tl.sum(b2 * b2, axis=0), limit, RESTORE)
        if (n == blocks - 1) | (not full):
            tl.debug_barrier()
            tl.store(last_bias(pending_end, D), tl.where(full, 0.0, sb2))
    if limit is not None:
        tl.debug_barrier()
        copy_weights(live, live, cut, D)
