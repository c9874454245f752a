"""Directions of a step: changes of a mini-batch's gradient sum before it is applied to the weights (README, 23 to 25).

Shapes: R = rows times heads; every layer is one matrix [R, rows, columns] with its bias as the last row.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tttstream_kernels.errors import ConfigError

Layers = tuple[Tensor, ...]
"""One matrix [R, rows, columns] a layer."""

SMALL = 1e-12
"""Added to squared lengths, so that a step of length 0 has a derivative."""

QUINTIC = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X, the Newton-Schulz steps of large-chunk TTT; the last of them are
taken where fewer are wanted."""


@dataclass(frozen=True)
class Direction:
    """The change of a step's direction at the end of its mini-batch.

    Queries inside the mini-batch see the plain gradient sum, so the dual form is unchanged, and a stream can be split
    into calls anywhere.

    second: whether the state carries a second moment, as large as the weights, beside the momentum.
    """

    second: ClassVar[bool] = False

    def turned(self, total: Layers, step: Layers, moment: Layers) -> tuple[Layers, Layers]:
        """(the change of the weights, the next second moment).

        total: the step with its momentum. step: of this mini-batch alone. moment: the second moment, () without one.
        """
        raise NotImplementedError(f"{type(self).__name__} must define turned")


@dataclass(frozen=True)
class Muon(Direction):
    """The nearest orthogonal matrix, by Newton-Schulz steps (Jordan et al., Muon; in a TTT layer: Zhang et al.,
    arXiv 2505.23884, section 3): all directions that a chunk's gradients span are learned to the same extent.

    size: the singular values of a step, as published, whatever the learning rate; None keeps the Frobenius norm of the
        plain step, so that rates mean what they mean without it and a step becomes small where the loss is small. A
        step of one token, whose matrix has rank one, is then the plain one.
    steps: of Newton-Schulz, 1 to 5. They raise singular values over 1/30 (3 steps) or 1/500 (5, as published) of the
        norm to about 1, and raise the rounding errors of smaller ones with them. After 5 steps, float32 results of
        two ways to cut a stream differ by more than 1e-5 of the largest value.
    """

    size: float | None = None
    steps: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= len(QUINTIC):
            raise ConfigError(f"Muon: expected 1 to {len(QUINTIC)} steps, got {self.steps}")
        if self.size is not None and not self.size > 0.0:
            raise ConfigError(f"Muon: size must be more than 0 or None, got {self.size}")

    def turned(self, total: Layers, step: Layers, moment: Layers) -> tuple[Layers, Layers]:
        return tuple(self._one(x) for x in total), moment

    def _one(self, x: Tensor) -> Tensor:
        own = length(x)
        direction = orthogonal(x / own, self.steps)
        return direction * (own / length(direction) if self.size is None else self.size)


@dataclass(frozen=True)
class RMS(Direction):
    """A diagonal preconditioner: every weight's step over the root of its own second moment, V <- decay V + step^2
    (as RMSProp; decay near 1 as Adagrad, Duchi et al., JMLR 2011). The step keeps its Frobenius norm, so no scale of V
    matters: it needs no bias correction, and a long past does not make steps small.

    decay: of V at a mini-batch end, 0 to less than 1. damping: added to V, as a share of its mean.
    """

    second: ClassVar[bool] = True
    decay: float = 0.99
    damping: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0 or not self.damping > 0.0:
            raise ConfigError(
                f"RMS: expected a decay of 0 to less than 1 and a damping above 0, got decay={self.decay}, "
                f"damping={self.damping}"
            )

    def turned(self, total: Layers, step: Layers, moment: Layers) -> tuple[Layers, Layers]:
        moment = tuple(self.decay * v + s * s for v, s in zip(moment, step, strict=True))
        pairs = zip(total, moment, strict=True)
        return tuple(self._one(x, v) for x, v in pairs), moment

    def _one(self, x: Tensor, v: Tensor) -> Tensor:
        floor = self.damping * v.mean((-2, -1), keepdim=True) + SMALL * SMALL
        direction = x * (v + floor).rsqrt()
        return direction * (length(x) / length(direction))


def length(x: Tensor) -> Tensor:
    """Frobenius norm [R, 1, 1], at least 1e-6."""
    return (x.square().sum((-2, -1), keepdim=True) + SMALL).sqrt()


def orthogonal(x: Tensor, steps: int) -> Tensor:
    """Matrices [R, rows, columns] of Frobenius norm 1 at most -> the same with all larger singular values near 1."""
    if x.shape[-2] > x.shape[-1]:
        return orthogonal(x.mT, steps).mT
    for a, b, c in QUINTIC[-steps:]:
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
