"""The conv model for the kernels of frame mode: `frame_kernels_triton` says what its functions are.

Neighbours of a token are loaded again, shifted and masked at the edges of the picture; the transposed convolution is
the same with the kernel turned round. Weights are their pointer; within a frame of the backward pass (pointer, W2).
Gradients within a frame are (those of the convolution [16, D], of W2, of b2, and the pointer to where they lie between
frames). Scratch holds, in the backward pass, a frame of d z1 and one of what comes back from the steps.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels.frame_parts_triton import (
    Tile,
    add_at_reset,
    column_sums,
    half_square,
    keys_of,
    load_tile,
    loss_terms,
    operand,
    rates,
    store_scalars,
    store_tile,
    sum_of_squares,
    targets,
)
from tttstream_kernels.norm_triton import gelu, gelu_bend, gelu_slope
from tttstream_kernels.token_parts_triton import dot, matrix


@triton.jit
def layers(p_weights, C):
    """Pointers to the convolution's kernel and bias [16, D] (the first ten rows are used), W2 and b2."""
    return (
        p_weights + matrix(16, C.D), p_weights + 10 * C.D + matrix(C.D, C.D),
        p_weights + 10 * C.D + C.D * C.D + tl.arange(0, C.D),
    )  # fmt: skip


@triton.jit
def used():
    """Which rows of a convolution's weights are used."""
    return tl.arange(0, 16)[:, None] < 10


@triton.jit
def neighbours(at, tap, C):
    """The inputs of a tap of the kernel (0 .. 8 in reading order) for the tokens of a tile: [TILE, D], zeros outside
    the picture. Tokens beyond the picture have themselves in the middle and nothing around."""
    down, right = tap // 3 - 1, tap % 3 - 1
    token = at.first + tl.arange(0, C.TILE)
    y, x = token // C.WIDE + down, token % C.WIDE + right
    inside = (token < C.HEIGHT * C.WIDE) & (y >= 0) & (y < C.HEIGHT) & (x >= 0) & (x < C.WIDE)
    inside = inside | (tap == 4)
    token += down * C.WIDE + right
    offsets = token.to(tl.int64)[:, None] * at.stride + tl.arange(0, C.D)[None, :]
    return tl.load(at.p + offsets, mask=(inside & (token < at.count))[:, None], other=0.0).to(tl.float32)


@triton.jit
def convolve(at, p_weights, C):
    """x C + b1 of the tokens of a tile."""
    columns = tl.arange(0, C.D)
    b_z = tl.zeros([C.TILE, C.D], tl.float32) + tl.load(p_weights + 9 * C.D + columns)
    for tap in range(0, 9):
        b_weight = tl.load(p_weights + tap * C.D + columns)
        b_z += neighbours(at, tap, C) * b_weight
    return b_z


@triton.jit
def convolve_back(at, p_weights, C):
    """g C^T at the tokens of a tile."""
    columns = tl.arange(0, C.D)
    b_d_x = tl.zeros([C.TILE, C.D], tl.float32)
    for tap in range(0, 9):
        b_weight = tl.load(p_weights + tap * C.D + columns)
        b_d_x += neighbours(at, 8 - tap, C) * b_weight
    return b_d_x


@triton.jit
def correlate(at, b_g, C):
    """x^T g for the kernel and the bias of the convolution, [16, D]."""
    row = tl.arange(0, 16)[:, None]
    b_d_w = tl.where(row == 9, column_sums(b_g)[None, :], 0.0)
    for tap in range(0, 9):
        b_share = column_sums(neighbours(at, tap, C) * b_g)
        b_d_w += tl.where(row == tap, b_share[None, :], 0.0)
    return b_d_w


@triton.jit
def apply(weights, b_x, at, C):
    """g(x) of a tile of tokens, and its hidden layer before GELU."""
    _w, p_w2, p_b2 = layers(weights[0], C)
    b_w2, b_b2 = tl.load(p_w2), tl.load(p_b2)
    b_z1 = convolve(at, weights[0], C)
    return dot(gelu(b_z1), b_w2, C) + b_b2, b_z1


