"""The linear inner model for the kernels of frame mode: `frame_kernels_triton` says what its functions are.

The weights stay in registers from the first frame to the last, and in the backward pass their gradient. Weights are
(W, b, p), where p is where they lie in memory, which only the backward pass reads, and so are gradients.
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
    norm_scale,
    operand,
    rates,
    store_scalars,
    store_tile,
    sum_of_squares,
    targets,
    where_scaled,
)
from tttstream_kernels.token_parts_triton import dot, everything, matrix


@triton.jit
def load(p_weights, C):
    """The weights at a place in memory."""
    return tl.load(p_weights + matrix(C.D, C.D)), tl.load(p_weights + C.D * C.D + tl.arange(0, C.D)), p_weights


@triton.jit
def store(weights, p_weights, C):
    """Put weights, or their gradient, there."""
    tl.store(p_weights + matrix(C.D, C.D), weights[0])
    tl.store(p_weights + C.D * C.D + tl.arange(0, C.D), weights[1])


@triton.jit
def last_norm(p_weights, C):
    """Joint norm of (W, b) at a place in memory."""
    b_w, b_bias = load(p_weights, C)[:2]
    return tl.sqrt(sum_of_squares(b_w, b_bias))


@triton.jit
def begin(p_start, p_delta, p_weights, C):
    """The weights with which a call begins, start + delta."""
    b_w, b_bias = load(p_start, C)[:2]
    b_delta, b_delta_bias = load(p_delta, C)[:2]
    return b_w + b_delta, b_bias + b_delta_bias, p_weights


@triton.jit
def end(weights, p_start, p_delta, p_end, learned, C):
    """Store their difference from the start; where no frame was `learned`, what came in."""
    b_w, b_bias = load(p_start, C)[:2]
    b_delta, b_delta_bias = load(p_delta, C)[:2]
    b_w, b_bias = tl.where(learned, weights[0] - b_w, b_delta), tl.where(learned, weights[1] - b_bias, b_delta_bias)
    store((b_w, b_bias), p_end, C)


@triton.jit
def apply(weights, b_x, at, C):
    """g(x) of a tile of tokens, and what `apply_backward` needs of the hidden layer, of which there is none."""
    b_w, b_bias, p_weights = weights
    if C.BACKWARD:
        b_w = operand(b_w, p_weights + matrix(C.D, C.D), C)
    b_z = dot(b_x, b_w, C) + b_bias
    return b_z, b_z


@triton.jit
def learn(weights, reset, p_start, p_to, frame, norm, settling, p_before, p_kept, keep, p_scratch, REPLAY, C):
    """The weights after the step of a frame (equation 10)."""
    b_w, b_bias = weights[0], weights[1]
    if C.RESET:
        b_w_start, b_bias_start = load(p_start, C)[:2]
        b_w, b_bias = tl.where(reset, b_w_start, b_w), tl.where(reset, b_bias_start, b_bias)
    if C.KEEP:
        if keep:
            store((b_w, b_bias), p_kept, C)
    b_d_w, b_d_bias = tl.zeros([C.D, C.D], tl.float32), tl.zeros([C.D], tl.float32)
    for first in range(0, frame.count, C.TILE):
        b_k = load_tile(keys_of(frame, first), C)
        b_target, b_rate = targets(b_k, frame, first, C), rates(frame, first, C)
        b_error, _u, b_g, _z_hat, _rstd = loss_terms(dot(b_k, b_w, C) + b_bias, b_target, b_rate, norm)
        if C.LOSS and not REPLAY:
            store_scalars(Tile(p_before, frame.s_eta, first, frame.count), half_square(b_error), C)
        b_d_w += dot(tl.trans(b_k), b_g, C)
        b_d_bias += column_sums(b_g)
    b_w -= b_d_w / frame.size
    b_bias -= b_d_bias / frame.size
    if REPLAY:
        store((b_w, b_bias), p_to, C)
    return (b_w, b_bias, p_to), 0.0


@triton.jit
def settle(weights, norm, p_start, p_to, settling, used, C):
    """The weights with which the next frame begins, and the scale of their norm."""
    b_w, b_bias = weights[0], weights[1]
    scale = 1.0
    if C.FORGET:
        b_w_start, b_bias_start = load(p_start, C)[:2]
        b_w += settling.share * (b_w_start - b_w)
        b_bias += settling.share * (b_bias_start - b_bias)
    if C.MAX_NORM:
        scale = norm_scale(tl.sqrt(sum_of_squares(b_w, b_bias)), settling.limit, C)
    return (b_w * scale, b_bias * scale, p_to), scale


@triton.jit
def settle_backward(weights, gradient, p_start, p_d_start, scale, settling, C):
    """Take the gradient at settled weights to those right after the step (equation 15). Returns it and the gradients
    of the share that is forgotten and of the limit."""
    b_w, b_bias = weights[0], weights[1]
    b_d_w, b_d_bias, p_gradient = gradient
    d_share, d_limit = 0.0, 0.0
    if C.FORGET:
        b_away, b_away_bias = load(p_start, C)[:2]
        b_away -= b_w
        b_away_bias -= b_bias
        b_w += settling.share * b_away
        b_bias += settling.share * b_away_bias
    if C.MAX_NORM:
        limit = settling.limit
        along = scale * (everything(b_d_w * b_w) + tl.sum(b_d_bias * b_bias, axis=0))
        ratio = where_scaled(scale, scale * along / (limit * limit), C)
        b_d_w = scale * (b_d_w - ratio * b_w)
        b_d_bias = scale * (b_d_bias - ratio * b_bias)
        d_limit = where_scaled(scale, along / limit, C)
    if C.FORGET:
        d_share = everything(b_d_w * b_away) + tl.sum(b_d_bias * b_away_bias, axis=0)
        b_sum, b_sum_bias = load(p_d_start, C)[:2]
        store((b_sum + settling.share * b_d_w, b_sum_bias + settling.share * b_d_bias), p_d_start, C)
        b_d_w *= 1.0 - settling.share
        b_d_bias *= 1.0 - settling.share
    return (b_d_w, b_d_bias, p_gradient), d_share, d_limit


@triton.jit
def open_reads(weights, gradient, C):
    """Values that the tiles of a frame's queries share: the weights, and the gradient to which each tile adds."""
    return weights, gradient


