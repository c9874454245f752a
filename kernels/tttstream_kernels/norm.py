"""Layer normalisation, the reconstruction loss behind it, and that loss's gradient in closed form.

`f(x; W) = x + LN(g_W(x))` and `l = 1/2 |f(k) - v|^2`. With `target = v - k` the residual drops out of the loss.
The gradient with respect to Z = g(k) is (maths: x^ the normalised Z, s its standard deviation, D the width)

    u = gamma * (gamma * x^ + beta - target)        G = [D u - sum(u) - x^ sum(u * x^)] / (D s)

which is what the backward pass of a plain layer normalisation computes, so ATen's own fused kernel does it here; it
is differentiable in its turn, which the outer loop needs.
"""

import torch
from torch import Tensor, native_layer_norm

aten = torch.ops.aten

EPS = 1e-6
"""The one epsilon of every layer normalisation in tttstream (the paper's official releases use 1e-6)."""


def normalise(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN over the last dimension, gamma and beta broadcast to z: [..., D] -> [..., D]."""
    x_hat = native_layer_norm(z, z.shape[-1:], None, None, EPS)[0]
    return beta.addcmul(gamma, x_hat)


def reconstruction_gradient(z: Tensor, target: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """(G, error): the gradient of 1/2 |LN(z) - target|^2 with respect to z, and LN(z) - target; both [..., D]."""
    x_hat, mean, rstd = native_layer_norm(z, z.shape[-1:], None, None, EPS)
    error = (beta - target).addcmul(gamma, x_hat)
    u = gamma * error
    return aten.native_layer_norm_backward(u, z, z.shape[-1:], mean, rstd, None, None, [True, False, False])[0], error
