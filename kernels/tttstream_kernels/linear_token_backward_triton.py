"""The linear inner model in token mode, backward: segment by segment from the last, each computed again from its
checkpoint (README, equations 11 to 15). The gradient at the weights stays in registers over a whole row."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.linear_token_triton import load_weights, settle, store_weights
from tttstream_kernels.norm_triton import gradient_backward, standardise, through
from tttstream_kernels.token_parts_triton import (
    Sizes,
    block_of_row,
    causal,
    dot,
    error_terms,
    everything,
    examples,
    first_block,
    is_reset,
    load_tokens,
    row_of,
    scores,
    slot_of,
    store_tokens,
    tokens_at,
)


@triton.jit
def _add(p, w, b, C):
    """Add to what other threads of this program may have stored."""
    tl.debug_barrier()
    w_old, b_old = load_weights(p, C)
    store_weights(p, w_old + w, b_old + b, C)
    tl.debug_barrier()


@triton.jit
def _replay(
    row, learned, cuts, p_reset, p_slots, p_scales, gamma, beta, last_tau, segment, from_block, to_block, span, w, b, C
):
    """Go through the blocks of a segment again: the weights after every full mini-batch to their slots, and their
    scales; and the sums where a mini-batch continues in another block."""
    for n in range(from_block, to_block):
        block = block_of_row(n, row, cuts, C)
        if p_reset is not None:
            if is_reset(p_reset, row, block.begin):
                w, b = load_weights(row.p_start, C)
        if (block.end - block.begin + block.place) % C.BLOCK == 0:
            keys, target, rate, _good, nan = examples(row, block, C)
            z = dot(keys, w, C) + b[None, :]
            z_hat, rstd, _error, u = error_terms(z, target, rate[:, None], gamma, beta)
            gradient = through(u, z_hat, rstd)
            lost = tl.sum(tl.where(block.inside, nan, 0.0), axis=0)
            w_sum = dot(tl.trans(keys), gradient, C) + lost
            b_sum = tl.sum(gradient, axis=0) + lost
            if block.place > 0:
                p_before = p_slots + slot_of(block.begin, segment, row, span, C) * C.P
                w_sums, b_sums = load_weights(tl.where(n == 0, row.p_sums, p_before), C)
                w_sum += w_sums
                b_sum += b_sums
            slot = slot_of(block.end, segment, row, span, C)
            if block.end - block.begin + block.place == C.K:
                w, b, scale = settle(w - last_tau * w_sum, b - last_tau * b_sum, learned, row, C)
                store_weights(p_slots + slot * C.P, w, b, C)
                if learned.p_limit is not None:
                    tl.store(p_scales + slot, scale)
            else:
                store_weights(p_slots + slot * C.P, w_sum, b_sum, C)
                tl.debug_barrier()


@triton.jit(**VARYING)
def backward(
    streams, learned, results, cuts, p_eta, p_phase, p_lengths, p_reset, sq, sk, sv, s_weights, T, H, segments, span,
    gradients, room,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, READS: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell: its blocks from the last to the first, segment by segment. In `results` are the gradients at what the
    forward pass gave, and the checkpoints."""
    C: tl.constexpr = Sizes(D, P, K, BLOCK, READS, False, RESTORE, TYPE, PRECISION)
    row = row_of(streams, learned, cuts, p_eta, p_phase, p_lengths, T, H, sq, sk, sv, C)
    cell, step = row.i_cell, H * D
    p_slots = room.p_slots + cell * ((span + K) // BLOCK + 2) * P
    p_scales = room.p_scales + cell * ((span + K) // BLOCK + 2)
    p_d_start = gradients.p_start + cell * P
    columns, slots = tl.arange(0, D), tl.arange(0, BLOCK)
    head = row.i_head * D + columns
    gamma, beta = tl.load(learned.p_gamma + head)[None, :], tl.load(learned.p_beta + head)[None, :]
    taus, last_tau = tl.load(learned.p_tau + slots), tl.load(learned.p_tau + K - 1)
    seen = causal(BLOCK)

    d_w, d_b = load_weights(results.p_weights + cell * P, C)
    if row.blocks == 0:
        store_weights(gradients.p_sums + cell * P, *load_weights(results.p_sums + cell * P, C), C)
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
            block = block_of_row(from_block, row, cuts, C)
            w, b = load_weights(results.p_kept + (cell * segments + segment) * P, C)
            tl.debug_barrier()
            store_weights(p_slots + slot_of(block.begin, segment, row, span, C) * P, w, b, C)
            _replay(
                row, learned, cuts, p_reset, p_slots, p_scales, gamma, beta, last_tau, segment, from_block, to_block,
                span, w, b, C,
            )  # fmt: skip
            tl.debug_barrier()
        for back in range(from_block, to_block):
            n = to_block - 1 - (back - from_block)
            block = block_of_row(n, row, cuts, C)
            begin, end, place = block.begin, block.end, block.place
            full = end - begin + place == K
            if full:  # what settles the weights, backwards (equation 15)
                if learned.p_limit is not None:
                    slot = slot_of(end, segment, row, span, C)
                    w_next, b_next = load_weights(p_slots + slot * P, C)
                    scale, limit = tl.load(p_scales + slot), tl.load(learned.p_limit + row.i_head)
                    along = (everything(d_w * w_next) + tl.sum(d_b * b_next, axis=0)) / limit
                    if not RESTORE:
                        along = tl.where(scale < 1.0, along, 0.0)
                    d_limit += along
                    d_w = scale * (d_w - w_next * (along / limit))
                    d_b = scale * (d_b - b_next * (along / limit))
                if learned.p_forget is not None:
                    _add(p_d_start, share * d_w, share * d_b, C)
            d_sum_w, d_sum_b = d_w, d_b
            factor = tl.where(full, -last_tau * keep, 1.0)
            if not full:
                last = n == row.blocks - 1
                d_sum_w, d_sum_b = load_weights(tl.where(last, results.p_sums, gradients.p_sums) + cell * P, C)
                if p_reset is not None:  # which drops the sums
                    gone = is_reset(p_reset, row, tl.where(last, begin, end)) & (not last)
                    d_sum_w, d_sum_b = tl.where(gone, 0.0, d_sum_w), tl.where(gone, 0.0, d_sum_b)
            p_sums = tl.where(n == 0, row.p_sums, p_slots + slot_of(begin, segment, row, span, C) * P)
            p_found = p_slots + slot_of(begin - place, segment, row, span, C) * P
            if p_reset is not None:
                p_found = tl.where(is_reset(p_reset, row, begin - place), row.p_start, p_found)
            w, b = load_weights(p_found, C)

            if BLOCK < K:
                taus = tl.load(learned.p_tau + place // BLOCK * BLOCK + slots)
            d_slots = tl.zeros([BLOCK], tl.float32)
            keys, target, rate, good, _nan = examples(row, block, C)
            z = dot(keys, w, C) + b[None, :]
            z_hat, rstd, error, u = error_terms(z, target, rate[:, None], gamma, beta)
            gradient = through(u, z_hat, rstd)

            # the sums x_j^T G_j and what became of them (equation 11)
            back_g = dot(keys, d_sum_w, C) + d_sum_b[None, :]
            d_gradient = factor * back_g
            d_keys = factor * dot(gradient, tl.trans(d_sum_w), C)
            if full:
                along = everything(back_g * gradient)
                if place > 0:
                    w_sums, b_sums = load_weights(p_sums, C)
                    along += everything(d_sum_w * w_sums) + tl.sum(d_sum_b * b_sums, axis=0)
                d_slots -= tl.where(slots == BLOCK - 1, keep * along, 0.0)
                if learned.p_forget is not None:
                    w_start, b_start = load_weights(row.p_start, C)
                    d_share += everything(d_w * (w_start - w)) + tl.sum(d_b * (b_start - b), axis=0) + last_tau * along
                    d_w *= keep
                    d_b *= keep
            if (n == 0) | (place > 0):
                used = tl.where(place > 0, factor, 0.0)
                tl.debug_barrier()
                store_weights(gradients.p_sums + cell * P, used * d_sum_w, used * d_sum_b, C)

            for read in tl.static_range(READS):
                x = keys
                if read == 0:
                    x = load_tokens(row.p_q, row.s_q, block, C).to(TYPE)
                p_out = results.p_y if read == 0 else results.p_seen
                d_out = load_tokens(tokens_at(p_out, read, row, C), step, block, C).to(tl.float32)
                seeing = scores(x, keys, C)
                z_read = dot(x, w, C) + b[None, :]
                if read < 2:
                    z_read += dot(seeing * -taus[:, None], gradient, C)
                    if place > 0:
                        w_sums, b_sums = load_weights(p_sums, C)
                        z_read -= taus[:, None] * (dot(x, w_sums, C) + b_sums[None, :])
                read_hat, read_rstd = standardise(z_read)
                d_gamma += tl.sum(d_out * read_hat, axis=0)
                d_beta += tl.sum(d_out, axis=0)
                d_read = through(d_out * gamma, read_hat, read_rstd)
                d_x = d_out + dot(d_read, tl.trans(w), C)
                if read < 2:
                    d_seeing = dot(d_read, tl.trans(gradient), C)
                    d_slots -= tl.sum(d_seeing * seeing, axis=1)
                    d_seeing = tl.where(seen, d_seeing * -taus[:, None], 0.0)
                    d_x += dot(d_seeing, keys, C)
                    d_keys += dot(tl.trans(d_seeing), x, C)
                    d_gradient += dot(tl.trans(seeing * -taus[:, None]), d_read, C)
                    if place > 0:
                        w_sums, b_sums = load_weights(p_sums, C)
                        before = dot(x, w_sums, C) + b_sums[None, :]
                        d_slots -= tl.sum(d_read * before, axis=1)
                        scaled = d_read * taus[:, None]
                        d_x -= dot(scaled, tl.trans(w_sums), C)
                        d_w_sums = dot(tl.trans(x), -scaled, C)
                        _add(gradients.p_sums + cell * P, d_w_sums, -tl.sum(scaled, axis=0), C)
                d_w += dot(tl.trans(x), d_read, C)
                d_b += tl.sum(d_read, axis=0)
                if read == 0:
                    store_tokens(tokens_at(gradients.p_q, 0, row, C), step, block, d_x, C)
                else:
                    d_keys += d_x

            d_u, d_z = gradient_backward(d_gradient, gradient, u, rate[:, None] * gamma * gamma, z_hat, rstd)
            d_rate = tl.sum(d_u * gamma * error, axis=1)
            d_gamma += tl.sum(rate[:, None] * d_u * (error + gamma * z_hat), axis=0)
            d_target = -rate[:, None] * gamma * d_u
            d_beta -= tl.sum(d_target, axis=0)
            d_keys += dot(d_z, tl.trans(w), C) - d_target
            d_w += dot(tl.trans(keys), d_z, C)
            d_b += tl.sum(d_z, axis=0)
            p_d_k, p_d_v = tokens_at(gradients.p_k, 0, row, C), tokens_at(gradients.p_v, 0, row, C)
            store_tokens(p_d_k, step, block, tl.where(good[:, None], d_keys, 0.0), C)
            store_tokens(p_d_v, step, block, tl.where(good[:, None], d_target, 0.0), C)
            p_d_eta = gradients.p_eta + row.at + block.token.to(tl.int64) * H
            tl.store(p_d_eta, tl.where(good, d_rate, 0.0), mask=block.inside)
            d_taus += tl.where(parts == place // BLOCK, d_slots[None, :], 0.0)
            if p_reset is not None:
                if is_reset(p_reset, row, begin):
                    _add(p_d_start, d_w, d_b, C)
                    d_w, d_b = tl.zeros([D, D], tl.float32), tl.zeros([D], tl.float32)
    store_weights(gradients.p_weights + cell * P, d_w, d_b, C)
    tl.store(gradients.p_gamma + cell * D + columns, d_gamma)
    tl.store(gradients.p_beta + cell * D + columns, d_beta)
    tl.store(gradients.p_tau + cell * K + parts * BLOCK + slots[None, :], d_taus)
    if learned.p_forget is not None:
        tl.store(gradients.p_forget + cell, d_share)
    if learned.p_limit is not None:
        tl.store(gradients.p_limit + cell, d_limit)
