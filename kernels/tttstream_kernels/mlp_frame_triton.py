"""The MLP for the kernels of frame mode: `frame_kernels_triton` says what its functions are.

Its 8 D^2 weights do not fit into registers: they lie in global memory, where the second-level cache holds them, and
are taken CHUNK hidden units at a time. Weights are their pointer. Within a frame, gradients are that of the last
layer's bias and a pointer to the others. Scratch holds a frame of steps and, in the backward pass, one of d z.
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
    rates,
    store_scalars,
    store_tile,
    targets,
)
from tttstream_kernels.norm_triton import gelu, gelu_bend, gelu_slope
from tttstream_kernels.token_parts_triton import dot, everything


@triton.jit
def units(p_weights, c, C):
    """Addresses of the hidden units c .. c + CHUNK - 1: W1 [D, CHUNK], b1 [CHUNK], W2 [CHUNK, D]."""
    hidden, columns = c + tl.arange(0, C.CHUNK), tl.arange(0, C.D)
    at_w1 = columns[:, None] * (4 * C.D) + hidden[None, :]
    at_w2 = 4 * C.D * C.D + 4 * C.D + hidden[:, None] * C.D + columns[None, :]
    return p_weights + at_w1, p_weights + (4 * C.D * C.D + hidden), p_weights + at_w2


@triton.jit
def last_bias(p_weights, C):
    """The addresses of b2 [D]."""
    return p_weights + (8 * C.D * C.D + 4 * C.D + tl.arange(0, C.D))


@triton.jit
def load_units(p_weights, c, C):
    """(W1, b1, W2) of hidden units."""
    p_w1, p_b1, p_w2 = units(p_weights, c, C)
    return tl.load(p_w1), tl.load(p_b1), tl.load(p_w2)


@triton.jit
def store_units(p_weights, c, b_w1, b_b1, b_w2, C):
    """Put them there."""
    p_w1, p_b1, p_w2 = units(p_weights, c, C)
    tl.store(p_w1, b_w1)
    tl.store(p_b1, b_b1)
    tl.store(p_w2, b_w2)


@triton.jit
def apply(weights, b_x, at, C):
    """g(x) of a tile of tokens; its hidden layer is computed again where it is needed."""
    b_z = tl.zeros([b_x.shape[0], C.D], tl.float32) + tl.load(last_bias(weights[0], C))
    for c in range(0, 4 * C.D, C.CHUNK):
        p_w1, p_b1, p_w2 = units(weights[0], c, C)
        b_hidden = gelu(dot(b_x, tl.load(p_w1), C) + tl.load(p_b1))
        b_z += dot(b_hidden, tl.load(p_w2), C)
    return b_z, b_z


@triton.jit
def learn(weights, reset, p_start, p_to, frame, norm, settling, p_before, p_kept, keep, p_scratch, REPLAY, C):
    """Take the step of a frame (equation 10) to weights at `p_to`; returns them and the norm that their last layer has
    after forgetting. `p_kept` gets the weights before the step if `keep`."""
    p_from = tl.where(reset, p_start, weights[0])
    b_b2 = tl.load(last_bias(p_from, C))
    b_d_b2 = tl.zeros([C.D], tl.float32)
    for first in range(0, frame.count, C.TILE):
        at = keys_of(frame, first)
        b_k = load_tile(at, C)
        b_target, b_rate = targets(b_k, frame, first, C), rates(frame, first, C)
        b_z, _hidden = apply((p_from,), b_k, at, C)
        b_error, _u, b_g, _z_hat, _rstd = loss_terms(b_z, b_target, b_rate, norm)
        if C.LOSS and not REPLAY:
            store_scalars(Tile(p_before, frame.s_eta, first, frame.count), half_square(b_error), C)
        store_tile(Tile(p_scratch, C.D, first, frame.count), b_g, C)
        b_d_b2 += column_sums(b_g)
    tl.debug_barrier()
    if C.KEEP:
        tl.store(last_bias(p_kept, C), b_b2, mask=keep)
    b_b2 -= b_d_b2 / frame.size
    tl.store(last_bias(p_to, C), b_b2)
    squares = 0.0
    if C.MAX_NORM:
        if C.FORGET:
            b_b2 += settling.share * (tl.load(last_bias(p_start, C)) - b_b2)
        squares = tl.sum(b_b2 * b_b2, axis=0)
    for c in range(0, 4 * C.D, C.CHUNK):
        b_w1, b_b1, b_w2 = load_units(p_from, c, C)
        if C.KEEP:
            p_w1, p_b1, p_w2 = units(p_kept, c, C)
            tl.store(p_w1, b_w1, mask=keep)
            tl.store(p_b1, b_b1, mask=keep)
            tl.store(p_w2, b_w2, mask=keep)
        b_d_w1, b_d_b1 = tl.zeros([C.D, C.CHUNK], tl.float32), tl.zeros([C.CHUNK], tl.float32)
        b_d_w2 = tl.zeros([C.CHUNK, C.D], tl.float32)
        for first in range(0, frame.count, C.TILE):
            b_k = load_tile(keys_of(frame, first), C)
            b_g = load_tile(Tile(p_scratch, C.D, first, frame.count), C)
            b_z1 = dot(b_k, b_w1, C) + b_b1
            b_d_w2 += dot(tl.trans(gelu(b_z1)), b_g, C)
            b_g1 = dot(b_g, tl.trans(b_w2), C) * gelu_slope(b_z1)
            b_d_w1 += dot(tl.trans(b_k), b_g1, C)
            b_d_b1 += column_sums(b_g1)
        tl.debug_barrier()  # several threads hold each number of the bias
        p_w1, p_b1, p_w2 = units(p_to, c, C)
        tl.store(p_w1, b_w1 - b_d_w1 / frame.size)
        tl.store(p_b1, b_b1 - b_d_b1 / frame.size)
        b_w2 -= b_d_w2 / frame.size
        tl.store(p_w2, b_w2)
        if C.MAX_NORM:
            if C.FORGET:
                b_w2 += settling.share * (tl.load(units(p_start, c, C)[2]) - b_w2)
            squares += everything(b_w2 * b_w2)
    tl.debug_barrier()
    return (p_to,), tl.sqrt(squares) if C.MAX_NORM else 0.0


@triton.jit
def open_reads(weights, gradient, C):
    """Values that the tiles of a frame's queries share."""
    return weights, (tl.zeros([C.D], tl.float32), gradient[0])