@triton.jit
def learn(weights, reset, p_start, p_to, frame, norm, settling, p_before, p_kept, keep, p_scratch, REPLAY, C):
    """Take the step of a frame (equation 10) to weights at `p_to`; returns them and the norm that their last layer has
    after forgetting. `p_kept` gets the weights before the step if `keep`."""
    p_from = tl.where(reset, p_start, weights[0])
    p_w, p_w2, p_b2 = layers(p_from, C)
    b_w2, b_b2 = tl.load(p_w2), tl.load(p_b2)
    b_d_w, b_d_w2, b_d_b2 = (
        tl.zeros([16, C.D], tl.float32),
        tl.zeros([C.D, C.D], tl.float32),
        tl.zeros([C.D], tl.float32),
    )
    for first in range(0, frame.count, C.TILE):
        at = keys_of(frame, first)
        b_k = load_tile(at, C)
        b_target, b_rate = targets(b_k, frame, first, C), rates(frame, first, C)
        b_z1 = convolve(at, p_from, C)
        b_hidden = gelu(b_z1)
        b_z = dot(b_hidden, operand(b_w2, p_w2, C), C) + b_b2
        b_error, _u, b_g, _z_hat, _rstd = loss_terms(b_z, b_target, b_rate, norm)
        if C.LOSS and not REPLAY:
            store_scalars(Tile(p_before, frame.s_eta, first, frame.count), half_square(b_error), C)
        b_d_w2 += dot(tl.trans(b_hidden), b_g, C)
        b_d_b2 += column_sums(b_g)
        b_g1 = dot(b_g, tl.trans(operand(b_w2, p_w2, C)), C) * gelu_slope(b_z1)
        b_d_w += correlate(at, b_g1, C)
    b_w = tl.load(p_w, mask=used())
    if C.KEEP:
        p_kept_w, p_kept_w2, p_kept_b2 = layers(p_kept, C)
        tl.store(p_kept_w, b_w, mask=used() & keep)
        tl.store(p_kept_w2, b_w2, mask=keep)
        tl.store(p_kept_b2, b_b2, mask=keep)
    b_w2 -= b_d_w2 / frame.size
    b_b2 -= b_d_b2 / frame.size
    tl.debug_barrier()
    p_to_w, p_to_w2, p_to_b2 = layers(p_to, C)
    tl.store(p_to_w, b_w - b_d_w / frame.size, mask=used())
    tl.store(p_to_w2, b_w2)
    tl.store(p_to_b2, b_b2)
    tl.debug_barrier()
    if C.FORGET and C.MAX_NORM:
        _w, p_start_w2, p_start_b2 = layers(p_start, C)
        b_w2 += settling.share * (tl.load(p_start_w2) - b_w2)
        b_b2 += settling.share * (tl.load(p_start_b2) - b_b2)
    return (p_to,), tl.sqrt(sum_of_squares(b_w2, b_b2)) if C.MAX_NORM else 0.0


@triton.jit
def open_reads(weights, gradient, C):
    """Values that the tiles of a frame's queries share."""
    p_d_w, p_d_w2, p_d_b2 = layers(gradient[0], C)
    b_d_w = tl.load(p_d_w, mask=used(), other=0.0)
    b_w2 = tl.load(layers(weights[0], C)[1])
    return (weights[0], b_w2), (b_d_w, tl.load(p_d_w2), tl.load(p_d_b2), gradient[0])


@triton.jit
def apply_backward(weights, gradient, b_x, at, b_z1, b_d_z, b_d_x, at_d_x, p_scratch, C):
    """Equation 16 for a tile: the gradient of the weights, and d z1 to scratch. `close_reads` adds to b_d_x what needs
    those of the neighbours."""
    b_d_w, b_d_w2, b_d_b2, p_d_weights = gradient
    b_d_w2 += dot(tl.trans(gelu(b_z1)), b_d_z, C)
    b_w2 = operand(weights[1], layers(weights[0], C)[1], C)
    b_d_z1 = dot(b_d_z, tl.trans(b_w2), C) * gelu_slope(b_z1)
    store_tile(Tile(p_scratch, C.D, at.first, at.count), b_d_z1, C)
    store_tile(at_d_x, b_d_x, C)
    return b_d_w + correlate(at, b_d_z1, C), b_d_w2, b_d_b2 + column_sums(b_d_z), p_d_weights


@triton.jit
def close_reads(weights, gradient, frame, p_x, stride_x, p_d_x, stride, p_scratch, C):
    """The gradient of the inputs of a frame, from d z1."""
    for first in range(0, frame.count, C.TILE):
        at_d_x = Tile(p_d_x, stride, first, frame.count)
        b_d_x = convolve_back(Tile(p_scratch, C.D, first, frame.count), weights[0], C)
        store_tile(at_d_x, load_tile(at_d_x, C) + b_d_x, C)
    tl.debug_barrier()
    return gradient


