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
    Sizes,
    block_of_row,
    causal,
    dot,
    error_terms,
    everything,
    examples,
    is_reset,
    load_tokens,
    norm_scale,
    row_of,
    slot_of,
    so_far,
    store_tokens,
    tokens_at,
)

CHUNK = tl.constexpr(64)
"""Hidden units that a program holds at a time."""


@triton.jit
def first_layer(p, c, C):
    """Of a cell's first layer what leads to the hidden units c .. c + CHUNK: (W1 [D, CHUNK], b1 [CHUNK])."""
    hidden = c + tl.arange(0, CHUNK)
    w1 = tl.load(p + tl.arange(0, C.D)[:, None] * (4 * C.D) + hidden[None, :])
    return w1, tl.load(p + 4 * C.D * C.D + hidden)


@triton.jit
def last_layer(p, c, C):
    """Of its last layer what leads away from them: W2 [CHUNK, D]."""
    hidden = c + tl.arange(0, CHUNK)
    return tl.load(p + (C.D + 1) * (4 * C.D) + hidden[:, None] * C.D + tl.arange(0, C.D)[None, :])


@triton.jit
def load_units(p, c, C):
    """(W1, b1, W2) of these hidden units."""
    w1, b1 = first_layer(p, c, C)
    return w1, b1, last_layer(p, c, C)


@triton.jit
def store_units(p, c, w1, b1, w2, C):
    """Put them there."""
    hidden, columns = c + tl.arange(0, CHUNK), tl.arange(0, C.D)
    tl.store(p + columns[:, None] * (4 * C.D) + hidden[None, :], w1)
    tl.store(p + 4 * C.D * C.D + hidden, b1)
    tl.store(p + (C.D + 1) * (4 * C.D) + hidden[:, None] * C.D + columns[None, :], w2)


@triton.jit
def last_bias(p, C):
    """The addresses of the last layer's bias [D]."""
    return p + 8 * C.D * C.D + 4 * C.D + tl.arange(0, C.D)


@triton.jit
def copy_weights(p_to, p_from, factor, C):
    """All weights of a cell, those of the last layer times a factor."""
    for c in range(0, 4 * C.D, CHUNK):
        w1, b1, w2 = load_units(p_from, c, C)
        store_units(p_to, c, w1, b1, factor * w2, C)
    tl.store(last_bias(p_to, C), factor * tl.load(last_bias(p_from, C)))


@triton.jit
def hidden_at(p, part, c, C):
    """The addresses of a block's hidden units in a program's scratch, [CHUNK, BLOCK]."""
    unit = part * (4 * C.D) + c + tl.arange(0, CHUNK)
    return p + unit[:, None] * C.BLOCK + tl.arange(0, C.BLOCK)[None, :]


@triton.jit
def column_scores(x, keys, C):
    """k_j . x_i with the ones that meet the bias, [j, i], where token i sees token j, else 0 (equation 8)."""
    return tl.where(tl.trans(causal(C.BLOCK)), dot(tl.trans(keys), x, C) + 1.0, 0.0)


@triton.jit
def outputs(p, scale, keys, C):
    """g(keys) [D, BLOCK] at weights whose last layer counts `scale` times."""
    z = tl.zeros([C.D, C.BLOCK], tl.float32)
    for c in range(0, 4 * C.D, CHUNK):
        w1, b1, w2 = load_units(p, c, C)
        hidden = gelu(dot(tl.trans(w1), keys, C) + b1[:, None])
        z += dot(tl.trans(w2), hidden, C)
    return scale * (z + tl.load(last_bias(p, C))[:, None])


@triton.jit
def gradient_of(keys, target, rate, gamma, beta, p, scale, C):
    """The steps of a block of keys, and what their backward pass needs: z^, 1 / s, error and u."""
    z = outputs(p, scale, keys, C)
    z_hat, rstd, error, u = error_terms(z, target, rate[None, :], gamma, beta, 0)
    return through(u, z_hat, rstd, 0), z_hat, rstd, error, u


@triton.jit
def stepped(w1, b1, w2, scale, s1, sb1, s2, last_tau, learned, row, c, C):
    """A chunk of the weights after a full mini-batch with these sums, and after forgetting; the limit of the norm is
    yet to come."""
    w1 -= last_tau * s1
    b1 -= last_tau * sb1
    w2 = scale * w2 - last_tau * s2
    if learned.p_forget is not None:
        share = tl.load(learned.p_forget + row.i_head)
        w1_start, b1_start, w2_start = load_units(row.p_start, c, C)
        w1 += share * (w1_start - w1)
        b1 += share * (b1_start - b1)
        w2 += share * (w2_start - w2)
    return w1, b1, w2


@triton.jit
def stepped_bias(b2, scale, sb2, last_tau, learned, row, C):
    """The same for the last layer's bias."""
    b2 = scale * b2 - last_tau * sb2
    if learned.p_forget is not None:
        b2 += tl.load(learned.p_forget + row.i_head) * (tl.load(last_bias(row.p_start, C)) - b2)
    return b2