@triton.jit
def apply_backward(weights, gradient, b_x, at, b_hidden, b_d_z, b_d_x, at_d_x, p_scratch, C):
    """Keep d z for `close_reads`, and b_d_x, to which it adds."""
    store_tile(Tile(p_scratch, C.D, at.first, at.count), b_d_z, C)
    store_tile(at_d_x, b_d_x, C)
    return gradient[0] + column_sums(b_d_z), gradient[1]


@triton.jit
def close_reads(weights, gradient, frame, p_x, stride_x, p_d_x, stride, p_scratch, C):
    """Equation 16 for a whole frame, one chunk of hidden units after the other: to the gradient of the weights and to
    that of the inputs is added what comes back from d z."""
    p_d_weights = gradient[1]
    for c in range(0, 4 * C.D, C.CHUNK):
        b_w1, b_b1, b_w2 = load_units(weights[0], c, C)
        b_d_w1, b_d_b1, b_d_w2 = load_units(p_d_weights, c, C)
        for first in range(0, frame.count, C.TILE):
            b_x = load_tile(Tile(p_x, stride_x, first, frame.count), C)
            b_d_z = load_tile(Tile(p_scratch, C.D, first, frame.count), C)
            b_z1 = dot(b_x, b_w1, C) + b_b1
            b_d_w2 += dot(tl.trans(gelu(b_z1)), b_d_z, C)
            b_d_z1 = dot(b_d_z, tl.trans(b_w2), C) * gelu_slope(b_z1)
            b_d_w1 += dot(tl.trans(b_x), b_d_z1, C)
            b_d_b1 += column_sums(b_d_z1)
            at_d_x = Tile(p_d_x, stride, first, frame.count)
            store_tile(at_d_x, load_tile(at_d_x, C) + dot(b_d_z1, tl.trans(b_w1), C), C)
        tl.debug_barrier()
        store_units(p_d_weights, c, b_d_w1, b_d_b1, b_d_w2, C)
        tl.debug_barrier()
    return gradient


@triton.jit
def open_step(gradient, p_weights, frame, C):
    """Values that the tiles of a frame's keys share: the weights with which it began, E of the last bias, and the
    gradient whose other parts are -N E."""
    b_d_b2 = gradient[0] + tl.load(last_bias(gradient[1], C))
    return (p_weights,), (-b_d_b2 / frame.size, gradient[1]), (b_d_b2, gradient[1])


