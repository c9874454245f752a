"""Shared by the token-mode kernels: the position of a mini-batch in its row, its tokens, and its causal mask.

One program runs one head of one row and goes through the blocks of its row: a block is a mini-batch, or BLOCK places of
it where a whole one does not fit into a multiprocessor, or what the call holds of those. Blocks end with their places,
at a reset, and with the row; the sums of a mini-batch continue from one of its blocks to the next. Slot i of a block is
the i-th of its places; slots without a token are zeros with a learning rate of zero. Pointers begin with p_, strides
with s_, indices with i_.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from collections import namedtuple
from typing import Any

import torch
import triton
import triton.language as tl

from tttstream_kernels.norm_triton import INTERPRETED, standardise

Sizes = namedtuple("Sizes", "D P K BLOCK READS KEEP RESTORE TYPE PRECISION")
"""Constants at compile time. D: width of a head; P: weights of a cell; K: tokens of a mini-batch, BLOCK: of a block;
READS: 1, or 3 with what keys see after and before they are learned; KEEP: whether checkpoints are wanted; RESTORE:
whether the norm is put back to the limit; TYPE, PRECISION: of products."""


Streams = namedtuple("Streams", "p_q p_k p_v")
"""q, k, v [B, T, H, D]."""


Learned = namedtuple("Learned", "p_weights p_sums p_start p_gamma p_beta p_tau p_forget p_limit")
"""Weights and pending sums with which rows begin [B, H, P], what every head has of its own, and tau [K]. forget and
limit: [H] or None."""


Cuts = namedtuple("Cuts", "p_number p_begins p_first")
"""The blocks of rows with resets (`blocks.Blocks`); None without resets."""


Results = namedtuple("Results", "p_y p_seen p_weights p_sums p_kept")
"""Outputs of the forward pass: outputs, what keys see [READS - 1, B, T, H, D], weights, sums, checkpoints [B, H,
segments, P]."""


Gradients = namedtuple(
    "Gradients",
    "p_q p_k p_v p_eta p_weights p_sums p_start p_gamma p_beta p_tau p_forget p_limit",
)
"""Outputs of the backward pass: start [B, H, P] (zeros before), gamma, beta [B, H, D], tau [B, H, K], forget and limit
[B, H] cell by cell."""


Room = namedtuple("Room", "p_slots p_scales p_hidden")
"""Scratch memory of the backward pass: weights and sums at the ends of a segment's blocks, the scales of the former,
and what belongs to the hidden units of a block [B, H, 5, 4 D, BLOCK]."""


Row = namedtuple(
    "Row",
    "p_q p_k p_v p_eta s_q s_k s_v p_start p_sums at i_cell i_row i_head heads tokens length phase blocks",
)
"""A head of a row: its tokens and the strides between them, what is learned of its head, its indices, the tokens of
a row and how many count, the phase with which it begins, and how many blocks it has."""


Block = namedtuple("Block", "begin end place token inside")
"""Tokens of a block: the first, one past the last, the place of the first in its mini-batch; and the token of each
slot with whether there is one."""


def numerics(dtype: torch.dtype) -> dict[str, Any]:
    """The type of a product's operands and how it is taken, for tokens of this type. float16 goes as tf32, which has
    its mantissa and the exponent that gradients need."""
    if dtype == torch.bfloat16:
        return {"TYPE": tl.bfloat16, "PRECISION": "rounded" if INTERPRETED else "ieee"}
    return {"TYPE": tl.float32, "PRECISION": "tf32" if dtype == torch.float16 else "tf32x3"}


@triton.jit
def dot(a, b, C):
    """a b with operands in the compute type, sums in float32. The interpreter multiplies bfloat16 as whole numbers:
    there the operands are "rounded" only."""
    if C.PRECISION == "rounded":
        return tl.dot(a.to(C.TYPE).to(tl.float32), b.to(C.TYPE).to(tl.float32))
    return tl.dot(a.to(C.TYPE), b.to(C.TYPE), input_precision=C.PRECISION)


@triton.jit
def matrix(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of a matrix that lies row after row."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def everything(x):
    """Sum of all of a matrix."""
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def row_of(streams, learned, cuts, p_eta, p_phase, p_lengths, tokens, heads, sq, sk, sv, C):
    """The head and row of this program."""
    i_cell = tl.program_id(0).to(tl.int64)
    i_row, i_head = i_cell // heads, i_cell % heads
    at = i_row * tokens * heads + i_head
    phase = tl.load(p_phase + i_row)
    length = tokens
    if p_lengths is not None:
        length = tl.minimum(tl.load(p_lengths + i_row).to(tl.int32), tokens)
    if cuts.p_number is not None:
        blocks = tl.load(cuts.p_number + i_row)
    else:
        blocks = tl.where(length > 0, (phase % C.BLOCK + length + C.BLOCK - 1) // C.BLOCK, 0)
    return Row(
        streams.p_q + i_row * sq[0] + i_head * sq[2], streams.p_k + i_row * sk[0] + i_head * sk[2],
        streams.p_v + i_row * sv[0] + i_head * sv[2], p_eta + at, sq[1], sk[1], sv[1],
        learned.p_start + i_head * C.P, learned.p_sums + i_cell * C.P, at, i_cell, i_row, i_head, heads, tokens, length,
        phase, blocks,
    )  # fmt: skip


@triton.jit
def block_of_row(n, row, cuts, C):
    """Block n of a row."""
    if cuts.p_begins is not None:
        p_begins = cuts.p_begins + row.i_row * 2 * (row.tokens + 1) + 2 * n
        begin, place, end = tl.load(p_begins), tl.load(p_begins + 1), tl.load(p_begins + 2)
    else:
        begin = tl.maximum(n * C.BLOCK - row.phase % C.BLOCK, 0)
        end = tl.minimum(n * C.BLOCK + C.BLOCK - row.phase % C.BLOCK, row.length)
        place = (row.phase // C.BLOCK + n) * C.BLOCK % C.K
        if n == 0:
            place = row.phase
    slots, skip = tl.arange(0, C.BLOCK), place % C.BLOCK
    token = begin - skip + slots
    return Block(begin, end, place, token, (slots >= skip) & (token < end))


@triton.jit
def is_reset(p_reset, row, begin):
    """Whether the memory is reset before this token, or before the first."""
    if p_reset is not None:
        return tl.load(p_reset + row.i_row * row.tokens + tl.maximum(begin, 0)) != 0
    return False


@triton.jit
def first_block(segment, row, cuts, segments, span, C):
    """The first block of a row that begins a mini-batch at token segment * span or later, or the first of all; span is
    a multiple of K."""
    if cuts.p_first is not None:
        return tl.load(cuts.p_first + row.i_row * (segments + 1) + segment)
    batch = segment * (span // C.K) + (row.phase + C.K - 1) // C.K
    return tl.where(segment == 0, 0, tl.minimum(batch * (C.K // C.BLOCK) - row.phase // C.BLOCK, row.blocks))


@triton.jit
def slot_of(token, segment, row, span, C):
    """The slot of this token in a segment's scratch: the weights where a mini-batch begins, its sums where one of its
    further blocks does. 0 .. (span + K) / BLOCK: two such tokens are never fewer than BLOCK apart, except the first
    two, whose earlier places came before."""
    return (tl.maximum(token, 0) + row.phase) // C.BLOCK - (segment * span + row.phase) // C.BLOCK


@triton.jit
def load_tokens(p, stride, block, C):
    """The tokens of a block [BLOCK, D], zeros where a slot has none."""
    at = block.token.to(tl.int64)[:, None] * stride + tl.arange(0, C.D)[None, :]
    return tl.load(p + at, mask=block.inside[:, None], other=0.0)


@triton.jit
def store_tokens(p, stride, block, x, C):
    """Store what `load_tokens` loads."""
    at = block.token.to(tl.int64)[:, None] * stride + tl.arange(0, C.D)[None, :]
    tl.store(p + at, x.to(p.dtype.element_ty), mask=block.inside[:, None])


@triton.jit
def tokens_at(p, read, row, C):
    """Addresses of the tokens of a row in outputs [B, T, H, D] (read 0), or in what keys see [2, B, T, H, D] (1 and
    2)."""
    p += row.at * C.D
    if read > 1:
        p += tl.num_programs(0).to(tl.int64) * row.tokens * C.D
    return p


@triton.jit
def examples(row, block, C):
    """The inputs of a block's step: keys [BLOCK, D] in the compute type, targets v - k in float32, rates [BLOCK], which
    tokens are good, and 0 or NaN for each: a token that is not finite gives zeros, and its NaN is added where it
    belongs."""
    keys = load_tokens(row.p_k, row.s_k, block, C)
    target = load_tokens(row.p_v, row.s_v, block, C).to(tl.float32) - keys.to(tl.float32)
    rate = tl.load(row.p_eta + block.token.to(tl.int64) * row.heads, mask=block.inside, other=0.0).to(tl.float32)
    nan = (tl.sum(target, axis=1) + rate) * 0.0
    good = block.inside & (nan == 0.0)
    keys = tl.where(good[:, None], keys, 0.0).to(C.TYPE)
    return keys, tl.where(good[:, None], target, 0.0), tl.where(good, rate, 0.0), good, nan


@triton.jit
def causal(K: tl.constexpr):
    """Whether token i of a mini-batch sees token j, [K, K]."""
    return tl.arange(0, K)[:, None] >= tl.arange(0, K)[None, :]


@triton.jit
def so_far(x, K: tl.constexpr):
    """Sum of x [K] over the tokens j <= i; a NaN reaches no earlier token."""
    return tl.sum(tl.where(causal(K), x[None, :], 0.0), axis=1)


@triton.jit
def scores(x, keys, C):
    """x_i . k_j with the ones that meet the bias, where token i sees token j, else 0 (equation 8)."""
    return tl.where(causal(C.BLOCK), dot(x, tl.trans(keys), C) + 1.0, 0.0)


@triton.jit
def error_terms(z, target, rate, gamma, beta, AXIS: tl.constexpr = 1):
    """(z^, 1 / s, error of LN(z), u) of what keys learn from, equations 1 and 2; u = rate * gamma * error."""
    z_hat, rstd = standardise(z, AXIS)
    error = z_hat * gamma + beta - target
    return z_hat, rstd, error, error * gamma * rate


@triton.jit
def norm_scale(squares, learned, row, C):
    """The factor that scales the last layer to the limit of its norm, from its squared norm."""
    scale = tl.load(learned.p_limit + row.i_head) / tl.sqrt(squares)
    if not C.RESTORE:
        scale = tl.minimum(scale, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return scale
