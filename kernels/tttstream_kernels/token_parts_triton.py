"""What the token-mode kernels share: where a mini-batch lies in its row, its tokens, and how they see one another.

One program is one cell (a head of a row) and walks over the blocks of its row: a block is a mini-batch, or BLOCK places
of it where a whole one does not fit into a multiprocessor, or what the call holds of those. Blocks end with their
places, at a reset, and with the row; the sums of a mini-batch go on from one of its blocks to the next. Slot i of a
block is the i-th of its places; slots without a token are zeros with a rate of zero.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from tttstream_kernels.norm_triton import INTERPRETED, standardise


def numerics(dtype: torch.dtype) -> dict[str, Any]:
    """The type of a product's operands and how it is taken, for tokens of this type. float16 goes as tf32, which has
    its mantissa and the exponent that gradients need."""
    if dtype == torch.bfloat16:
        return {"TYPE": tl.bfloat16, "PRECISION": "rounded" if INTERPRETED else "ieee"}
    return {"TYPE": tl.float32, "PRECISION": "tf32" if dtype == torch.float16 else "tf32x3"}


@triton.jit
def product(a, b, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """a b with operands in the compute type, sums in float32. The interpreter multiplies bfloat16 as whole numbers:
    there the operands are "rounded" only."""
    if PRECISION == "rounded":
        return tl.dot(a.to(TYPE).to(tl.float32), b.to(TYPE).to(tl.float32))
    return tl.dot(a.to(TYPE), b.to(TYPE), input_precision=PRECISION)


@triton.jit
def matrix(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of a matrix that lies row after row."""
    return tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def everything(x):
    """Sum of all of a matrix."""
    return tl.sum(tl.sum(x, axis=1), axis=0)


@triton.jit
def blocks_of(count, row, phase, length, BLOCK: tl.constexpr):
    """How many blocks a row has: none where it has no token. count: [B] where there are resets, else None."""
    if count is not None:
        return tl.load(count + row)
    return tl.where(length > 0, (phase % BLOCK + length + BLOCK - 1) // BLOCK, 0)


@triton.jit
def extent(n, begins, phase, length, K: tl.constexpr, BLOCK: tl.constexpr):
    """(first token, one past the last token, place of the first token in its mini-batch) of block n of a row."""
    if begins is not None:
        begin, place, end = tl.load(begins + 2 * n), tl.load(begins + 2 * n + 1), tl.load(begins + 2 * n + 2)
    else:
        begin = tl.maximum(n * BLOCK - phase % BLOCK, 0)
        end = tl.minimum(n * BLOCK + BLOCK - phase % BLOCK, length)
        place = (phase // BLOCK + n) * BLOCK % K
        if n == 0:
            place = phase
    return begin, end, place


@triton.jit
def starts_anew(reset, begin):
    """Whether what begins with this token, or before the first, starts from the learned weights."""
    if reset is not None:
        return tl.load(reset + tl.maximum(begin, 0)) != 0
    return False


@triton.jit
def first_block(segment, first, phase, blocks, span, K: tl.constexpr, BLOCK: tl.constexpr):
    """The first block of a row that begins a mini-batch at token segment * span or later, or the first of all; span is
    a multiple of K."""
    if first is not None:
        return tl.load(first + segment)
    batch = segment * (span // K) + (phase + K - 1) // K
    return tl.where(segment == 0, 0, tl.minimum(batch * (K // BLOCK) - phase // BLOCK, blocks))


@triton.jit
def shelf(token, segment, phase, span, BLOCK: tl.constexpr):
    """Where in a segment's scratch what stands at this token lies: the weights where a mini-batch begins, its sums
    where one of its further blocks does. 0 .. (span + K) / BLOCK: two such tokens are never fewer than BLOCK apart, but
    for the first two, whose earlier places came before."""
    return (tl.maximum(token, 0) + phase) // BLOCK - (segment * span + phase) // BLOCK


@triton.jit
def tile(base, stride, token, inside, WIDTH: tl.constexpr):
    """Tokens [K, WIDTH], zeros where not `inside`."""
    at = token.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + at, mask=inside[:, None], other=0.0)


@triton.jit
def put(base, stride, token, inside, x, WIDTH: tl.constexpr):
    """Store what `tile` would load."""
    at = token.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(base + at, x.to(base.dtype.element_ty), mask=inside[:, None])


@triton.jit
def pupils(k, k_step, v, v_step, eta, eta_step, token, inside, WIDTH: tl.constexpr, TYPE: tl.constexpr):
    """What a block teaches: keys [K, WIDTH] in the compute type, targets v - k in float32, rates [K], which tokens are
    good, and 0 or NaN for each: a token that is not finite teaches zeros, and its NaN is added where it belongs."""
    keys = tile(k, k_step, token, inside, WIDTH)
    target = tile(v, v_step, token, inside, WIDTH).to(tl.float32) - keys.to(tl.float32)
    rate = tl.load(eta + token.to(tl.int64) * eta_step, mask=inside, other=0.0).to(tl.float32)
    nan = (tl.sum(target, axis=1) + rate) * 0.0
    good = inside & (nan == 0.0)
    keys = tl.where(good[:, None], keys, 0.0).to(TYPE)
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
def scores(x, keys, K: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr):
    """x_i . k_j with the ones that meet the bias, where token i sees token j, else 0 (equation 8)."""
    return tl.where(causal(K), product(x, tl.trans(keys), TYPE, PRECISION) + 1.0, 0.0)


@triton.jit
def error_terms(z, target, rate, gamma, beta, AXIS: tl.constexpr = 1):
    """(z^, 1 / s, error of LN(z), u) of what keys teach, equations 1 and 2; u = rate * gamma * error."""
    z_hat, rstd = standardise(z, AXIS)
    error = z_hat * gamma + beta - target
    return z_hat, rstd, error, error * gamma * rate
