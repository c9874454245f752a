"""The end of a mini-batch: step, then forgetting, then the norm of the last layer.

Each part depends on the weights, the summed gradient and the momentum alone, never on where a call was cut, so that
any partition of a stream gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.direction import Direction
from tttstream_kernels.norm import EPS

Weights = tuple[Tensor, ...]
"""The weights of an inner model, one tensor [R, rows, columns] a layer, R = rows of the batch times heads."""


class Update(NamedTuple):
    """The inner optimiser beyond the paper's plain gradient step. Every number may be a tensor [H], and be learned.

    forget: weight decay towards the learned start: the share of the difference from it that is lost at each mini-batch
        end, 0..1.
    momentum: mu of M <- mu M + step, W <- W - M, 0..1.
    max_norm: the last layer's (W, b) is cut to this joint norm when it is longer, or to the norm that it has at the
        learned start where that is larger; None leaves it.
    restore: put the norm to exactly `max_norm` at every end, shorter or longer.
    columns: put every column of every layer back to the norm it has at the learned start, after each update (LaCT).
    step: "plain", the paper's; or "normalised": the scale tau of the sum of a mini-batch's gradients becomes
        tau / (1 + tau c), c the curvature of its loss along that sum, so that no rate is too large
        (`normalised_scale`).
    direction: the change of the step's direction at the mini-batch end (`Muon`, `RMS`); None for none.
    margin: m of the inner loss 1/2 D max(0, r - m)^2, r the root mean square of a token's error over the D channels of
        its head; 0 is the paper's loss. A token with an error below m changes no weight, so tokens that are known do
        not overwrite others. This is the epsilon-insensitive loss of passive-aggressive learning (Crammer et al.,
        JMLR 2006), squared. The loss that calls return stays the paper's.

    Why the norm: f ends in a layer normalisation, so the loss does not depend on the last layer's scale; its gradient
    stands at a right angle to (W, b), every step makes them longer, and the effective learning rate falls as 1/|W|^2.
    """

    forget: float | Tensor = 0.0
    momentum: float | Tensor = 0.0
    max_norm: float | Tensor | None = None
    restore: bool = False
    columns: bool = False
    step: Literal["plain", "normalised"] = "plain"
    direction: Direction | None = None
    margin: float | Tensor = 0.0

    @property
    def has_momentum(self) -> bool:
        """Whether the state holds a momentum."""
        return isinstance(self.momentum, Tensor) or self.momentum != 0.0

    @property
    def normalised(self) -> bool:
        """Whether the step is normalised; the state then holds the loss of the unfinished mini-batch too."""
        return self.step == "normalised"

    @property
    def plain(self) -> bool:
        """Whether the step is the plain one, and only forgetting and the last layer's norm come after it."""
        return not (self.has_momentum or self.columns or self.normalised or self.direction is not None)

    @property
    def has_moment(self) -> bool:
        """Whether the state holds a second moment."""
        return self.direction is not None and self.direction.second

    def carried(self, flat: Tensor, split: Callable[[Tensor], Weights]) -> tuple[Weights, Weights]:
        """The momentum and the second moment in a state's `momentum`, layer by layer; () for an absent one.
        split: [..., P] to layers."""
        if not self.has_moment:
            return split(flat) if self.has_momentum else (), ()
        size = flat.shape[-1] // (1 + self.has_momentum)
        return split(flat[..., :-size]) if self.has_momentum else (), split(flat[..., -size:])

    def joined(self, carried: Sequence[Weights], like: Tensor) -> Tensor:
        """The inverse of `carried`, for as many rows and heads [..., H, _] as `like` has."""
        flat = [torch.cat([w.flatten(1) for w in part], dim=1) for part in carried if part]
        return torch.cat(flat, dim=1).view(-1, *like.shape[1:]) if flat else like

    @property
    def has_margin(self) -> bool:
        """Whether tokens with a small error change no weight."""
        return isinstance(self.margin, Tensor) or self.margin != 0.0

    def rule(self, start: Weights) -> Rule:
        """This update bound to R cells, whose learned start is `start`."""

        def cells(value: float | Tensor) -> float | Tensor:
            return per_cell(value, start[-1])

        limit = None if self.max_norm is None else cells(self.max_norm)
        if isinstance(limit, float) and self.restore:
            limit = start[-1].new_full((start[-1].shape[0], 1, 1), limit)  # quicker than a number to divide by a norm
        elif limit is not None and not self.restore:
            limit = norm(start[-1]).clamp(min=limit)
        return Rule(start, limit, cells(self.forget), cells(self.momentum), cells(self.margin), self)