@triton.jit
def step(weights, e, b_k, at, frame, C):
    """g(k) of a tile of keys, and the gradient at its steps (equation 17), which both need the hidden layer."""
    p_weights, p_d_weights = weights[0], e[1]
    b_z = tl.zeros([C.TILE, C.D], tl.float32) + tl.load(last_bias(p_weights, C))
    b_d_g = tl.zeros([C.TILE, C.D], tl.float32) + e[0]
    for c in range(0, 4 * C.D, C.CHUNK):
        p_w1, p_b1, p_w2 = units(p_weights, c, C)
        p_d_w1, p_d_b1, p_d_w2 = units(p_d_weights, c, C)
        b_w2 = tl.load(p_w2)
        b_hidden = dot(b_k, tl.load(p_w1), C) + tl.load(p_b1)
        b_d_g1 = dot(b_k, tl.load(p_d_w1), C) + tl.load(p_d_b1)
        b_d_g1 *= -gelu_slope(b_hidden) / frame.size
        b_hidden = gelu(b_hidden)
        b_z += dot(b_hidden, b_w2, C)
        b_d_g += dot(b_d_g1, b_w2, C)
        b_d_g -= dot(b_hidden, tl.load(p_d_w2), C) / frame.size
    return b_z, b_d_g


@triton.jit
def step_gradient(e, b_k, hidden, C):
    """The gradient at the steps of a tile of keys."""
    return hidden


@triton.jit
def step_backward(weights, e, gradient, b_k, at, hidden, b_g, b_d_z, b_d_k, at_d_k, p_scratch, frame, C):
    """Keep the steps and d z for `close_step`, and b_d_k, to which it adds."""
    store_tile(at_d_k, b_d_k, C)
    store_tile(Tile(p_scratch, C.D, at.first, at.count), b_g, C)
    store_tile(Tile(p_scratch + frame.size * C.D, C.D, at.first, at.count), b_d_z, C)
    return gradient[0] + column_sums(b_d_z), gradient[1]


@triton.jit
def close_step(weights, e, gradient, reset, p_d_start, frame, p_d_k, p_scratch, C):
    """Equations 18 and 19 for a whole frame, one chunk of hidden units after the other. Returns the gradient at the
    weights that the frame before left."""
    b_d_b2, p_d_weights = gradient
    if C.RESET:
        b_d_b2 = add_at_reset(last_bias(p_d_start, C), b_d_b2, reset)
    tl.store(last_bias(p_d_weights, C), b_d_b2)
    for c in range(0, 4 * C.D, C.CHUNK):
        b_w1, b_b1, b_w2 = load_units(weights[0], c, C)
        b_e_w1, b_e_b1, b_e_w2 = load_units(p_d_weights, c, C)
        b_e_w1, b_e_b1, b_e_w2 = -b_e_w1 / frame.size, -b_e_b1 / frame.size, -b_e_w2 / frame.size
        b_d_w1, b_d_b1 = tl.zeros([C.D, C.CHUNK], tl.float32), tl.zeros([C.CHUNK], tl.float32)
        b_d_w2 = tl.zeros([C.CHUNK, C.D], tl.float32)
        for first in range(0, frame.count, C.TILE):
            b_k = load_tile(keys_of(frame, first), C)
            b_g = load_tile(Tile(p_scratch, C.D, first, frame.count), C)
            b_d_z = load_tile(Tile(p_scratch + frame.size * C.D, C.D, first, frame.count), C)
            b_z1 = dot(b_k, b_w1, C) + b_b1
            b_slope = gelu_slope(b_z1)
            b_d_g1 = dot(b_k, b_e_w1, C) + b_e_b1
            b_d_w2 += dot(tl.trans(b_d_g1 * b_slope), b_g, C)
            b_d_w2 += dot(tl.trans(gelu(b_z1)), b_d_z, C)
            b_back = dot(b_g, tl.trans(b_w2), C)
            b_d_z1 = dot(b_g, tl.trans(b_e_w2), C)
            b_d_z1 = b_slope * (b_d_z1 + dot(b_d_z, tl.trans(b_w2), C)) + b_d_g1 * b_back * gelu_bend(b_z1)
            b_d_w1 += dot(tl.trans(b_k), b_d_z1, C)
            b_d_b1 += column_sums(b_d_z1)
            b_d_k = dot(b_d_z1, tl.trans(b_w1), C)
            b_d_k += dot(b_back * b_slope, tl.trans(b_e_w1), C)
            at_d_k = Tile(p_d_k, frame.s_eta * C.D, first, frame.count)
            store_tile(at_d_k, b_d_k + load_tile(at_d_k, C), C)
        p_d_w1, p_d_b1, p_d_w2 = units(p_d_weights, c, C)
        b_d_w1 += tl.load(p_d_w1)
        b_d_b1 += tl.load(p_d_b1)
        b_d_w2 += tl.load(p_d_w2)
        if C.RESET:
            p_w1, p_b1, p_w2 = units(p_d_start, c, C)
            b_d_w1 = add_at_reset(p_w1, b_d_w1, reset)
            b_d_b1 = add_at_reset(p_b1, b_d_b1, reset)
            b_d_w2 = add_at_reset(p_w2, b_d_w2, reset)
        store_units(p_d_weights, c, b_d_w1, b_d_b1, b_d_w2, C)
        tl.debug_barrier()
    return (p_d_weights,)
