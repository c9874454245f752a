"""The MLP in token mode, backward: segment by segment from the last, each computed again from its checkpoint (README,
equations 11 to 15)."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.mlp_token_triton import (
    CHUNK,
    column_scores,
    copy_weights,
    first_layer,
    gradient_of,
    hidden_at,
    last_bias,
    last_layer,
    load_units,
    replay,
    slot_of_weights,
    store_units,
)
from tttstream_kernels.norm_triton import gelu, gelu_bend, gelu_slope, gradient_backward, standardise, through
from tttstream_kernels.token_parts_triton import (
    Sizes,
    block_of_row,
    causal,
    dot,
    everything,
    examples,
    first_block,
    is_reset,
    load_tokens,
    row_of,
    slot_of,
    store_tokens,
    tokens_at,
)


@triton.jit
def _along(p_d_last, p_weights, scale, C):
    """<gradient, weights> of the last layer, the weights `scale` times what lies there."""
    sums = tl.sum(tl.load(last_bias(p_d_last, C)) * tl.load(last_bias(p_weights, C)), axis=0)
    for c in range(0, 4 * C.D, CHUNK):
        sums += everything(last_layer(p_d_last, c, C) * last_layer(p_weights, c, C))
    return scale * sums


@triton.jit(**VARYING)
def backward(
    streams, learned, results, cuts, p_eta, p_phase, p_lengths, p_reset, sq, sk, sv, s_weights, T, H, segments, span,
    gradients, room,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, READS: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell, the gradient of whose weights lives where it is wanted in the end; arguments as those of
    `linear_token_backward_triton.backward`."""
    C: tl.constexpr = Sizes(D, P, K, BLOCK, READS, False, RESTORE, TYPE, PRECISION)
    F: tl.constexpr = 4 * D
    row = row_of(streams, learned, cuts, p_eta, p_phase, p_lengths, T, H, sq, sk, sv, C)
    cell, step = row.i_cell, H * D
    fresh = (span + K) // BLOCK + 1  # the slot of the learned start
    p_slots, p_scales = room.p_slots + cell * (fresh + 1) * P, room.p_scales + cell * (fresh + 1)
    p_hidden = room.p_hidden + cell * 5 * BLOCK * F
    p_d_live, p_d_start = gradients.p_weights + cell * P, gradients.p_start + cell * P
    p_d_sums, p_d_sums_end = gradients.p_sums + cell * P, results.p_sums + cell * P
    columns, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    head = row.i_head * D + columns
    gamma, beta = tl.load(learned.p_gamma + head)[:, None], tl.load(learned.p_beta + head)[:, None]
    taus, last_tau = tl.load(learned.p_tau + slots), tl.load(learned.p_tau + K - 1)
    seen = tl.trans(causal(BLOCK))

    copy_weights(p_d_live, results.p_weights + cell * P, 1.0, C)
    if row.blocks == 0:
        copy_weights(p_d_sums, p_d_sums_end, 1.0, C)
    if p_reset is not None:
        copy_weights(p_slots + fresh * P, row.p_start, 1.0, C)
        tl.store(p_scales + fresh, 1.0)
    d_gamma, d_beta = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    parts = tl.arange(0, K // BLOCK)[:, None]
    d_taus = tl.zeros([K // BLOCK, BLOCK], tl.float32)
    d_share, d_limit, keep, share = 0.0, 0.0, 1.0, 0.0
    if learned.p_forget is not None:
        share = tl.load(learned.p_forget + row.i_head)
        keep = 1.0 - share
    for late in range(segments):
        segment = segments - 1 - late
        from_block = first_block(segment, row, cuts, segments, span, C)
        to_block = first_block(segment + 1, row, cuts, segments, span, C)
        if from_block < to_block:
            tl.debug_barrier()
            at = slot_of(block_of_row(from_block, row, cuts, C).begin, segment, row, span, C)
            copy_weights(p_slots + at * P, results.p_kept + (cell * segments + segment) * P, 1.0, C)
            tl.store(p_scales + at, 1.0)
            replay(
                row, learned, cuts, p_reset, p_slots, p_scales, gamma, beta, last_tau, segment, from_block, to_block,
                span, C,
            )  # fmt: skip
        for back in range(from_block, to_block):
            n = to_block - 1 - (back - from_block)
            block = block_of_row(n, row, cuts, C)
            begin, end, place = block.begin, block.end, block.place
            full = end - begin + place == K
            tl.debug_barrier()

            # the weights, what the keys learn from, and Z of their hidden layer
            at = slot_of_weights(p_reset, begin - place, segment, row, span, C)
            scale, live = tl.load(p_scales + at), p_slots + at * P
            if BLOCK < K:
                taus = tl.load(learned.p_tau + place // BLOCK * BLOCK + slots)
            d_slots = tl.zeros([BLOCK], tl.float32)
            keys, target, rate, good, _nan = examples(row, block, C)
            keys, target = tl.trans(keys), tl.trans(target)
            gradient, z_hat, rstd, error, u = gradient_of(keys, target, rate, gamma, beta, live, scale, C)

            # what settles the weights, backwards (equation 15); then the sums and what became of them (11)
            after = slot_of(end, segment, row, span, C)
            p_after = p_slots + after * P
            p_sums = tl.where(n == 0, row.p_sums, p_slots + slot_of(begin, segment, row, span, C) * P)
            last = n == row.blocks - 1
            p_d_some, gone = tl.where(last, p_d_sums_end, p_d_sums), False
            if p_reset is not None:  # which drops the sums
                gone = is_reset(p_reset, row, tl.where(last, begin, end)) & (not last)
            factor = tl.where(full, -last_tau * keep, 1.0)
            scale_after, pull = 1.0, 0.0
            if learned.p_limit is not None:
                if full:
                    scale_after = tl.load(p_scales + after)
                    limit = tl.load(learned.p_limit + row.i_head)
                    along = _along(p_d_live, p_after, scale_after, C) / limit
                    if not RESTORE:
                        along = tl.where(scale_after < 1.0, along, 0.0)
                    d_limit += along
                    pull = scale_after * along / limit
            d_gradient = tl.zeros([D, BLOCK], tl.float32)
            d_keys = tl.zeros([D, BLOCK], tl.float32)
            along = 0.0
            for c in range(0, F, CHUNK):
                w1, b1, w2 = load_units(live, c, C)
                z1 = dot(tl.trans(w1), keys, C) + b1[:, None]
                back1 = scale * dot(w2, gradient, C)
                g1 = back1 * gelu_slope(z1)
                x2 = gelu(z1)
                d_s1, d_sb1, d_s2 = load_units(p_d_live, c, C)
                if full:
                    if learned.p_limit is not None:
                        w2_after = last_layer(p_after, c, C)
                        d_s2 = scale_after * (d_s2 - pull * w2_after)
                    if learned.p_forget is not None:
                        w1_start, b1_start, w2_start = load_units(row.p_start, c, C)
                        d_share += everything(d_s1 * (w1_start - w1)) + everything(d_s2 * (w2_start - scale * w2))
                        d_share += tl.sum(d_sb1 * (b1_start - b1), axis=0)
                        d1, db1, d2 = load_units(p_d_start, c, C)
                        store_units(p_d_start, c, d1 + share * d_s1, db1 + share * d_sb1, d2 + share * d_s2, C)
                    tl.debug_barrier()  # several threads hold each number of the bias
                    store_units(p_d_live, c, keep * d_s1, keep * d_sb1, keep * d_s2, C)
                else:
                    d_s1, d_sb1, d_s2 = load_units(p_d_some, c, C)
                    d_s1, d_sb1 = tl.where(gone, 0.0, d_s1), tl.where(gone, 0.0, d_sb1)
                    d_s2 = tl.where(gone, 0.0, d_s2)
                back_s1 = dot(tl.trans(d_s1), keys, C) + d_sb1[:, None]
                back_s2 = dot(tl.trans(d_s2), x2, C)
                along += everything(back_s1 * g1) + everything(back_s2 * gradient)
                if (n == 0) | (place > 0):
                    if place > 0:
                        s1, sb1, s2 = load_units(p_sums, c, C)
                        along += everything(d_s1 * s1) + tl.sum(d_sb1 * sb1, axis=0) + everything(d_s2 * s2)
                    used = tl.where(place > 0, factor, 0.0)
                    tl.debug_barrier()
                    store_units(p_d_sums, c, used * d_s1, used * d_sb1, used * d_s2, C)
                d_gradient += factor * back_s2
                d_keys += factor * dot(d_s1, g1, C)
                tl.store(hidden_at(p_hidden, 0, c, C), z1)
                tl.store(hidden_at(p_hidden, 1, c, C), back1)
                tl.store(hidden_at(p_hidden, 2, c, C), factor * back_s1)
                d_x2 = factor * dot(d_s2, gradient, C)
                tl.store(hidden_at(p_hidden, 3, c, C), d_x2)
            d_b2 = tl.load(last_bias(p_d_live, C))
            if full:
                if learned.p_limit is not None:
                    d_b2 = scale_after * (d_b2 - pull * tl.load(last_bias(p_after, C)))
                if learned.p_forget is not None:
                    b2_start = tl.load(last_bias(row.p_start, C))
                    d_share += tl.sum(d_b2 * (b2_start - scale * tl.load(last_bias(live, C))), axis=0)
                    tl.store(last_bias(p_d_start, C), tl.load(last_bias(p_d_start, C)) + share * d_b2)
            d_sb2 = d_b2
            if not full:
                d_sb2 = tl.where(gone, 0.0, tl.load(last_bias(p_d_some, C)))
            along += tl.sum(tl.sum(gradient, axis=1) * d_sb2, axis=0)
            if (n == 0) | (place > 0):
                if place > 0:
                    along += tl.sum(d_sb2 * tl.load(last_bias(p_sums, C)), axis=0)
                tl.debug_barrier()
                tl.store(last_bias(p_d_sums, C), tl.where(place > 0, factor, 0.0) * d_sb2)
            d_gradient += factor * d_sb2[:, None]
            if full:
                d_slots -= tl.where(slots == BLOCK - 1, keep * along, 0.0)
                d_share += last_tau * along
                d_b2 *= keep

            for read in tl.static_range(READS):
                x = keys
                if read == 0:
                    x = tl.trans(load_tokens(row.p_q, row.s_q, block, C)).to(TYPE)
                p_out = results.p_y if read == 0 else results.p_seen
                d_out = tl.trans(load_tokens(tokens_at(p_out, read, row, C), step, block, C)).to(tl.float32)
                # forward, as it was
                seeing = column_scores(x, keys, C)
                meeting = tl.zeros([BLOCK, BLOCK], tl.float32)
                z_read = tl.zeros([D, BLOCK], tl.float32)
                tl.debug_barrier()
                for c in range(0, F, CHUNK):
                    w1, b1, w2 = load_units(live, c, C)
                    x1 = dot(tl.trans(w1), x, C) + b1[:, None]
                    if read < 2:
                        z1 = tl.load(hidden_at(p_hidden, 0, c, C))
                        g1 = tl.load(hidden_at(p_hidden, 1, c, C)) * gelu_slope(z1)
                        x1 += dot(g1, seeing * -taus[None, :], C)
                        if place > 0:
                            s1, sb1 = first_layer(p_sums, c, C)
                            x1 -= taus[None, :] * (dot(tl.trans(s1), x, C) + sb1[:, None])
                    x2 = gelu(x1)
                    z_read += scale * dot(tl.trans(w2), x2, C)
                    if read < 2:
                        meeting += dot(tl.trans(gelu(z1)), x2, C)
                        if place > 0:
                            s2 = last_layer(p_sums, c, C)
                            z_read -= taus[None, :] * dot(tl.trans(s2), x2, C)
                    tl.store(hidden_at(p_hidden, 4, c, C), x1)
                z_read += scale * tl.load(last_bias(live, C))[:, None]
                if read < 2:
                    meeting = tl.where(seen, meeting + 1.0, 0.0)
                    z_read += dot(gradient, meeting * -taus[None, :], C)
                    if place > 0:
                        z_read -= taus[None, :] * tl.load(last_bias(p_sums, C))[:, None]
                # and backward
                read_hat, read_rstd = standardise(z_read, 0)
                d_gamma += tl.sum(d_out * read_hat, axis=1)
                d_beta += tl.sum(d_out, axis=1)
                d_read = through(d_out * gamma, read_hat, read_rstd, 0)
                d_b2 += tl.sum(d_read, axis=1)
                d_x = d_out
                scaled = d_read * taus[None, :]
                if read < 2:
                    d_meeting = dot(tl.trans(gradient), d_read, C)
                    d_slots -= tl.sum(d_meeting * meeting, axis=0)
                    d_meeting = tl.where(seen, d_meeting * -taus[None, :], 0.0)
                    d_gradient += dot(d_read, tl.trans(meeting * -taus[None, :]), C)
                    d_seeing = tl.zeros([BLOCK, BLOCK], tl.float32)
                    if place > 0:
                        d_slots -= tl.sum(d_read * tl.load(last_bias(p_sums, C))[:, None], axis=0)
                        d_sb2 = tl.load(last_bias(p_d_sums, C)) - tl.sum(scaled, axis=1)
                        tl.debug_barrier()
                        tl.store(last_bias(p_d_sums, C), d_sb2)
                tl.debug_barrier()
                for c in range(0, F, CHUNK):
                    w1, b1, w2 = load_units(live, c, C)
                    x1 = tl.load(hidden_at(p_hidden, 4, c, C))
                    x2 = gelu(x1)
                    d_x2 = scale * dot(w2, d_read, C)
                    if read < 2:
                        z1 = tl.load(hidden_at(p_hidden, 0, c, C))
                        d_x2 += dot(gelu(z1), d_meeting, C)
                        if place > 0:
                            s2 = last_layer(p_sums, c, C)
                            d_x2 -= dot(s2, scaled, C)
                            d_slots -= tl.sum(d_read * dot(tl.trans(s2), x2, C), axis=0)
                    d_x1 = d_x2 * gelu_slope(x1)
                    if read < 2:
                        d_k2 = tl.load(hidden_at(p_hidden, 3, c, C))
                        d_k2 += dot(x2, tl.trans(d_meeting), C)
                        tl.store(hidden_at(p_hidden, 3, c, C), d_k2)
                        g1 = tl.load(hidden_at(p_hidden, 1, c, C)) * gelu_slope(z1)
                        d_seeing += dot(tl.trans(g1), d_x1, C)
                        d_g1 = tl.load(hidden_at(p_hidden, 2, c, C))
                        d_g1 += dot(d_x1, tl.trans(seeing * -taus[None, :]), C)
                        tl.store(hidden_at(p_hidden, 2, c, C), d_g1)
                        if place > 0:
                            s1, sb1 = first_layer(p_sums, c, C)
                            d_slots -= tl.sum(d_x1 * (dot(tl.trans(s1), x, C) + sb1[:, None]), axis=0)
                            scaled1 = d_x1 * taus[None, :]
                            d_x -= dot(s1, scaled1, C)
                            d_s1, d_sb1, d_s2 = load_units(p_d_sums, c, C)
                            d_s1 -= dot(x, tl.trans(scaled1), C)
                            d_s2 -= dot(x2, tl.trans(scaled), C)
                            tl.debug_barrier()
                            store_units(p_d_sums, c, d_s1, d_sb1 - tl.sum(scaled1, axis=1), d_s2, C)
                    d_x += dot(w1, d_x1, C)
                    d_w1, d_b1, d_w2 = load_units(p_d_live, c, C)
                    d_w1 += dot(x, tl.trans(d_x1), C)
                    d_w2 += dot(x2, tl.trans(d_read), C)
                    tl.debug_barrier()
                    store_units(p_d_live, c, d_w1, d_b1 + tl.sum(d_x1, axis=1), d_w2, C)
                if read < 2:
                    d_slots -= tl.sum(d_seeing * seeing, axis=0)
                    d_seeing = tl.where(seen, d_seeing * -taus[None, :], 0.0)
                    d_x += dot(keys, d_seeing, C)
                    d_keys += dot(x, tl.trans(d_seeing), C)
                if read == 0:
                    store_tokens(tokens_at(gradients.p_q, 0, row, C), step, block, tl.trans(d_x), C)
                else:
                    d_keys += d_x

            # the step of the hidden layer (13): G1 = (G W2^T) gelu'(Z1)
            tl.debug_barrier()
            for c in range(0, F, CHUNK):
                w2 = last_layer(live, c, C)
                z1 = tl.load(hidden_at(p_hidden, 0, c, C))
                back1 = tl.load(hidden_at(p_hidden, 1, c, C))
                d_g1 = tl.load(hidden_at(p_hidden, 2, c, C))
                d_back1 = d_g1 * gelu_slope(z1)
                d_gradient += scale * dot(tl.trans(w2), d_back1, C)
                tl.debug_barrier()
                tl.store(hidden_at(p_hidden, 1, c, C), d_back1)
                tl.store(hidden_at(p_hidden, 2, c, C), d_g1 * back1 * gelu_bend(z1))
            d_u, d_z = gradient_backward(d_gradient, gradient, u, rate[None, :] * gamma * gamma, z_hat, rstd, 0)
            d_rate = tl.sum(d_u * gamma * error, axis=0)
            d_gamma += tl.sum(rate[None, :] * d_u * (error + gamma * z_hat), axis=1)
            d_target = -rate[None, :] * gamma * d_u
            d_beta -= tl.sum(d_target, axis=1)
            d_b2 += tl.sum(d_z, axis=1)
            tl.debug_barrier()
            for c in range(0, F, CHUNK):
                w1, b1, w2 = load_units(live, c, C)
                z1 = tl.load(hidden_at(p_hidden, 0, c, C))
                d_x2 = tl.load(hidden_at(p_hidden, 3, c, C)) + scale * dot(w2, d_z, C)
                d_z1 = tl.load(hidden_at(p_hidden, 2, c, C)) + d_x2 * gelu_slope(z1)
                d_keys += dot(w1, d_z1, C)
                d_w1, d_b1, d_w2 = load_units(p_d_live, c, C)
                d_w1 += dot(keys, tl.trans(d_z1), C)
                d_w2 += dot(gelu(z1), tl.trans(d_z), C)
                d_w2 += dot(tl.load(hidden_at(p_hidden, 1, c, C)), tl.trans(gradient), C)
                tl.debug_barrier()
                store_units(p_d_live, c, d_w1, d_b1 + tl.sum(d_z1, axis=1), d_w2, C)
            tl.debug_barrier()
            tl.store(last_bias(p_d_live, C), d_b2)
            d_keys -= d_target
            p_d_k, p_d_v = tokens_at(gradients.p_k, 0, row, C), tokens_at(gradients.p_v, 0, row, C)
            store_tokens(p_d_k, step, block, tl.where(good[:, None], tl.trans(d_keys), 0.0), C)
            store_tokens(p_d_v, step, block, tl.where(good[:, None], tl.trans(d_target), 0.0), C)
            p_d_eta = gradients.p_eta + row.at + block.token.to(tl.int64) * H
            tl.store(p_d_eta, tl.where(good, d_rate, 0.0), mask=block.inside)
            d_taus += tl.where(parts == place // BLOCK, d_slots[None, :], 0.0)
            if p_reset is not None:
                if is_reset(p_reset, row, begin):
                    tl.debug_barrier()
                    for c in range(0, F, CHUNK):
                        w1, b1, w2 = load_units(p_d_start, c, C)
                        d_w1, d_b1, d_w2 = load_units(p_d_live, c, C)
                        tl.debug_barrier()
                        store_units(p_d_start, c, w1 + d_w1, b1 + d_b1, w2 + d_w2, C)
                        store_units(p_d_live, c, tl.zeros_like(d_w1), tl.zeros_like(d_b1), tl.zeros_like(d_w2), C)
                    b2 = tl.load(last_bias(p_d_start, C)) + d_b2
                    tl.debug_barrier()
                    tl.store(last_bias(p_d_start, C), b2)
                    tl.store(last_bias(p_d_live, C), tl.zeros_like(d_b2))
    tl.store(gradients.p_gamma + cell * D + columns, d_gamma)
    tl.store(gradients.p_beta + cell * D + columns, d_beta)
    tl.store(gradients.p_tau + cell * K + parts * BLOCK + slots[None, :], d_taus)
    if learned.p_forget is not None:
        tl.store(gradients.p_forget + cell, d_share)
    if learned.p_limit is not None:
        tl.store(gradients.p_limit + cell, d_limit)
