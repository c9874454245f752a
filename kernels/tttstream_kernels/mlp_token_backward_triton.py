"""The MLP in token mode, backward: segment by segment from the last, each replayed from its checkpoint (README,
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
    cut_to,
    first_layer,
    hidden_place,
    last_bias,
    last_layer,
    load_units,
    outputs,
    stepped,
    stepped_bias,
    store_units,
)
from tttstream_kernels.norm_triton import gelu, gelu_bend, gelu_slope, gradient_backward, standardise, through
from tttstream_kernels.token_parts_triton import (
    blocks_of,
    causal,
    error_terms,
    everything,
    extent,
    first_block,
    product,
    pupils,
    put,
    shelf,
    starts_anew,
    tile,
)


@triton.jit
def _replay(
    k, v, eta, pending, start, forget, limit, scale, shift, last_tau, old, length, reset, begins, shelves, cuts,
    k_step, v_step, H, segment, from_block, to_block, span,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, RESTORE: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go through the blocks of a segment again: the weights after every full mini-batch to `shelves`, with the factors
    by which the last layer is yet to be cut in `cuts`; and to `shelves` the sums where a mini-batch goes on in another
    block."""
    P: tl.constexpr = 8 * D * D + 5 * D
    slots = tl.arange(0, BLOCK)
    for n in range(from_block, to_block):
        begin, end, place = extent(n, begins, old, length, K, BLOCK)
        if (end - begin + place) % BLOCK == 0:
            full = end - begin + place == K
            tl.debug_barrier()
            at = _place_of(reset, begin - place, segment, old, span, K, BLOCK)
            cut, live = tl.load(cuts + at), shelves + at * P
            before = tl.where(n == 0, pending, shelves + shelf(begin, segment, old, span, BLOCK) * P)
            at = shelf(end, segment, old, span, BLOCK)
            new = shelves + at * P
            skip = place % BLOCK
            token = begin - skip + slots
            inside = (slots >= skip) & (token < end)
            keys, target, rate, _good, nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
            keys, target = tl.trans(keys), tl.trans(target)
            lost = tl.sum(tl.where(inside, nan, 0.0), axis=0)
            z = outputs(live, cut, keys, D, BLOCK, TYPE, PRECISION)
            z_hat, rstd, _error, u = error_terms(z, target, rate[None, :], scale, shift, 0)
            gradient = through(u, z_hat, rstd, 0)
            square = 0.0
            for c in range(0, 4 * D, CHUNK):
                w1, b1, w2 = load_units(live, c, D)
                z1 = product(tl.trans(w1), keys, TYPE, PRECISION) + b1[:, None]
                g1 = cut * product(w2, gradient, TYPE, PRECISION) * gelu_slope(z1)
                s1 = product(keys, tl.trans(g1), TYPE, PRECISION) + lost
                sb1 = tl.sum(g1, axis=1) + lost
                s2 = product(gelu(z1), tl.trans(gradient), TYPE, PRECISION) + lost
                if place > 0:
                    s1_old, sb1_old, s2_old = load_units(before, c, D)
                    s1 += s1_old
                    sb1 += sb1_old
                    s2 += s2_old
                if full:
                    s1, sb1, s2 = stepped(w1, b1, w2, cut, s1, sb1, s2, last_tau, start, forget, c, D)
                    square += everything(s2 * s2)
                store_units(new, c, s1, sb1, s2, D)
            sb2 = tl.sum(gradient, axis=1) + lost
            if place > 0:
                sb2 += tl.load(last_bias(before, D))
            b2, old_cut = tl.load(last_bias(live, D)), cut
            cut = 1.0
            if full:
                sb2 = stepped_bias(b2, old_cut, sb2, last_tau, start, forget, D)
                if limit is not None:
                    cut = cut_to(square + tl.sum(sb2 * sb2, axis=0), limit, RESTORE)
            tl.store(last_bias(new, D), sb2)
            tl.store(cuts + at, cut)


