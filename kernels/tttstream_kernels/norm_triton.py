"""Device functions that the Triton kernels share: layer normalisation, GELU, and their derivatives (README, 1 to 6).

Tiles are [tokens, width] in float32, or [width, tokens] with AXIS=0: a whole head, so sums over AXIS need no mask. A
constant stands behind its tile: in the interpreter a constexpr times a tile is no tile.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from tttstream_kernels import activation, norm

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether the kernels of this process run in Triton's interpreter, which is decided when they are defined."""
EPS = tl.constexpr(norm.EPS)
C = tl.constexpr(activation.C)
A = tl.constexpr(activation.A)


@triton.jit
def mean(x, AXIS: tl.constexpr = 1):
    """Mean of every token."""
    return tl.sum(x, axis=AXIS, keep_dims=True) / x.shape[AXIS]


@triton.jit
def standardise(z, AXIS: tl.constexpr = 1):
    """z^ and 1 / s (equation 1)."""
    centred = z - mean(z, AXIS)
    rstd = 1.0 / tl.sqrt(mean(centred * centred, AXIS) + EPS)
    return centred * rstd, rstd


@triton.jit
def through(u, z_hat, rstd, AXIS: tl.constexpr = 1):
    """J u = [u - mean(u) - z^ mean(u z^)] / s (equation 3). J is symmetric: this is its own backward pass in u."""
    return rstd * (u - mean(u, AXIS) - z_hat * mean(u * z_hat, AXIS))


@triton.jit
def gradient_backward(d_gradient, gradient, u, scale, z_hat, rstd, AXIS: tl.constexpr = 1):
    """The gradients of u and z (equation 4) through `gradient` = J u, where u = offset + scale * z^."""
    d_u = through(d_gradient, z_hat, rstd, AXIS)
    bend = mean(u * z_hat, AXIS) * d_u + mean(d_gradient * z_hat, AXIS) * gradient + mean(d_u * u, AXIS) * z_hat
    return d_u, through(scale * d_u, z_hat, rstd, AXIS) - rstd * bend


@triton.jit
def _shares(x):
    """p = sigmoid(2 h) and 1 - p, each exact where it is small; h = c (x + a x^3). tl.sigmoid has no interpreter."""
    e = tl.exp(tl.minimum(x * (-2.0 * C) * (1.0 + x * x * A), 80.0))
    p = 1.0 / (1.0 + e)
    return p, e * p


@triton.jit
def gelu(x):
    """Tanh-GELU, x p."""
    return x * _shares(x)[0]


@triton.jit
def gelu_slope(x):
    """First derivative of tanh-GELU: p + 2 x p (1 - p) h'."""
    p, rest = _shares(x)
    return p + x * (2.0 * C) * p * rest * (1.0 + x * x * (3.0 * A))


@triton.jit
def gelu_bend(x):
    """Second derivative of tanh-GELU (equation 6), with 1 - t^2 = 4 p (1 - p) and t = p - (1 - p)."""
    p, rest = _shares(x)
    square = x * x
    slope = (1.0 + square * (3.0 * A)) * C
    return 4.0 * p * rest * ((1.0 + square * (6.0 * A)) * C - x * (p - rest) * slope * slope)
