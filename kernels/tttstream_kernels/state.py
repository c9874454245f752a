"""The state of an op, and the loss it reports."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class InnerState(NamedTuple):
    """The state of an inner model for B rows; all zeros is a fresh start.

    delta: [B, H, P] the weights' difference from their learned start, at the start of the current mini-batch.
    grad_sum: [B, H, P] sum of the rate times the gradient over the tokens of the unfinished mini-batch, and with a
        normalised step [B, H, P + 1], the last number the sum of the rate times the loss; [B, H, 0] in
        frame mode, which always ends its mini-batches.
    momentum: [B, H, P]; [B, H, 0] without momentum. A second moment (`RMS`) follows it: P numbers more.
    phase: [B] how many tokens the unfinished mini-batch holds, 0 .. K - 1, as a whole number of the state's type.
    """

    delta: Tensor
    grad_sum: Tensor
    momentum: Tensor
    phase: Tensor

    def where(self, mask: Tensor, other: InnerState) -> InnerState:
        """Row by row: this state where mask [B], else `other` (a selection: a NaN does not cross)."""
        parts = zip(self, other, strict=True)
        return InnerState(*(torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in parts))

    def fresh(self) -> InnerState:
        """The same rows before they learned anything."""
        return InnerState(*(torch.zeros_like(part) for part in self))


class Loss(NamedTuple):
    """The inner loss of every token [B, T, H]: at the weights that stood when its mini-batch began, and right after
    it was learned."""

    before: Tensor
    after: Tensor