@triton.jit
def _place_of(reset, begin, segment, old, span, K: tl.constexpr, BLOCK: tl.constexpr):
    """Where the weights stand with which the mini-batch that begins here starts: on its shelf, or on the last one,
    which holds the learned start."""
    at = shelf(begin, segment, old, span, BLOCK)
    if reset is not None:
        at = tl.where(starts_anew(reset, begin), (span + K) // BLOCK + 1, at)
    return at


@triton.jit
def _along(d_live, shelves, at, cut, D: tl.constexpr):
    """<gradient, weights> of the last layer, the weights `cut` times what lies there."""
    P: tl.constexpr = 8 * D * D + 5 * D
    sums = tl.sum(tl.load(last_bias(d_live, D)) * tl.load(last_bias(shelves + at * P, D)), axis=0)
    for c in range(0, 4 * D, CHUNK):
        d_w2 = last_layer(d_live, c, D)
        w2 = last_layer(shelves + at * P, c, D)
        sums += everything(d_w2 * w2)
    return cut * sums


@triton.jit(**VARYING)
def backward(
    q, k, v, eta, weights, pending, start, gamma, beta, tau, forget, limit, phase, lengths, reset, count, begins, first,
    kept, shelves, cuts, hidden, d_y, d_seen, d_weights_end, d_pending_end,
    d_q, d_k, d_v, d_eta, d_weights, d_pending, d_start, d_gamma, d_beta, d_tau, d_forget, d_limit,
    q_row, q_step, q_head, k_row, k_step, k_head, v_row, v_step, v_head, weights_row,
    T, H, segments, span,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, READS: tl.constexpr, RESTORE: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell, the gradient of whose weights lives in `d_weights`; arguments as those of
    `linear_token_backward_triton.backward`. hidden [B, H, 5, 4 D, BLOCK]: what belongs to the hidden units of a
    block."""
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // H, cell % H
    P: tl.constexpr = 8 * D * D + 5 * D
    F: tl.constexpr = 4 * D
    learned = (span + K) // BLOCK + 1
    step = H * D
    tokens = row * T * step + head * D
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    eta += row * T * H + head
    d_eta += row * T * H + head
    start += head * P
    pending += cell * P
    d_pending += cell * P
    d_pending_end += cell * P
    d_start += cell * P
    d_live = d_weights + cell * P
    kept += cell * segments * P
    shelves += cell * (learned + 1) * P
    cuts += cell * (learned + 1)
    hidden += cell * 5 * BLOCK * F
    if forget is not None:
        forget += head
    if limit is not None:
        limit += head
    if reset is not None:
        reset += row * T
        begins += row * 2 * (T + 1)
        first += row * (segments + 1)
    columns, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    scale, shift = tl.load(gamma + head * D + columns)[:, None], tl.load(beta + head * D + columns)[:, None]
    taus, last_tau = tl.load(tau + slots), tl.load(tau + K - 1)
    old = tl.load(phase + row)
    length = T
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + row).to(tl.int32), T)
    blocks = blocks_of(count, row, old, length, BLOCK)
    seen = tl.trans(causal(BLOCK))

    copy_weights(d_live, d_weights_end + cell * P, 1.0, D)
    if blocks == 0:
        copy_weights(d_pending, d_pending_end, 1.0, D)
    if reset is not None:
        copy_weights(shelves + learned * P, start, 1.0, D)
        tl.store(cuts + learned, 1.0)
    d_scale, d_shift = tl.zeros([D], tl.float32), tl.zeros([D], tl.float32)
    parts = tl.arange(0, K // BLOCK)[:, None]
    d_taus = tl.zeros([K // BLOCK, BLOCK], tl.float32)
    d_share, d_length, keep, share = 0.0, 0.0, 1.0, 0.0
    if forget is not None:
        share = tl.load(forget)
        keep = 1.0 - share
    for late in range(segments):
        segment = segments - 1 - late
        from_block = first_block(segment, first, old, blocks, span, K, BLOCK)
        to_block = first_block(segment + 1, first, old, blocks, span, K, BLOCK)
        if from_block < to_block:
            begin, end, place = extent(from_block, begins, old, length, K, BLOCK)
            tl.debug_barrier()
            at = shelf(begin, segment, old, span, BLOCK)
            copy_weights(shelves + at * P, kept + segment * P, 1.0, D)
            tl.store(cuts + at, 1.0)
            _replay(
                k, v, eta, pending, start, forget, limit, scale, shift, last_tau, old, length, reset, begins, shelves,
                cuts, k_step, v_step, H, segment, from_block, to_block, span,
                D, K, BLOCK, RESTORE, TYPE, PRECISION,
            )  # fmt: skip
        for back in range(from_block, to_block):
            n = to_block - 1 - (back - from_block)
            begin, end, place = extent(n, begins, old, length, K, BLOCK)
            full = end - begin + place == K
            tl.debug_barrier()

            # the weights, what the keys teach, and Z of their hidden layer
            at = _place_of(reset, begin - place, segment, old, span, K, BLOCK)
            cut, live = tl.load(cuts + at), shelves + at * P
            skip = place % BLOCK
            token = begin - skip + slots
            if BLOCK < K:
                taus = tl.load(tau + place - skip + slots)
            d_slots = tl.zeros([BLOCK], tl.float32)
            inside = (slots >= skip) & (token < end)
            keys, target, rate, good, _nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
            keys, target = tl.trans(keys), tl.trans(target)
            z = outputs(live, cut, keys, D, BLOCK, TYPE, PRECISION)
            z_hat, rstd, error, u = error_terms(z, target, rate[None, :], scale, shift, 0)
            gradient = through(u, z_hat, rstd, 0)

            # what settles the weights, backwards (equation 15); then the sums and what became of them (11)
            after = shelf(end, segment, old, span, BLOCK)
            sums = tl.where(n == 0, pending, shelves + shelf(begin, segment, old, span, BLOCK) * P)
            last = n == blocks - 1
            d_sums, gone = tl.where(last, d_pending_end, d_pending), False
            if reset is not None:  # which drops the sums
                gone = starts_anew(reset, tl.where(last, begin, end)) & (not last)
            factor = tl.where(full, -last_tau * keep, 1.0)
            cut_after, pull = 1.0, 0.0
            if limit is not None:
                if full:
                    cut_after = tl.load(cuts + after)
                    longest = tl.load(limit)
                    along = _along(d_live, shelves, after, cut_after, D) / longest
                    if not RESTORE:
                        along = tl.where(cut_after < 1.0, along, 0.0)
                    d_length += along
                    pull = cut_after * along / longest
            d_gradient = tl.zeros([D, BLOCK], tl.float32)
            d_keys = tl.zeros([D, BLOCK], tl.float32)
            along = 0.0
            for c in range(0, F, CHUNK):
                w1, b1, w2 = load_units(live, c, D)
                z1 = product(tl.trans(w1), keys, TYPE, PRECISION) + b1[:, None]
                back1 = cut * product(w2, gradient, TYPE, PRECISION)
                g1 = back1 * gelu_slope(z1)
                x2 = gelu(z1)
                d_s1, d_sb1, d_s2 = load_units(d_live, c, D)
                if full:
                    if limit is not None:
                        w2_after = last_layer(shelves + after * P, c, D)
                        d_s2 = cut_after * (d_s2 - pull * w2_after)
                    if forget is not None:
                        w1_start, b1_start, w2_start = load_units(start, c, D)
                        d_share += everything(d_s1 * (w1_start - w1)) + everything(d_s2 * (w2_start - cut * w2))
                        d_share += tl.sum(d_sb1 * (b1_start - b1), axis=0)
                        d1, db1, d2 = load_units(d_start, c, D)
                        store_units(d_start, c, d1 + share * d_s1, db1 + share * d_sb1, d2 + share * d_s2, D)
                    tl.debug_barrier()  # several threads hold each number of the bias
                    store_units(d_live, c, keep * d_s1, keep * d_sb1, keep * d_s2, D)
                else:
                    d_s1, d_sb1, d_s2 = load_units(d_sums, c, D)
                    d_s1, d_sb1 = tl.where(gone, 0.0, d_s1), tl.where(gone, 0.0, d_sb1)
                    d_s2 = tl.where(gone, 0.0, d_s2)
                taught1 = product(tl.trans(d_s1), keys, TYPE, PRECISION) + d_sb1[:, None]
                taught2 = product(tl.trans(d_s2), x2, TYPE, PRECISION)
                along += everything(taught1 * g1) + everything(taught2 * gradient)
                if (n == 0) | (place > 0):
                    if place > 0:
                        s1, sb1, s2 = load_units(sums, c, D)
                        along += everything(d_s1 * s1) + tl.sum(d_sb1 * sb1, axis=0) + everything(d_s2 * s2)
                    used = tl.where(place > 0, factor, 0.0)
                    tl.debug_barrier()
                    store_units(d_pending, c, used * d_s1, used * d_sb1, used * d_s2, D)
                d_gradient += factor * taught2
                d_keys += factor * product(d_s1, g1, TYPE, PRECISION)
                tl.store(hidden_place(hidden, 0, c, BLOCK, D), z1)
                tl.store(hidden_place(hidden, 1, c, BLOCK, D), back1)
                tl.store(hidden_place(hidden, 2, c, BLOCK, D), factor * taught1)
                d_x2 = factor * product(d_s2, gradient, TYPE, PRECISION)
                tl.store(hidden_place(hidden, 3, c, BLOCK, D), d_x2)
            d_b2 = tl.load(last_bias(d_live, D))
            if full:
                if limit is not None:
                    d_b2 = cut_after * (d_b2 - pull * tl.load(last_bias(shelves + after * P, D)))
                if forget is not None:
                    b2_start = tl.load(last_bias(start, D))
                    d_share += tl.sum(d_b2 * (b2_start - cut * tl.load(last_bias(live, D))), axis=0)
                    tl.store(last_bias(d_start, D), tl.load(last_bias(d_start, D)) + share * d_b2)
            d_sb2 = d_b2
            if not full:
                d_sb2 = tl.where(gone, 0.0, tl.load(last_bias(d_sums, D)))
            along += tl.sum(tl.sum(gradient, axis=1) * d_sb2, axis=0)
            if (n == 0) | (place > 0):
                if place > 0:
                    along += tl.sum(d_sb2 * tl.load(last_bias(sums, D)), axis=0)
                tl.debug_barrier()
                tl.store(last_bias(d_pending, D), tl.where(place > 0, factor, 0.0) * d_sb2)
            d_gradient += factor * d_sb2[:, None]
            if full:
                d_slots -= tl.where(slots == BLOCK - 1, keep * along, 0.0)
                d_share += last_tau * along
                d_b2 *= keep

            for read in tl.static_range(READS):
                if read == 0:
                    x = tl.trans(tile(q, q_step, token, inside, D)).to(TYPE)
                    d_out = tl.trans(tile(d_y + tokens, step, token, inside, D)).to(tl.float32)
                else:
                    x = keys
                    other = (read - 1) * (tl.num_programs(0).to(tl.int64) * T * D)
                    d_out = tl.trans(tile(d_seen + other + tokens, step, token, inside, D))
                # forward, as it was
                seeing = column_scores(x, keys, BLOCK, TYPE, PRECISION)
                meeting = tl.zeros([BLOCK, BLOCK], tl.float32)
                z_read = tl.zeros([D, BLOCK], tl.float32)
                tl.debug_barrier()
                for c in range(0, F, CHUNK):
                    w1, b1, w2 = load_units(live, c, D)
                    x1 = product(tl.trans(w1), x, TYPE, PRECISION) + b1[:, None]
                    if read < 2:
                        z1 = tl.load(hidden_place(hidden, 0, c, BLOCK, D))
                        g1 = tl.load(hidden_place(hidden, 1, c, BLOCK, D)) * gelu_slope(z1)
                        x1 += product(g1, seeing * -taus[None, :], TYPE, PRECISION)
                        if place > 0:
                            s1, sb1 = first_layer(sums, c, D)
                            x1 -= taus[None, :] * (product(tl.trans(s1), x, TYPE, PRECISION) + sb1[:, None])
                    x2 = gelu(x1)
                    z_read += cut * product(tl.trans(w2), x2, TYPE, PRECISION)
                    if read < 2:
                        meeting += product(tl.trans(gelu(z1)), x2, TYPE, PRECISION)
                        if place > 0:
                            s2 = last_layer(sums, c, D)
                            z_read -= taus[None, :] * product(tl.trans(s2), x2, TYPE, PRECISION)
                    tl.store(hidden_place(hidden, 4, c, BLOCK, D), x1)
                z_read += cut * tl.load(last_bias(live, D))[:, None]
                if read < 2:
                    meeting = tl.where(seen, meeting + 1.0, 0.0)
                    z_read += product(gradient, meeting * -taus[None, :], TYPE, PRECISION)
                    if place > 0:
                        z_read -= taus[None, :] * tl.load(last_bias(sums, D))[:, None]
                # and backward
                read_hat, read_rstd = standardise(z_read, 0)
                d_scale += tl.sum(d_out * read_hat, axis=1)
                d_shift += tl.sum(d_out, axis=1)
                d_read = through(d_out * scale, read_hat, read_rstd, 0)
                d_b2 += tl.sum(d_read, axis=1)
                d_x = d_out
                scaled = d_read * taus[None, :]
                if read < 2:
                    d_meeting = product(tl.trans(gradient), d_read, TYPE, PRECISION)
                    d_slots -= tl.sum(d_meeting * meeting, axis=0)
                    d_meeting = tl.where(seen, d_meeting * -taus[None, :], 0.0)
                    d_gradient += product(d_read, tl.trans(meeting * -taus[None, :]), TYPE, PRECISION)
                    d_seeing = tl.zeros([BLOCK, BLOCK], tl.float32)
                    if place > 0:
                        d_slots -= tl.sum(d_read * tl.load(last_bias(sums, D))[:, None], axis=0)
                        d_sb2 = tl.load(last_bias(d_pending, D)) - tl.sum(scaled, axis=1)
                        tl.debug_barrier()
                        tl.store(last_bias(d_pending, D), d_sb2)
                tl.debug_barrier()
                for c in range(0, F, CHUNK):
                    w1, b1, w2 = load_units(live, c, D)
                    x1 = tl.load(hidden_place(hidden, 4, c, BLOCK, D))
                    x2 = gelu(x1)
                    d_x2 = cut * product(w2, d_read, TYPE, PRECISION)
                    if read < 2:
                        z1 = tl.load(hidden_place(hidden, 0, c, BLOCK, D))
                        d_x2 += product(gelu(z1), d_meeting, TYPE, PRECISION)
                        if place > 0:
                            s2 = last_layer(sums, c, D)
                            d_x2 -= product(s2, scaled, TYPE, PRECISION)
                            d_slots -= tl.sum(d_read * product(tl.trans(s2), x2, TYPE, PRECISION), axis=0)
                    d_x1 = d_x2 * gelu_slope(x1)
                    if read < 2:
                        d_k2 = tl.load(hidden_place(hidden, 3, c, BLOCK, D))
                        d_k2 += product(x2, tl.trans(d_meeting), TYPE, PRECISION)
                        tl.store(hidden_place(hidden, 3, c, BLOCK, D), d_k2)
                        g1 = tl.load(hidden_place(hidden, 1, c, BLOCK, D)) * gelu_slope(z1)
                        d_seeing += product(tl.trans(g1), d_x1, TYPE, PRECISION)
                        d_g1 = tl.load(hidden_place(hidden, 2, c, BLOCK, D))
                        d_g1 += product(d_x1, tl.trans(seeing * -taus[None, :]), TYPE, PRECISION)
                        tl.store(hidden_place(hidden, 2, c, BLOCK, D), d_g1)
                        if place > 0:
                            s1, sb1 = first_layer(sums, c, D)
                            d_slots -= tl.sum(d_x1 * (product(tl.trans(s1), x, TYPE, PRECISION) + sb1[:, None]), axis=0)
                            scaled1 = d_x1 * taus[None, :]
                            d_x -= product(s1, scaled1, TYPE, PRECISION)
                            d_s1, d_sb1, d_s2 = load_units(d_pending, c, D)
                            d_s1 -= product(x, tl.trans(scaled1), TYPE, PRECISION)
                            d_s2 -= product(x2, tl.trans(scaled), TYPE, PRECISION)
                            tl.debug_barrier()
                            store_units(d_pending, c, d_s1, d_sb1 - tl.sum(scaled1, axis=1), d_s2, D)
                    d_x += product(w1, d_x1, TYPE, PRECISION)
                    d_w1, d_b1, d_w2 = load_units(d_live, c, D)
                    d_w1 += product(x, tl.trans(d_x1), TYPE, PRECISION)
                    d_w2 += product(x2, tl.trans(d_read), TYPE, PRECISION)
                    tl.debug_barrier()
                    store_units(d_live, c, d_w1, d_b1 + tl.sum(d_x1, axis=1), d_w2, D)
                if read < 2:
                    d_slots -= tl.sum(d_seeing * seeing, axis=0)
                    d_seeing = tl.where(seen, d_seeing * -taus[None, :], 0.0)
                    d_x += product(keys, d_seeing, TYPE, PRECISION)
                    d_keys += product(x, tl.trans(d_seeing), TYPE, PRECISION)
                if read == 0:
                    put(d_q + tokens, step, token, inside, tl.trans(d_x), D)
                else:
                    d_keys += d_x

            # the step of the hidden layer (13): G1 = (G W2^T) gelu'(Z1)
            tl.debug_barrier()
            for c in range(0, F, CHUNK):
                w2 = last_layer(live, c, D)
                z1 = tl.load(hidden_place(hidden, 0, c, BLOCK, D))
                back1 = tl.load(hidden_place(hidden, 1, c, BLOCK, D))
                d_g1 = tl.load(hidden_place(hidden, 2, c, BLOCK, D))
                d_back1 = d_g1 * gelu_slope(z1)
                d_gradient += cut * product(tl.trans(w2), d_back1, TYPE, PRECISION)
                tl.debug_barrier()
                tl.store(hidden_place(hidden, 1, c, BLOCK, D), d_back1)
                tl.store(hidden_place(hidden, 2, c, BLOCK, D), d_g1 * back1 * gelu_bend(z1))
            d_u, d_z = gradient_backward(d_gradient, gradient, u, rate[None, :] * scale * scale, z_hat, rstd, 0)
            d_rate = tl.sum(d_u * scale * error, axis=0)
            d_scale += tl.sum(rate[None, :] * d_u * (error + scale * z_hat), axis=1)
            d_target = -rate[None, :] * scale * d_u
            d_shift -= tl.sum(d_target, axis=1)
            d_b2 += tl.sum(d_z, axis=1)
            tl.debug_barrier()
            for c in range(0, F, CHUNK):
                w1, b1, w2 = load_units(live, c, D)
                z1 = tl.load(hidden_place(hidden, 0, c, BLOCK, D))
                d_x2 = tl.load(hidden_place(hidden, 3, c, BLOCK, D)) + cut * product(w2, d_z, TYPE, PRECISION)
                d_z1 = tl.load(hidden_place(hidden, 2, c, BLOCK, D)) + d_x2 * gelu_slope(z1)
                d_keys += product(w1, d_z1, TYPE, PRECISION)
                d_w1, d_b1, d_w2 = load_units(d_live, c, D)
                d_w1 += product(keys, tl.trans(d_z1), TYPE, PRECISION)
                d_w2 += product(gelu(z1), tl.trans(d_z), TYPE, PRECISION)
                d_w2 += product(tl.load(hidden_place(hidden, 1, c, BLOCK, D)), tl.trans(gradient), TYPE, PRECISION)
                tl.debug_barrier()
                store_units(d_live, c, d_w1, d_b1 + tl.sum(d_z1, axis=1), d_w2, D)
            tl.debug_barrier()
            tl.store(last_bias(d_live, D), d_b2)
            d_keys -= d_target
            put(d_k + tokens, step, token, inside, tl.where(good[:, None], tl.trans(d_keys), 0.0), D)
            put(d_v + tokens, step, token, inside, tl.where(good[:, None], tl.trans(d_target), 0.0), D)
            tl.store(d_eta + token.to(tl.int64) * H, tl.where(good, d_rate, 0.0), mask=inside)
            d_taus += tl.where(parts == place // BLOCK, d_slots[None, :], 0.0)
            if reset is not None:
                if starts_anew(reset, begin):
                    tl.debug_barrier()
                    for c in range(0, F, CHUNK):
                        w1, b1, w2 = load_units(d_start, c, D)
                        d_w1, d_b1, d_w2 = load_units(d_live, c, D)
                        tl.debug_barrier()
                        store_units(d_start, c, w1 + d_w1, b1 + d_b1, w2 + d_w2, D)
                        store_units(d_live, c, tl.zeros_like(d_w1), tl.zeros_like(d_b1), tl.zeros_like(d_w2), D)
                    b2 = tl.load(last_bias(d_start, D)) + d_b2
                    tl.debug_barrier()
                    tl.store(last_bias(d_start, D), b2)
                    tl.store(last_bias(d_live, D), tl.zeros_like(d_b2))
    tl.store(d_gamma + cell * D + columns, d_scale)
    tl.store(d_beta + cell * D + columns, d_shift)
    tl.store(d_tau + cell * K + parts * BLOCK + slots[None, :], d_taus)
    if forget is not None:
        tl.store(d_forget + cell, d_share)
    if limit is not None:
        tl.store(d_limit + cell, d_length)
