"""The functions that the Triton kernels share, against those of the reference in float64."""

from __future__ import annotations

import pytest
import torch

from tttstream_kernels import activation, norm

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language", reason="triton is not installed")

from tttstream_kernels import norm_triton  # noqa: E402

ROWS = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@triton.jit
def _everything(z, offset, scale, d_gradient, out, WIDTH: tl.constexpr):
    at = tl.arange(0, 16)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x, c, d = tl.load(z + at), tl.load(scale + at), tl.load(d_gradient + at)
    z_hat, rstd = norm_triton.standardise(x)
    u = tl.load(offset + at) + c * z_hat
    gradient = norm_triton.through(u, z_hat, rstd)
    d_u, d_z = norm_triton.gradient_backward(d, gradient, u, c, z_hat, rstd)
    size: tl.constexpr = 16 * WIDTH
    tl.store(out + at, gradient)
    tl.store(out + size + at, d_z)
    tl.store(out + 2 * size + at, d_u)
    tl.store(out + 3 * size + at, norm_triton.gelu(x))
    tl.store(out + 4 * size + at, norm_triton.gelu_slope(x))
    tl.store(out + 5 * size + at, norm_triton.gelu_bend(x))


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("width", [16, 64])
def test_functions_and_derivatives_equal_those_of_the_torch_backend(width: int, size: float) -> None:
    generator = torch.Generator().manual_seed(width)
    z, offset, scale, d_gradient = torch.randn(4, ROWS, width, generator=generator)
    z = size * z
    out = torch.full((6, ROWS, width), torch.nan, device=DEVICE)
    _everything[(1,)](*(x.to(DEVICE) for x in (z, offset, scale, d_gradient)), out, WIDTH=width)

    x, a, c = (part.double().requires_grad_() for part in (z, offset, scale))
    gradient = norm.reconstruction_gradient(x, a, c)
    d_z, d_u = torch.autograd.grad(gradient, (x, a), d_gradient.double())
    slope = activation.gelu_backward(torch.ones_like(x), x)
    (bend,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
    expected = (gradient, d_z, d_u, activation.gelu(x), slope, bend)
    for ours, theirs in zip(out, (part.detach() for part in expected), strict=True):
        largest = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=0, atol=3e-6 * largest)
