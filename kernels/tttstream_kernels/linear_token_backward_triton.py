"""The linear inner model in token mode, backward: segment by segment from the last, each replayed from its checkpoint
(README, equations 11 to 15). The gradient at the weights stays in registers over a whole row."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.linear_token_triton import load_weights, settled, store_weights
from tttstream_kernels.norm_triton import gradient_backward, standardise, through
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
    scores,
    shelf,
    starts_anew,
    tile,
)


@triton.jit
def _add(base, w, b, D: tl.constexpr):
    """Add to what other threads of this program may have stored."""
    tl.debug_barrier()
    w_old, b_old = load_weights(base, D)
    store_weights(base, w_old + w, b_old + b, D)
    tl.debug_barrier()


@triton.jit
def _replay(
    k, v, eta, pending, start, forget, limit, scale, shift, last_tau, old, length, reset, begins, shelves, cuts,
    k_step, v_step, H, segment, from_block, to_block, span, w, b,
    D: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, RESTORE: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go through the blocks of a segment again: the weights after every full mini-batch to `shelves`, the factors by
    which they were cut to `cuts`; and to `shelves` the sums where a mini-batch goes on in another block."""
    P: tl.constexpr = D * D + D
    slots = tl.arange(0, BLOCK)
    for n in range(from_block, to_block):
        begin, end, place = extent(n, begins, old, length, K, BLOCK)
        if reset is not None:
            if starts_anew(reset, begin):
                w, b = load_weights(start, D)
        if (end - begin + place) % BLOCK == 0:
            skip = place % BLOCK
            token = begin - skip + slots
            inside = (slots >= skip) & (token < end)
            keys, target, rate, _good, nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
            z = product(keys, w, TYPE, PRECISION) + b[None, :]
            z_hat, rstd, _error, u = error_terms(z, target, rate[:, None], scale, shift)
            gradient = through(u, z_hat, rstd)
            lost = tl.sum(tl.where(inside, nan, 0.0), axis=0)
            w_sum = product(tl.trans(keys), gradient, TYPE, PRECISION) + lost
            b_sum = tl.sum(gradient, axis=0) + lost
            if place > 0:
                before = tl.where(n == 0, pending, shelves + shelf(begin, segment, old, span, BLOCK) * P)
                w_pending, b_pending = load_weights(before, D)
                w_sum += w_pending
                b_sum += b_pending
            at = shelf(end, segment, old, span, BLOCK)
            if end - begin + place == K:
                w, b, cut = settled(w - last_tau * w_sum, b - last_tau * b_sum, start, forget, limit, D, RESTORE)
                store_weights(shelves + at * P, w, b, D)
                if limit is not None:
                    tl.store(cuts + at, cut)
            else:
                store_weights(shelves + at * P, w_sum, b_sum, D)
                tl.debug_barrier()


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
    """One cell: its blocks from the last to the first, segment by segment, each replayed from its checkpoint. The
    gradients of what cells share come out cell by cell: d_start [B, H, P] (zeros before), d_gamma, d_beta [B, H, D],
    d_tau [B, H, K], d_forget, d_limit [B, H]."""
    cell = tl.program_id(0).to(tl.int64)
    row, head = cell // H, cell % H
    P: tl.constexpr = D * D + D
    step = H * D
    tokens = row * T * step + head * D
    q += row * q_row + head * q_head
    k += row * k_row + head * k_head
    v += row * v_row + head * v_head
    eta += row * T * H + head
    d_eta += row * T * H + head
    start += head * P
    pending += cell * P
    d_start += cell * P
    kept += cell * segments * P
    shelves += cell * ((span + K) // BLOCK + 2) * P
    cuts += cell * ((span + K) // BLOCK + 2)
    if forget is not None:
        forget += head
    if limit is not None:
        limit += head
    if reset is not None:
        reset += row * T
        begins += row * 2 * (T + 1)
        first += row * (segments + 1)
    columns, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    scale, shift = tl.load(gamma + head * D + columns)[None, :], tl.load(beta + head * D + columns)[None, :]
    taus, last_tau = tl.load(tau + slots), tl.load(tau + K - 1)
    old = tl.load(phase + row)
    length = T
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + row).to(tl.int32), T)
    blocks = blocks_of(count, row, old, length, BLOCK)
    seen = causal(BLOCK)

    dw, db = load_weights(d_weights_end + cell * P, D)
    if blocks == 0:
        store_weights(d_pending + cell * P, *load_weights(d_pending_end + cell * P, D), D)
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
            w, b = load_weights(kept + segment * P, D)
            tl.debug_barrier()
            store_weights(shelves + shelf(begin, segment, old, span, BLOCK) * P, w, b, D)
            _replay(
                k, v, eta, pending, start, forget, limit, scale, shift, last_tau, old, length, reset, begins, shelves,
                cuts, k_step, v_step, H, segment, from_block, to_block, span, w, b,
                D, K, BLOCK, RESTORE, TYPE, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
        for back in range(from_block, to_block):
            n = to_block - 1 - (back - from_block)
            begin, end, place = extent(n, begins, old, length, K, BLOCK)
            full = end - begin + place == K
            at = shelf(end, segment, old, span, BLOCK)
            if full:  # what settles the weights, backwards (equation 15)
                if limit is not None:
                    w_next, b_next = load_weights(shelves + at * P, D)
                    cut, longest = tl.load(cuts + at), tl.load(limit)
                    along = (everything(dw * w_next) + tl.sum(db * b_next, axis=0)) / longest
                    if not RESTORE:
                        along = tl.where(cut < 1.0, along, 0.0)
                    d_length += along
                    dw = cut * (dw - w_next * (along / longest))
                    db = cut * (db - b_next * (along / longest))
                if forget is not None:
                    _add(d_start, share * dw, share * db, D)
            d_sum_w, d_sum_b = dw, db
            factor = tl.where(full, -last_tau * keep, 1.0)
            if not full:
                last = n == blocks - 1
                d_sum_w, d_sum_b = load_weights(tl.where(last, d_pending_end, d_pending) + cell * P, D)
                if reset is not None:  # which drops the sums
                    gone = starts_anew(reset, tl.where(last, begin, end)) & (not last)
                    d_sum_w, d_sum_b = tl.where(gone, 0.0, d_sum_w), tl.where(gone, 0.0, d_sum_b)
            sums = tl.where(n == 0, pending, shelves + shelf(begin, segment, old, span, BLOCK) * P)
            found = shelves + shelf(begin - place, segment, old, span, BLOCK) * P
            if reset is not None:
                found = tl.where(starts_anew(reset, begin - place), start, found)
            w, b = load_weights(found, D)

            skip = place % BLOCK
            token = begin - skip + slots
            if BLOCK < K:
                taus = tl.load(tau + place - skip + slots)
            d_slots = tl.zeros([BLOCK], tl.float32)
            inside = (slots >= skip) & (token < end)
            keys, target, rate, good, _nan = pupils(k, k_step, v, v_step, eta, H, token, inside, D, TYPE)
            z = product(keys, w, TYPE, PRECISION) + b[None, :]
            z_hat, rstd, error, u = error_terms(z, target, rate[:, None], scale, shift)
            gradient = through(u, z_hat, rstd)

            # the sums x_j^T G_j and what became of them (equation 11)
            taught = product(keys, d_sum_w, TYPE, PRECISION) + d_sum_b[None, :]
            d_gradient = factor * taught
            d_keys = factor * product(gradient, tl.trans(d_sum_w), TYPE, PRECISION)
            if full:
                along = everything(taught * gradient)
                if place > 0:
                    w_pending, b_pending = load_weights(sums, D)
                    along += everything(d_sum_w * w_pending) + tl.sum(d_sum_b * b_pending, axis=0)
                d_slots -= tl.where(slots == BLOCK - 1, keep * along, 0.0)
                if forget is not None:
                    w_start, b_start = load_weights(start, D)
                    d_share += everything(dw * (w_start - w)) + tl.sum(db * (b_start - b), axis=0) + last_tau * along
                    dw *= keep
                    db *= keep
            if (n == 0) | (place > 0):
                used = tl.where(place > 0, factor, 0.0)
                tl.debug_barrier()
                store_weights(d_pending + cell * P, used * d_sum_w, used * d_sum_b, D)

            for read in tl.static_range(READS):
                if read == 0:
                    x = tile(q, q_step, token, inside, D).to(TYPE)
                    d_out = tile(d_y + tokens, step, token, inside, D).to(tl.float32)
                else:
                    x = keys
                    other = (read - 1) * (tl.num_programs(0).to(tl.int64) * T * D)
                    d_out = tile(d_seen + other + tokens, step, token, inside, D)
                seeing = scores(x, keys, BLOCK, TYPE, PRECISION)
                z_read = product(x, w, TYPE, PRECISION) + b[None, :]
                if read < 2:
                    z_read += product(seeing * -taus[:, None], gradient, TYPE, PRECISION)
                    if place > 0:
                        w_pending, b_pending = load_weights(sums, D)
                        before = product(x, w_pending, TYPE, PRECISION) + b_pending[None, :]
                        z_read -= taus[:, None] * before
                read_hat, read_rstd = standardise(z_read)
                d_scale += tl.sum(d_out * read_hat, axis=0)
                d_shift += tl.sum(d_out, axis=0)
                d_read = through(d_out * scale, read_hat, read_rstd)
                d_x = d_out + product(d_read, tl.trans(w), TYPE, PRECISION)
                if read < 2:
                    d_seeing = product(d_read, tl.trans(gradient), TYPE, PRECISION)
                    d_slots -= tl.sum(d_seeing * seeing, axis=1)
                    d_seeing = tl.where(seen, d_seeing * -taus[:, None], 0.0)
                    d_x += product(d_seeing, keys, TYPE, PRECISION)
                    d_keys += product(tl.trans(d_seeing), x, TYPE, PRECISION)
                    d_gradient += product(tl.trans(seeing * -taus[:, None]), d_read, TYPE, PRECISION)
                    if place > 0:
                        w_pending, b_pending = load_weights(sums, D)
                        before = product(x, w_pending, TYPE, PRECISION) + b_pending[None, :]
                        d_slots -= tl.sum(d_read * before, axis=1)
                        scaled = d_read * taus[:, None]
                        d_x -= product(scaled, tl.trans(w_pending), TYPE, PRECISION)
                        d_pending_w = product(tl.trans(x), -scaled, TYPE, PRECISION)
                        _add(d_pending + cell * P, d_pending_w, -tl.sum(scaled, axis=0), D)
                dw += product(tl.trans(x), d_read, TYPE, PRECISION)
                db += tl.sum(d_read, axis=0)
                if read == 0:
                    put(d_q + tokens, step, token, inside, d_x, D)
                else:
                    d_keys += d_x

            d_u, d_z = gradient_backward(d_gradient, gradient, u, rate[:, None] * scale * scale, z_hat, rstd)
            put_rate = tl.sum(d_u * scale * error, axis=1)
            d_scale += tl.sum(rate[:, None] * d_u * (error + scale * z_hat), axis=0)
            d_target = -rate[:, None] * scale * d_u
            d_shift -= tl.sum(d_target, axis=0)
            d_keys += product(d_z, tl.trans(w), TYPE, PRECISION) - d_target
            dw += product(tl.trans(keys), d_z, TYPE, PRECISION)
            db += tl.sum(d_z, axis=0)
            put(d_k + tokens, step, token, inside, tl.where(good[:, None], d_keys, 0.0), D)
            put(d_v + tokens, step, token, inside, tl.where(good[:, None], d_target, 0.0), D)
            tl.store(d_eta + token.to(tl.int64) * H, tl.where(good, put_rate, 0.0), mask=inside)
            d_taus += tl.where(parts == place // BLOCK, d_slots[None, :], 0.0)
            if reset is not None:
                if starts_anew(reset, begin):
                    _add(d_start, dw, db, D)
                    dw, db = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    store_weights(d_weights + cell * P, dw, db, D)
    tl.store(d_gamma + cell * D + columns, d_scale)
    tl.store(d_beta + cell * D + columns, d_shift)
    tl.store(d_tau + cell * K + parts * BLOCK + slots[None, :], d_taus)
    if forget is not None:
        tl.store(d_forget + cell, d_share)
    if limit is not None:
        tl.store(d_limit + cell, d_length)
