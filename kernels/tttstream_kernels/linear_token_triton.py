"""The linear inner model in token mode: weights in registers over a whole row (README, equations 7 to 9)."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.launch_triton import VARYING
from tttstream_kernels.norm_triton import standardise, through
from tttstream_kernels.token_parts_triton import (
    Sizes,
    block_of_row,
    dot,
    error_terms,
    everything,
    examples,
    is_reset,
    load_tokens,
    matrix,
    norm_scale,
    row_of,
    scores,
    so_far,
    store_tokens,
    tokens_at,
)


@triton.jit
def load_weights(p, C):
    """(W [D, D], b [D]) of a cell."""
    return tl.load(p + matrix(C.D, C.D)), tl.load(p + C.D * C.D + tl.arange(0, C.D))


@triton.jit
def store_weights(p, w, b, C):
    """Put them there."""
    tl.store(p + matrix(C.D, C.D), w)
    tl.store(p + C.D * C.D + tl.arange(0, C.D), b)


@triton.jit
def settle(w, b, learned, row, C):
    """Weights after forgetting and with their norm within its limit, and the scale that this took."""
    scale = 1.0
    if learned.p_forget is not None:
        share = tl.load(learned.p_forget + row.i_head)
        w_start, b_start = load_weights(row.p_start, C)
        w += share * (w_start - w)
        b += share * (b_start - b)
    if learned.p_limit is not None:
        scale = norm_scale(everything(w * w) + tl.sum(b * b, axis=0), learned, row, C)
        w *= scale
        b *= scale
    return w, b, scale


@triton.jit(**VARYING)
def forward(
    streams, learned, results, cuts, p_eta, p_phase, p_lengths, p_reset, sq, sk, sv, s_weights, T, H, segments, span,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, READS: tl.constexpr, KEEP: tl.constexpr,
    RESTORE: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One cell. With KEEP, every `span` tokens the weights go to the checkpoints. The sums that a block leaves to the
    next one stand where those after the call do."""
    C: tl.constexpr = Sizes(D, P, K, BLOCK, READS, KEEP, RESTORE, TYPE, PRECISION)
    row = row_of(streams, learned, cuts, p_eta, p_phase, p_lengths, T, H, sq, sk, sv, C)
    p_sums_end = results.p_sums + row.i_cell * P
    head = row.i_head * D + tl.arange(0, D)
    gamma, beta = tl.load(learned.p_gamma + head)[None, :], tl.load(learned.p_beta + head)[None, :]
    taus, last_tau = tl.load(learned.p_tau + tl.arange(0, BLOCK)), tl.load(learned.p_tau + K - 1)
    w, b = load_weights(learned.p_weights + row.i_row * s_weights + row.i_head * P, C)
    p_sums = row.p_sums
    if (row.blocks == 0) | (BLOCK < K):
        store_weights(p_sums_end, *load_weights(row.p_sums, C), C)
    if BLOCK < K:
        p_sums = p_sums_end
        tl.debug_barrier()
    before = -1
    for n in range(row.blocks):
        block = block_of_row(n, row, cuts, C)
        if p_reset is not None:
            if is_reset(p_reset, row, block.begin):
                w, b = load_weights(row.p_start, C)
        if KEEP:
            segment = block.begin // span
            keep = (segment != before) & ((block.place == 0) | (n == 0))
            if keep:
                store_weights(results.p_kept + (row.i_cell * segments + segment) * P, w, b, C)
            before = tl.where(keep, segment, before)
        if BLOCK < K:
            taus = tl.load(learned.p_tau + block.place // BLOCK * BLOCK + tl.arange(0, BLOCK))
        keys, target, rate, _good, nan = examples(row, block, C)
        nan = tl.where(block.inside, nan, 0.0)
        z = dot(keys, w, C) + b[None, :]
        z_hat, rstd, _error, u = error_terms(z, target, rate[:, None], gamma, beta)
        gradient = through(u, z_hat, rstd)
        for read in tl.static_range(READS):
            x = keys
            if read == 0:
                x = load_tokens(row.p_q, row.s_q, block, C).to(TYPE)
            z = dot(x, w, C) + b[None, :]
            lost = nan
            if read < 2:
                lost = so_far(nan, BLOCK)
                z += dot(scores(x, keys, C) * -taus[:, None], gradient, C)
                if block.place > 0:
                    w_sums, b_sums = load_weights(p_sums, C)
                    z -= taus[:, None] * (dot(x, w_sums, C) + b_sums[None, :])
            z = x.to(tl.float32) + standardise(z)[0] * gamma + beta + lost[:, None]
            p_out = results.p_y if read == 0 else results.p_seen
            store_tokens(tokens_at(p_out, read, row, C), H * D, block, z, C)
        lost = tl.sum(nan, axis=0)
        w_sum = dot(tl.trans(keys), gradient, C) + lost
        b_sum = tl.sum(gradient, axis=0) + lost
        if block.place > 0:
            w_sums, b_sums = load_weights(p_sums, C)
            w_sum += w_sums
            b_sum += b_sums
        full = block.end - block.begin + block.place == K
        if full:
            w, b, _scale = settle(w - last_tau * w_sum, b - last_tau * b_sum, learned, row, C)
        if BLOCK == K:  # a loop with a barrier in it does not load ahead
            if n == row.blocks - 1:
                store_weights(p_sums_end, tl.where(full, 0.0, w_sum), tl.where(full, 0.0, b_sum), C)
        elif (n == row.blocks - 1) | (not full):
            tl.debug_barrier()
            store_weights(p_sums_end, tl.where(full, 0.0, w_sum), tl.where(full, 0.0, b_sum), C)
            tl.debug_barrier()
    store_weights(results.p_weights + row.i_cell * P, w, b, C)
