"""The worked example of CONTRIBUTING.md: an inner model is a class, a line of the definition, and a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tttstream import TTTLayer
from tttstream.inner import CATALOGUE, InnerModel, bounded, scaled_init, takes_frames
from tttstream.memory import names
from tttstream_kernels import Inner, Update, definition, ttt
from tttstream_kernels.testing import TOLERANCE
from tttstream_kernels.update import Weights

known = definition.g


@dataclass(frozen=True)
class Matrix(Inner):
    """g(x) = x W."""

    name: ClassVar[str] = "matrix"
    bias: ClassVar[bool] = False

    def shapes(self, width: int) -> tuple[tuple[int, int], ...]:
        return ((width, width),)

    def forward(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
        return torch.bmm(x, weights[0]), x

    def gradients(self, g: Tensor, weights: Weights, saved: Any, rates: Tensor | None = None) -> Weights:
        return (torch.bmm(saved.mT, g),)


def defined(inner: Inner, x: Tensor, weights: list[Tensor]) -> Tensor:
    return x @ weights[0] if inner.name == "matrix" else known(inner, x, weights)


def test_a_new_inner_model(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 2, 8, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(2, 36).double(), torch.ones(2, 6).double(), torch.zeros(2, 6).double()
    call: dict[str, Any] = {"mini_batch": 4, "causal": "frame", "return_loss": True}
    call["update"] = Update(forget=0.1, max_norm=2.0, columns=True)
    eta = torch.full((2, 8, 2), 0.1).double()
    with pytest.raises(NotImplementedError, match="the definition does not know the matrix inner model"):
        ttt(Matrix(), *x, eta, *weights, backend="definition", **call)
    monkeypatch.setattr(definition, "g", defined)
    ours, theirs = (ttt(Matrix(), *x, eta, *weights, backend=backend, **call) for backend in ("torch", "definition"))
    for a, b in zip((ours[0], *ours[1], *ours[2]), (theirs[0], *theirs[1], *theirs[2]), strict=True):  # type: ignore[misc]
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[torch.float64])
    assert not takes_frames("ttt_matrix")
    monkeypatch.setitem(CATALOGUE, "matrix", InnerModel(lambda grid: Matrix(), 1.0, scaled_init, bounded(3.0, 3.0)))
    assert takes_frames("ttt_matrix")
    assert [name for name in names() if takes_frames(name)] == ["ttt_conv", "ttt_swiglu"]
    layer = TTTLayer(12, 2, "matrix", causal="frame", grid=(2, 2))
    y, state = layer(torch.randn(1, 8, 12))
    assert y.isfinite().all()
    assert state.delta.abs().max() > 0.0
