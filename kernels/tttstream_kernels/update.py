"""What happens at the end of a mini-batch: step, then forgetting, then the norm of the last layer.

Each part depends on the weights, the summed gradient and the momentum alone, never on where a call was cut, so that
any partition of a stream gives the same weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Weights = tuple[Tensor, ...]
"""The weights of an inner model, one tensor [R, rows, columns] a layer, R = rows of the batch times heads."""


class Update(NamedTuple):
    """The inner optimiser beyond the paper's plain gradient step. Every number may be a tensor [H], and be learned.

    forget: share of the difference from the learned start that is lost at each mini-batch end, 0..1.
    momentum: mu of M <- mu M + step, W <- W - M, 0..1.
    longest: the last layer's (W, b) is cut to this joint norm when it is longer, or to the norm that it has at the
        learned start where that is larger; None leaves it.
    restore: put the norm to exactly `longest` at every end, shorter or longer.
    columns: put every column of every layer back to the norm it has at the learned start, after each update (LaCT).
    follow: multiply the learning rate by the square of the last layer's norm over that of the learned start.

    Why the norm: f ends in a layer normalisation, so the loss does not depend on the last layer's scale; its gradient
    stands at a right angle to (W, b), every step makes them longer, and the effective learning rate falls as 1/|W|^2.
    """

    forget: float | Tensor = 0.0
    momentum: float | Tensor = 0.0
    longest: float | Tensor | None = None
    restore: bool = False
    columns: bool = False
    follow: bool = False

    @property
    def has_momentum(self) -> bool:
        """Whether the state holds a momentum."""
        return isinstance(self.momentum, Tensor) or self.momentum != 0.0

    def cells(self, rows: int) -> Update:
        """The same with every [H] tensor repeated for each row of the batch: [rows * H, 1, 1]."""

        def spread(value: Any) -> Any:
            return value.repeat(rows).view(-1, 1, 1) if isinstance(value, Tensor) else value

        return self._replace(forget=spread(self.forget), momentum=spread(self.momentum), longest=spread(self.longest))


def norm(weight: Tensor) -> Tensor:
    """Joint norm of a layer's (W, b): [R, rows, columns] -> [R, 1, 1]."""
    return torch.linalg.vector_norm(weight, dim=(-2, -1), keepdim=True)


def rate_factor(update: Update, start: Weights, delta: Weights) -> Tensor | None:
    """(|W| / |W_init|)^2 of the last layer where the rate follows it, [R, 1, 1]; else None."""
    if not update.follow:
        return None
    return (norm(start[-1] + delta[-1]) / norm(start[-1])).square()


def finish(
    update: Update, start: Weights, delta: Weights, step: Sequence[Tensor], momentum: Weights
) -> tuple[Weights, Weights]:
    """(delta, momentum) after a mini-batch whose plain step is `step` (already scaled by tau or 1/N)."""
    if update.has_momentum:
        step = momentum = tuple(update.momentum * m + s for m, s in zip(momentum, step, strict=True))
    delta = tuple(d - s for d, s in zip(delta, step, strict=True))
    if isinstance(update.forget, Tensor) or update.forget != 0.0:
        delta = tuple((1.0 - update.forget) * d for d in delta)
    if update.longest is not None:
        last = start[-1] + delta[-1]
        length = norm(last)
        scale = update.longest / length
        if not update.restore:
            scale = torch.maximum(scale, norm(start[-1]) / length).clamp(max=1.0)
        delta = (*delta[:-1], scale * last - start[-1])
    if update.columns:
        delta = tuple(_column_norms(s, s + d) - s for s, d in zip(start, delta, strict=True))
    return delta, momentum


def _column_norms(start: Tensor, weight: Tensor) -> Tensor:
    """`weight` with every column as long as that of `start`."""
    lengths = (
        torch.linalg.vector_norm(start, dim=-2, keepdim=True),
        torch.linalg.vector_norm(weight, dim=-2, keepdim=True),
    )
    return weight * (lengths[0] / lengths[1])