@triton.jit
def open_step(gradient, p_weights, frame, C):
    """Values that the tiles of a frame's keys share: the weights with which it began, E of the last layer (that of the
    convolution is -1 / N times what is left in memory), and the gradient."""
    b_d_w, b_d_w2, b_d_b2, p_d_weights = gradient
    p_d_w, p_d_w2, _b2 = layers(p_d_weights, C)
    _w, p_w2, p_b2 = layers(p_weights, C)
    tl.store(p_d_w, b_d_w, mask=used())
    b_e_w2, b_e_b2 = -b_d_w2 / frame.size, -b_d_b2 / frame.size
    if C.D > 64:
        tl.store(p_d_w2, b_e_w2)
    tl.debug_barrier()
    return (p_weights, tl.load(p_w2), tl.load(p_b2)), (p_d_weights, b_e_w2, b_e_b2), gradient


@triton.jit
def step(weights, e, b_k, at, frame, C):
    """g(k) of a tile of keys; with what `step_backward` needs of the hidden layer and the gradient at the steps
    (equation 17)."""
    p_w2, p_e_w2 = layers(weights[0], C)[1], layers(e[0], C)[1]
    b_z1 = convolve(at, weights[0], C)
    b_slope = gelu_slope(b_z1)
    b_d_g1 = convolve(at, e[0], C) * (-1.0 / frame.size)
    # products with one matrix stand side by side, so that no two matrices are operands at a time
    b_z = dot(gelu(b_z1), operand(weights[1], p_w2, C), C) + weights[2]
    b_d_g = dot(b_d_g1 * b_slope, operand(weights[1], p_w2, C), C) + e[2]
    b_d_g += dot(gelu(b_z1), operand(e[1], p_e_w2, C), C)
    return b_z, (b_z1, b_slope, b_d_g1, b_d_g)


@triton.jit
def step_gradient(e, b_k, hidden, C):
    """The gradient at the steps of a tile of keys."""
    return hidden[3]


@triton.jit
def step_backward(weights, e, gradient, b_k, at, hidden, b_g, b_d_z, b_d_k, at_d_k, p_scratch, frame, C):
    """Equations 18 and 19 for a tile: the gradient of the weights, and to scratch what `close_step` needs. b_d_k, to
    which it adds, stands at `at_d_k`."""
    b_d_w, b_d_w2, b_d_b2, p_d_weights = gradient
    b_z1, b_slope, b_d_g1, _b_d_g = hidden
    p_w2, p_e_w2 = layers(weights[0], C)[1], layers(e[0], C)[1]
    store_tile(at_d_k, b_d_k, C)
    b_back = dot(b_g, tl.trans(operand(weights[1], p_w2, C)), C)
    b_d_z1 = dot(b_d_z, tl.trans(operand(weights[1], p_w2, C)), C)
    b_d_z1 += dot(b_g, tl.trans(operand(e[1], p_e_w2, C)), C)
    b_d_z1 = b_slope * b_d_z1 + b_d_g1 * b_back * gelu_bend(b_z1)
    b_d_w2 += dot(tl.trans(b_d_g1 * b_slope), b_g, C)
    b_d_w2 += dot(tl.trans(gelu(b_z1)), b_d_z, C)
    b_d_b2 += column_sums(b_d_z)
    b_d_w += correlate(at, b_d_z1, C)
    store_tile(Tile(p_scratch, C.D, at.first, at.count), b_d_z1, C)
    store_tile(Tile(p_scratch + frame.size * C.D, C.D, at.first, at.count), b_back * b_slope, C)
    return b_d_w, b_d_w2, b_d_b2, p_d_weights


@triton.jit
def close_step(weights, e, gradient, reset, p_d_start, frame, p_d_k, p_scratch, C):
    """The gradient of the keys, from what the tiles left in scratch; and that at the weights that the frame before
    left, in memory."""
    b_d_w, b_d_w2, b_d_b2, p_d_weights = gradient
    for first in range(0, frame.count, C.TILE):
        at_d_k = Tile(p_d_k, frame.s_eta * C.D, first, frame.count)
        at_back = Tile(p_scratch + frame.size * C.D, C.D, first, frame.count)
        b_d_k = convolve_back(at_back, p_d_weights, C) * (-1.0 / frame.size)
        b_d_k += convolve_back(Tile(p_scratch, C.D, first, frame.count), weights[0], C)
        store_tile(at_d_k, b_d_k + load_tile(at_d_k, C), C)
    tl.debug_barrier()
    if C.RESET:
        p_w, p_w2, p_b2 = layers(p_d_start, C)
        b_d_w = add_at_reset(p_w, b_d_w, reset, used())
        b_d_w2 = add_at_reset(p_w2, b_d_w2, reset)
        b_d_b2 = add_at_reset(p_b2, b_d_b2, reset)
    p_d_w, p_d_w2, p_d_b2 = layers(p_d_weights, C)
    tl.store(p_d_w, b_d_w, mask=used())
    tl.store(p_d_w2, b_d_w2)
    tl.store(p_d_b2, b_d_b2)
    return (p_d_weights,)