class Rule(NamedTuple):
    """An `Update` bound to R cells (rows times heads). start: their learned start. limit: the largest norm of
    their last layer, or None. Numbers may be tensors [R, 1, 1]."""

    start: Weights
    limit: float | Tensor | None
    forget: float | Tensor
    momentum: float | Tensor
    margin: float | Tensor
    update: Update

    def first(self, count: int) -> Rule:
        """The same for the first `count` cells."""
        if count == self.start[0].shape[0]:
            return self
        rest: list[Any] = [value[:count] if isinstance(value, Tensor) else value for value in self[1:]]
        return Rule(tuple(w[:count] for w in self.start), *rest)

    def base(self, weights: Weights, momentum: Weights) -> Weights:
        """The weights that queries see before any step of their mini-batch: W - mu M."""
        if not self.update.has_momentum:
            return weights
        return tuple(w - self.momentum * m for w, m in zip(weights, momentum, strict=True))

    def stepped(
        self, weights: Weights, step: Weights, momentum: Weights, moment: Weights
    ) -> tuple[Weights, Weights, Weights]:
        """Weights, momentum and second moment right after the step of a full mini-batch, its scale included."""
        total = step
        if self.update.has_momentum:
            total = momentum = tuple(self.momentum * m + s for m, s in zip(momentum, step, strict=True))
        if self.update.direction is not None:
            total, moment = self.update.direction.turned(total, step, moment)
        return tuple(w - s for w, s in zip(weights, total, strict=True)), momentum, moment

    @property
    def forgets(self) -> bool:
        """Whether weights move towards their learned start."""
        return isinstance(self.forget, Tensor) or self.forget != 0.0

    def mixed(self, weights: Weights, in_place: bool = False) -> Weights:
        """The weights after forgetting."""
        if not self.forgets:
            return weights
        lerp = torch.Tensor.lerp_ if in_place else torch.lerp
        return tuple(lerp(w, s, self.forget) for w, s in zip(weights, self.start, strict=True))

    def scale(self, weight: Tensor) -> Tensor | None:
        """The factor [R, 1, 1] that cuts the last layer to `max_norm` or puts it back to that; None without a bound."""
        if self.limit is None:
            return None
        scale = self.limit / norm(weight)
        return scale if self.update.restore else scale.clamp(max=1.0)

    def step(
        self,
        weights: Weights,
        carried: Sequence[Weights],
        inputs: Sequence[Tensor],
        steps: Sequence[Tensor],
        grad_sum: Weights,
        tau: float | Tensor,
        nan: Tensor | None = None,
        in_place: bool = False,
    ) -> Stepped:
        """The end of a mini-batch (equation 9).

        carried: momentum and second moment, empty for none. inputs: transposed [R, rows, K], steps: [R, K, columns], of
        all its tokens but those in `grad_sum`. tau: scale of its last token, a number or [R, 1, 1]. nan: [R, 1, 1], NaN
        for cells with a token that is not finite. If `forget` is a number, the product that makes the step also applies
        it.
        """
        learned = isinstance(self.forget, Tensor)
        forgotten = not learned
        if carried[0] or self.update.direction is not None:
            step = tuple(tau * s for s in gradient_sums(inputs, steps, grad_sum, nan))
            stepped, *carried = self.stepped(weights, step, *carried)
            forgotten = False
        else:
            if isinstance(tau, Tensor):
                steps, grad_sum, tau = [tau * s for s in steps], tuple(tau * s for s in grad_sum), 1.0
            stay: Any = 1.0 if learned else 1.0 - self.forget
            made = []
            for n, weight in enumerate(weights):
                out = weight if in_place else None
                if grad_sum:
                    weight = torch.add(weight, grad_sum[n], alpha=-tau, out=out)
                weight = torch.baddbmm(weight, inputs[n], steps[n], beta=stay, alpha=-stay * tau, out=out)
                if stay != 1.0:
                    weight = torch.add(weight, self.start[n], alpha=1.0 - stay, out=out)
                made.append(weight if nan is None else weight + nan)
            stepped = tuple(made)
        in_place = in_place or not (learned or torch.is_grad_enabled())
        settled, scale = self.settle(stepped, in_place, forgotten)
        return Stepped(settled, carried, stepped, scale)

    def settle(
        self, weights: Weights, in_place: bool = False, forgotten: bool = False
    ) -> tuple[Weights, Tensor | None]:
        """The weights with which the next mini-batch starts, from those right after the step, and what the last layer
        was multiplied with [R, 1, 1], None where its norm is free. forgotten: `forget` has been applied."""
        weights = weights if forgotten else self.mixed(weights, in_place)
        scale = self.scale(weights[-1])
        if scale is not None:
            multiply = torch.Tensor.mul_ if in_place else torch.mul
            weights = (*weights[:-1], multiply(weights[-1], scale))
        if self.update.columns:
            weights = tuple(w * (_columns(s) / _columns(w)) for w, s in zip(weights, self.start, strict=True))
        return weights, scale


