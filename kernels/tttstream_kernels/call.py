"""The arguments of one call of an op, checked and in one type."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tttstream_kernels.inner import Inner
from tttstream_kernels.update import Update


class Call(NamedTuple):
    """q, k, v [B, T, H, D], eta [B, T, H, rates], start [H, P], gamma, beta [H, D] of an inner model; tokens of a
    mini-batch (frame); causal: "token" or "frame"; tau [K] the token scale, None in frame mode."""

    inner: Inner
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    start: Tensor
    gamma: Tensor
    beta: Tensor
    tokens: int
    causal: str
    tau: Tensor | None
    update: Update

    def at(self, begin: int, end: int) -> Call:
        """The call of some of the tokens."""
        here = slice(begin, end)
        return self._replace(q=self.q[:, here], k=self.k[:, here], v=self.v[:, here], eta=self.eta[:, here])
