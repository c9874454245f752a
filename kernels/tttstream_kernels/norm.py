"""Layer normalisation, and the gradient of the squared error behind it, in closed form (README, equations 1 to 4).

`f(x; W) = x + LN(g(x; W))` and `l = 1/2 |f(k) - v|^2`: with `target = v - k` the residual drops out of the loss.
"""

from typing import Any

import torch
from torch import Tensor, native_layer_norm

_backward = torch.ops.aten.native_layer_norm_backward.default
_INPUT = [True, False, False]  # of its gradients, the one of the input

EPS = 1e-6
"""The one epsilon of every layer normalisation in tttstream (the paper's official releases use 1e-6)."""


def standardise(z: Tensor) -> Tensor:
    """z^ of equation 1 over the last dimension: [..., D] -> [..., D]."""
    return native_layer_norm(z, z.shape[-1:], None, None, EPS)[0]


def normalise(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN over the last dimension, gamma and beta broadcast to z: [..., D] -> [..., D]."""
    return torch.addcmul(beta, gamma, standardise(z))


def half_square(error: Tensor) -> Tensor:
    """1/2 |error|^2 over the last dimension: [..., D] -> [...]."""
    return 0.5 * error.square().sum(-1)


def error_share(error: Tensor, margin: float | Tensor) -> Tensor:
    """max(0, 1 - margin / r), r the root mean square of the error LN(z) - target: [..., D] -> [..., 1].

    This share of the gradient of 1/2 |error|^2 is the gradient of 1/2 D max(0, r - margin)^2 (equation 2b).
    """
    rms = torch.linalg.vector_norm(error, dim=-1, keepdim=True) * error.shape[-1] ** -0.5
    return 1.0 - margin / rms.clamp(min=margin)


def error_terms(target: Tensor, gamma: Tensor, beta: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """(offset, scale) [..., D] such that rate * gamma * (LN(z) - target) = offset + scale * z^ (equation 2).

    They do not depend on the weights, so a stream computes them for all its tokens at once; rate [..., 1].
    """
    weight = rate * gamma
    return weight * (beta - target), weight * gamma


def reconstruction_gradient(z: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    """Rate times the gradient of 1/2 |LN(z) - target|^2 with respect to z, from `error_terms`: [..., D]."""
    if torch.is_grad_enabled():
        gradient: Tensor = _ReconstructionGradient.apply(z, offset, scale)
        return gradient
    return gradient_parts(z, offset, scale)[0]


def reconstruction(z: Tensor, offset: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """`reconstruction_gradient`, scale [..., 1, D], and without a graph the rest of what `reconstruction_backward`
    takes: u, z^, the mean and 1/s."""
    if torch.is_grad_enabled():
        return (_ReconstructionGradient.apply(z, offset, scale.expand_as(offset)),)
    return gradient_parts(z, offset, scale)


def reconstruction_backward(
    out: Tensor,
    z: Tensor,
    scale: Tensor,
    gradient: Tensor,
    u: Tensor,
    z_hat: Tensor,
    mean: Tensor,
    rstd: Tensor,
    *,
    moments: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to z and to u (equation 4), from `out`, that with respect to `reconstruction`'s first
    result. moments: (-1/(D s), -mean(u z^)/s), for a caller who computes them for a whole stream at once."""
    share = rstd / -z.shape[-1] if moments is None else moments[0]
    along = share * (u * z_hat).sum(-1, keepdim=True) if moments is None else moments[1]
    d_u = _through(out, z, mean, rstd)
    d_z = _through(scale * d_u, z, mean, rstd).addcmul(along, d_u)
    for a, b, direction in ((out, z_hat, gradient), (d_u, u, z_hat)):
        d_z = d_z.addcmul_(share * (a * b).sum(-1, keepdim=True), direction)
    return d_z, d_u


def _through(u: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The backward pass of z -> z^: [u - mean(u) - z^ mean(u z^)] / s, equation 3; its own transpose in u."""
    through: Tensor = _backward(u, z, z.shape[-1:], mean, rstd, None, None, _INPUT)[0]
    return through


def gradient_parts(z: Tensor, offset: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """`reconstruction` without a graph."""
    shape = z.shape[-1:]
    z_hat, mean, rstd = native_layer_norm(z, shape, None, None, EPS)
    u = torch.addcmul(offset, scale, z_hat)
    return _backward(u, z, shape, mean, rstd, None, None, _INPUT)[0], u, z_hat, mean, rstd


def _written_out(z: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
    centred = z - z.mean(-1, keepdim=True)
    rstd = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    z_hat = centred * rstd
    u = torch.addcmul(offset, scale, z_hat)
    return rstd * (u - u.mean(-1, keepdim=True) - z_hat * (u * z_hat).mean(-1, keepdim=True))


class _ReconstructionGradient(torch.autograd.Function):
    """The same with its derivative in closed form (equation 4), half the operations that autograd would take."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, offset: Tensor, scale: Tensor) -> Tensor:
        gradient, *parts = gradient_parts(z, offset, scale)
        ctx.save_for_backward(z, offset, scale, gradient, *parts)
        return gradient

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Gradients with respect to z, offset and scale."""
        (out,) = gradients
        z, offset, scale, gradient, u, z_hat, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # the graph of this pass is wanted: ATen's kernel is right to the second order only
            return torch.autograd.grad(_written_out(z, offset, scale), (z, offset, scale), out, create_graph=True)
        d_z, d_u = reconstruction_backward(out, z, scale, gradient, u, z_hat, mean, rstd)
        return d_z, d_u, d_u * z_hat
