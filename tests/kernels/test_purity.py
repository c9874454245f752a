"""Ops are pure: they give the same with and without gradients, where they may work in place, and change no argument."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tttstream_kernels import MLP, RMS, Inner, InnerState, Linear, Muon, Update, init_state, ttt
from tttstream_kernels.activation import gelu_backward
from tttstream_kernels.norm import reconstruction_gradient

ROWS, TOKENS, HEADS, WIDTH, K = 4, 23, 2, 6, 4
UPDATES = {
    "normalised": Update(forget=0.1, max_norm=1.05, step="normalised"),
    "plain": Update(),
    "margin": Update(forget=0.1, max_norm=1.05, margin=torch.tensor([0.5, 1.2])),
    "settled": Update(forget=0.1, max_norm=1.05),
    "learned": Update(forget=torch.tensor([0.1, 0.2]), max_norm=torch.tensor([1.05, 1.5]), restore=True),
    "momentum": Update(forget=torch.tensor([0.1, 0.2]), momentum=0.5, max_norm=2.0, restore=True),
    "muon": Update(momentum=0.5, max_norm=2.0, direction=Muon()),
    "rms": Update(momentum=0.5, max_norm=2.0, direction=RMS()),
}


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
@pytest.mark.parametrize("lengths", [None, [23, 0, 7, 16], [8, 8, 23, 4]], ids=["full", "idle", "short"])
@pytest.mark.parametrize("resets", [False, True], ids=["whole", "reset"])
@pytest.mark.parametrize("phases", [[0, 1, 2, 3], [3, 3, 3, 3]], ids=["apart", "abreast"])
def test_same_without_gradients(
    inner: Inner, update: Update, lengths: list[int] | None, resets: bool, phases: list[int]
) -> None:
    stream = [random(ROWS, TOKENS, HEADS, WIDTH, seed=seed) for seed in range(3)]
    weights = [0.3 * random(HEADS, inner.size(WIDTH), seed=3), *random(2, HEADS, WIDTH, seed=4)]
    arguments = [*stream, 0.3 * random(ROWS, TOKENS, HEADS, seed=5).abs(), *weights]
    fresh = init_state(inner, ROWS, HEADS, WIDTH, update, "token", stream[0])
    parts = [0.1 * random(*part.shape, seed=6).abs() for part in fresh[:3]]
    state = InnerState(*parts, torch.tensor(phases, dtype=torch.float64))
    options = {
        "mini_batch": K,
        "state": state,
        "reset": random(ROWS, TOKENS, seed=7) < -1.0 if resets else None,
        "lengths": None if lengths is None else torch.tensor(lengths),
        "update": update,
        "return_loss": True,
    }
    before = [x.clone() for x in (*arguments, *state)]
    y, new, loss = ttt(inner, *arguments, **options)
    with torch.no_grad():
        again = ttt(inner, *arguments, **options)
    assert loss is not None
    assert again[2] is not None
    for one, other in zip((y, *new, *loss), (again[0], *again[1], *again[2]), strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-12)
    for was, now in zip(before, (*arguments, *state), strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize("seed", range(3))
def test_derivatives_equal_finite_differences(seed: int) -> None:
    """First and second derivatives of the functions that the outer loop differentiates."""
    z, offset, scale = (random(2, 3, 5, seed=10 * seed + i).requires_grad_() for i in range(3))
    assert torch.autograd.gradcheck(reconstruction_gradient, (z, offset, scale))
    assert torch.autograd.gradgradcheck(reconstruction_gradient, (z, offset, scale))
    g, x = (random(4, 7, seed=10 * seed + i).requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(gelu_backward, (g, x))
    assert torch.autograd.gradgradcheck(gelu_backward, (g, x))