@triton.jit
def apply_backward(weights, gradient, b_x, at, b_hidden, b_d_z, b_d_x, at_d_x, p_scratch, C):
    """Equation 16 for a tile: the gradient of the weights, and b_d_x plus that of the inputs at `at_d_x`."""
    b_d_w, b_d_bias, p_gradient = gradient
    b_d_w += dot(tl.trans(b_x), b_d_z, C)
    b_d_bias += column_sums(b_d_z)
    b_w = operand(weights[0], weights[2] + matrix(C.D, C.D), C)
    store_tile(at_d_x, b_d_x + dot(b_d_z, tl.trans(b_w), C), C)
    return b_d_w, b_d_bias, p_gradient


@triton.jit
def close_reads(weights, gradient, frame, p_x, stride_x, p_d_x, stride, p_scratch, C):
    """Nothing is left to do after the last tile."""
    return gradient


@triton.jit
def open_step(gradient, p_weights, frame, C):
    """Values that the tiles of a frame's keys share: the weights with which it began, E, and the gradient."""
    b_d_w, b_d_bias, p_gradient = gradient
    b_e, b_e_bias = -b_d_w / frame.size, -b_d_bias / frame.size
    if C.D > 64:
        tl.store(p_gradient + matrix(C.D, C.D), b_e)
        tl.debug_barrier()
    return load(p_weights, C), (b_e, b_e_bias, p_gradient), gradient


@triton.jit
def step(weights, e, b_k, at, frame, C):
    """g(k) of a tile of keys."""
    return apply(weights, b_k, at, C)


@triton.jit
def step_gradient(e, b_k, hidden, C):
    """The gradient at the steps of a tile of keys (equation 17)."""
    return dot(b_k, operand(e[0], e[2] + matrix(C.D, C.D), C), C) + e[1]


@triton.jit
def step_backward(weights, e, gradient, b_k, at, hidden, b_g, b_d_z, b_d_k, at_d_k, p_scratch, frame, C):
    """Equations 18 and 19 for a tile: the gradient of the weights, and b_d_k plus that of the keys at `at_d_k`."""
    b_d_w, b_d_bias, p_gradient = gradient
    b_w, b_e = weights[0], e[0]
    b_d_x = dot(b_d_z, tl.trans(operand(b_w, weights[2] + matrix(C.D, C.D), C)), C)
    b_d_x += dot(b_g, tl.trans(operand(b_e, p_gradient + matrix(C.D, C.D), C)), C)
    store_tile(at_d_k, b_d_k + b_d_x, C)
    b_d_w += dot(tl.trans(b_k), b_d_z, C)
    b_d_bias += column_sums(b_d_z)
    return b_d_w, b_d_bias, p_gradient


@triton.jit
def close_step(weights, e, gradient, reset, p_d_start, frame, p_d_k, p_scratch, C):
    """The gradient at the weights that the frame before left."""
    b_d_w, b_d_bias, p_gradient = gradient
    if C.RESET:
        b_d_w = add_at_reset(p_d_start + matrix(C.D, C.D), b_d_w, reset)
        b_d_bias = add_at_reset(p_d_start + C.D * C.D + tl.arange(0, C.D), b_d_bias, reset)
    return b_d_w, b_d_bias, p_gradient


@triton.jit
def begin_gradients(p_d_end, p_d_weights, p_d_start, C):
    """The gradient at the weights after the last frame; the state is their difference from the start."""
    b_d_w, b_d_bias = load(p_d_end, C)[:2]
    store((-b_d_w, -b_d_bias), p_d_start, C)
    tl.debug_barrier()
    return b_d_w, b_d_bias, p_d_weights


@triton.jit
def end_gradients(gradient, pull, p_start, p_d_weights, p_d_start, C):
    """Add to the gradient of the start that of the weights with which the call began, and `pull` times the start."""
    b_d_w, b_d_bias = gradient[0], gradient[1]
    store(gradient, p_d_weights, C)
    b_sum, b_sum_bias = load(p_d_start, C)[:2]
    b_d_w += b_sum
    b_d_bias += b_sum_bias
    if C.MAX_NORM:
        b_w, b_bias = load(p_start, C)[:2]
        b_d_w += pull * b_w
        b_d_bias += pull * b_bias
    store((b_d_w, b_d_bias), p_d_start, C)