class Stepped(NamedTuple):
    """Weights for the next mini-batch; momentum and second moment; the weights right after the step (overwritten unless
    there is a graph or `forget` is learned); the scale of the last layer, see `Rule.settle`."""

    weights: Weights
    carried: Sequence[Weights]
    before: Weights
    scale: Tensor | None


def gradient_sums(
    inputs: Sequence[Tensor], steps: Sequence[Tensor], grad_sum: Weights, nan: Tensor | None = None
) -> Weights:
    """S of a mini-batch, layer by layer. Arguments as those of `Rule.step`."""
    sums = tuple(torch.bmm(x, step) for x, step in zip(inputs, steps, strict=True))
    for more in (grad_sum, () if nan is None else (nan,) * len(sums)):
        sums = tuple(a + b for a, b in zip(sums, more, strict=True)) if more else sums
    return sums


def per_cell(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number as it is; numbers of heads [H] as those of R cells [R, 1, 1], R and the type as of `like` [R, …]."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like.dtype).repeat(like.shape[0] // value.shape[0]).view(-1, 1, 1)


def normalised_scale(tau: Tensor | float, square: Tensor, loss: Tensor) -> Tensor:
    """The scale of a normalised step: tau / (1 + tau c), c = |S|^2 / (2 L + eps).

    S is the sum of rate times gradient over a mini-batch, `square` |S|^2, and L, `loss`, the sum of rate times loss.
    With e the residuals of all its tokens, each times the root of its rate, L = 1/2 |e|^2 and S = J^T e, J their
    Jacobian. So c is the Rayleigh quotient of J J^T along e: the curvature that the step meets. It counts how much the
    tokens are alike: for K equal tokens c is K times that of one, for K unrelated ones it is that of one. A small step
    stays as it is, and none goes further than 1 / c, to where the linearised loss along S is zero.
    """
    return tau / (1.0 + tau * square / (2.0 * loss + EPS))


def norm(weight: Tensor) -> Tensor:
    """Joint norm of a layer's (W, b): [R, rows, columns] -> [R, 1, 1]."""
    return torch.linalg.vector_norm(weight, dim=(-2, -1), keepdim=True)


def _columns(weight: Tensor) -> Tensor:
    """Norm of every column: [R, rows, columns] -> [R, 1, columns]."""
    return torch.linalg.vector_norm(weight, dim=-2, keepdim=True)