@triton.jit(**VARYING)
def forward(
    streams, learned, results, cuts, p_eta, p_phase, p_lengths, p_reset, sq, sk, sv, s_weights, T, H, segments, span,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, READS: tl.constexpr, KEEP: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell, whose weights and sums live where those after the call are wanted."""
    C: tl.constexpr = Sizes(D, P, K, BLOCK, READS, KEEP, RESTORE, TYPE, PRECISION)
    row = row_of(streams, learned, cuts, p_eta, p_phase, p_lengths, T, H, sq, sk, sv, C)
    live, p_sums = results.p_weights + row.i_cell * P, results.p_sums + row.i_cell * P
    p_kept = results.p_kept + row.i_cell * segments * P
    head = row.i_head * D + tl.arange(0, D)
    gamma, beta = tl.load(learned.p_gamma + head)[:, None], tl.load(learned.p_beta + head)[:, None]
    taus, last_tau = tl.load(learned.p_tau + tl.arange(0, BLOCK)), tl.load(learned.p_tau + K - 1)
    copy_weights(live, learned.p_weights + row.i_row * s_weights + row.i_head * P, 1.0, C)
    copy_weights(p_sums, row.p_sums, 1.0, C)
    scale = 1.0
    before = -1
    for n in range(row.blocks):
        block = block_of_row(n, row, cuts, C)
        begin, end, place = block.begin, block.end, block.place
        tl.debug_barrier()
        if p_reset is not None:
            if is_reset(p_reset, row, begin):
                copy_weights(live, row.p_start, 1.0, C)
                scale = 1.0
                tl.debug_barrier()
        keep = False
        if KEEP:
            segment = begin // span
            keep = (segment != before) & ((place == 0) | (n == 0))
            before = tl.where(keep, segment, before)
        if BLOCK < K:
            taus = tl.load(learned.p_tau + place // BLOCK * BLOCK + tl.arange(0, BLOCK))
        full = end - begin + place == K
        keys, target, rate, _good, nan = examples(row, block, C)
        keys, target = tl.trans(keys), tl.trans(target)
        nan = tl.where(block.inside, nan, 0.0)
        lost = tl.sum(nan, axis=0)
        gradient, _z_hat, _rstd, _error, _u = gradient_of(keys, target, rate, gamma, beta, live, scale, C)
        squares = 0.0
        for read in tl.static_range(READS):
            x = keys
            if read == 0:
                x = tl.trans(load_tokens(row.p_q, row.s_q, block, C)).to(TYPE)
            if read < 2:
                seeing = column_scores(x, keys, C) * -taus[None, :]
                meeting = tl.zeros([BLOCK, BLOCK], tl.float32)
            z = tl.zeros([D, BLOCK], tl.float32)
            for c in range(0, 4 * D, CHUNK):
                w1, b1, w2 = load_units(live, c, C)
                z1 = dot(tl.trans(w1), keys, C) + b1[:, None]
                g1 = scale * dot(w2, gradient, C) * gelu_slope(z1)
                hidden = gelu(z1)
                x1 = dot(tl.trans(w1), x, C) + b1[:, None]
                if read < 2:
                    x1 += dot(g1, seeing, C)
                    if place > 0:
                        s1, sb1 = first_layer(p_sums, c, C)
                        x1 -= taus[None, :] * (dot(tl.trans(s1), x, C) + sb1[:, None])
                x2 = gelu(x1)
                z += scale * dot(tl.trans(w2), x2, C)
                if read < 2:
                    meeting += dot(tl.trans(hidden), x2, C)
                    if place > 0:
                        s2 = last_layer(p_sums, c, C)
                        z -= taus[None, :] * dot(tl.trans(s2), x2, C)
                if read == READS - 1:  # nothing reads these weights any more
                    if keep:
                        store_units(p_kept + segment * P, c, w1, b1, scale * w2, C)
                    s1 = dot(keys, tl.trans(g1), C) + lost
                    sb1 = tl.sum(g1, axis=1) + lost
                    s2 = dot(hidden, tl.trans(gradient), C) + lost
                    if place > 0:
                        s1_old, sb1_old, s2_old = load_units(p_sums, c, C)
                        s1 += s1_old
                        sb1 += sb1_old
                        s2 += s2_old
                    if full:
                        w1, b1, w2 = stepped(w1, b1, w2, scale, s1, sb1, s2, last_tau, learned, row, c, C)
                        tl.debug_barrier()  # several threads hold each number of the bias
                        store_units(live, c, w1, b1, w2, C)
                        squares += everything(w2 * w2)
                    if (n == row.blocks - 1) | (not full):
                        tl.debug_barrier()
                        s1, sb1, s2 = tl.where(full, 0.0, s1), tl.where(full, 0.0, sb1), tl.where(full, 0.0, s2)
                        store_units(p_sums, c, s1, sb1, s2, C)
            b2 = tl.load(last_bias(live, C))
            z += scale * b2[:, None]
            own = nan
            if read < 2:
                own = so_far(nan, BLOCK)
                meeting = tl.where(tl.trans(causal(BLOCK)), (meeting + 1.0) * -taus[None, :], 0.0)
                z += dot(gradient, meeting, C)
                if place > 0:
                    z -= taus[None, :] * tl.load(last_bias(p_sums, C))[:, None]
            z = tl.trans(x.to(tl.float32) + standardise(z, 0)[0] * gamma + beta + own[None, :])
            p_out = results.p_y if read == 0 else results.p_seen
            store_tokens(tokens_at(p_out, read, row, C), H * D, block, z, C)
        b2 = tl.load(last_bias(live, C))
        if keep:
            tl.store(last_bias(p_kept + segment * P, C), scale * b2)
        sb2 = tl.sum(gradient, axis=1) + lost
        if place > 0:
            sb2 += tl.load(last_bias(p_sums, C))
        if full:
            b2 = stepped_bias(b2, scale, sb2, last_tau, learned, row, C)
            tl.debug_barrier()
            tl.store(last_bias(live, C), b2)
            scale = 1.0
            if learned.p_limit is not None:
                scale = norm_scale(squares + tl.sum(b2 * b2, axis=0), learned, row, C)
        if (n == row.blocks - 1) | (not full):
            tl.debug_barrier()
            tl.store(last_bias(p_sums, C), tl.where(full, 0.0, sb2))
    if learned.p_limit is not None:
        tl.debug_barrier()
        copy_weights(live, live, scale, C)


@triton.jit
def slot_of_weights(p_reset, begin, segment, row, span, C):
    """The address of the weights with which the mini-batch that begins here starts: its slot, or the last one, which
    holds the learned start."""
    at = slot_of(begin, segment, row, span, C)
    if p_reset is not None:
        at = tl.where(is_reset(p_reset, row, begin), (span + C.K) // C.BLOCK + 1, at)
    return at


@triton.jit
def replay(
    row, learned, cuts, p_reset, p_slots, p_scales, gamma, beta, last_tau, segment, from_block, to_block, span, C
):
    """For the backward pass, go through the blocks of a segment again: the weights after every full mini-batch to their
    slots, and the scales by which the last layer is yet to be multiplied; and the sums where a mini-batch continues in
    another block."""
    for n in range(from_block, to_block):
        block = block_of_row(n, row, cuts, C)
        begin, end, place = block.begin, block.end, block.place
        if (end - begin + place) % C.BLOCK == 0:
            full = end - begin + place == C.K
            tl.debug_barrier()
            at = slot_of_weights(p_reset, begin - place, segment, row, span, C)
            scale, live = tl.load(p_scales + at), p_slots + at * C.P
            before = tl.where(n == 0, row.p_sums, p_slots + slot_of(begin, segment, row, span, C) * C.P)
            at = slot_of(end, segment, row, span, C)
            new = p_slots + at * C.P
            keys, target, rate, _good, nan = examples(row, block, C)
            keys, target = tl.trans(keys), tl.trans(target)
            lost = tl.sum(tl.where(block.inside, nan, 0.0), axis=0)
            gradient, _z_hat, _rstd, _error, _u = gradient_of(keys, target, rate, gamma, beta, live, scale, C)
            squares = 0.0
            for c in range(0, 4 * C.D, CHUNK):
                w1, b1, w2 = load_units(live, c, C)
                z1 = dot(tl.trans(w1), keys, C) + b1[:, None]
                g1 = scale * dot(w2, gradient, C) * gelu_slope(z1)
                s1 = dot(keys, tl.trans(g1), C) + lost
                sb1 = tl.sum(g1, axis=1) + lost
                s2 = dot(gelu(z1), tl.trans(gradient), C) + lost
                if place > 0:
                    s1_old, sb1_old, s2_old = load_units(before, c, C)
                    s1 += s1_old
                    sb1 += sb1_old
                    s2 += s2_old
                if full:
                    s1, sb1, s2 = stepped(w1, b1, w2, scale, s1, sb1, s2, last_tau, learned, row, c, C)
                    squares += everything(s2 * s2)
                store_units(new, c, s1, sb1, s2, C)
            sb2 = tl.sum(gradient, axis=1) + lost
            if place > 0:
                sb2 += tl.load(last_bias(before, C))
            b2, old_scale = tl.load(last_bias(live, C)), scale
            scale = 1.0
            if full:
                sb2 = stepped_bias(b2, old_scale, sb2, last_tau, learned, row, C)
                if learned.p_limit is not None:
                    scale = norm_scale(squares + tl.sum(sb2 * sb2, axis=0), learned, row, C)
            tl.store(last_bias(new, C), sb2)
            tl.store(p_scales + at, scale)
