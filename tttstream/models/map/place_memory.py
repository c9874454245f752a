"""PlaceMemory: binds where to what in a memory of the catalogue, and answers what is where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tttstream import memory as catalogue
from tttstream.memory import KernelDelta, Memory, TTTLayer
from tttstream_kernels import MLP

KEYS = 3.0  # how much longer than PyTorch's start keys are at first: a key must tell its place from all others
SHORT = 0.1  # deviation of the numbers of a training view at first, where keys are ready
SHARP, BIAS = 1.6, -2.0  # deviation and mean of the inputs of hidden units then
CONSTANT = 2.0  # deviation of the numbers of what is the same in all labels then, those of a code have 1


class _Parts(nn.Module):
    """Keeps a weight to some of its parts: those of `mask`, the others are 0."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class _Tied(nn.Module):
    """Makes q project the queried place as k projects the stored place. where: the width of a place in a token."""

    def __init__(self, where: int) -> None:
        super().__init__()
        self.where = where

    def forward(self, weight: Tensor) -> Tensor:
        _, k, v = weight.chunk(3)
        told, asked, what = k.split((self.where, self.where, k.shape[1] - 2 * self.where), dim=1)
        return torch.cat([torch.cat([asked, told, what], dim=1), k, v])


class PlaceMemory(nn.Module):
    """A memory of codes by place. Each token stores the code of one place and queries another place.

    A token is [where it is | where it asks | what is here]. In a memory with a projection to q, k and v
    (`Memory.views`) the key k comes from the first part alone, the query q from the second, the value v from the third,
    learning rate and decay from the first and the third. k and q start with the same projection, so that a query finds
    the content of its place from the first step on; tied=True keeps them equal in training. Other memories get the same
    tokens.

    codes: width of what. features: of where; a network makes keys of them. None: `where` and `ask` are keys with
    a mean square of 1, and TTT memories and `kernel_delta` recall before any training (see `_ready_ttt`). where,
    what: widths of the parts. memory, heads, options: see `tttstream.memory.build`.

    Called as (what [B, T, codes], where [B, T, features], ask [B, T, features], state, reset [B, T]) ->
    (answer, state).

    answer [B, T, codes + 2]: the code at the queried place, the logarithm of the expected squared error (mean over
    codes), and the logit of the probability that the place was ever seen.
    """

    def __init__(
        self,
        codes: int,
        features: int | None,
        *,
        where: int = 96,
        what: int = 64,
        memory: str = "ttt_mlp",
        heads: int = 4,
        options: dict[str, Any] | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        dim = 2 * where + what
        self.parts = where, where, what
        self.where = nn.Identity() if features is None else _network(features, where)
        self.what = nn.Linear(codes, what)
        self.memory: Memory = catalogue.build(memory, dim=dim, heads=heads, **(options or {}))
        self.answer = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, codes + 2))
        with torch.no_grad():
            nn.init.normal_(self.what.weight, std=codes**-0.5)
        if self.memory.views is not None:
            self._part(self.memory.views, dim, given=features is None)
            if tied:
                parametrize.register_parametrization(self.memory.views, "weight", _Tied(where))

    def _part(self, views: nn.Linear, dim: int, given: bool) -> None:
        """Restrict each view, the learning rate and the decay to their parts of the token. given: whether the
        places are given as keys.

        The inner model of a TTT layer learns v - k, because it adds its input to its output. Short keys leave more of
        its output for v, so given keys, which are independent of each other, start short there.
        """
        short = given and isinstance(self.memory, TTTLayer)
        at, ask, what = torch.eye(3).repeat_interleave(torch.tensor(self.parts), dim=1)
        mask = torch.stack([ask, at, what]).repeat_interleave(dim, dim=0)
        with torch.no_grad():
            where, width = self.parts[0], self.parts[2]
            same = torch.randn(dim, where) * (SHORT if short else 1.0) * where**-0.5
            views.weight[:dim, where : 2 * where] = same
            views.weight[dim : 2 * dim, :where] = same
            views.weight[2 * dim :, 2 * where :] = torch.randn(dim, width) * width**-0.5
        if given and isinstance(self.memory, TTTLayer):
            self._ready_ttt(self.memory)
        elif given and isinstance(self.memory, KernelDelta):
            self._ready_kernel(self.memory)
        parametrize.register_parametrization(views, "weight", _Parts(mask))
        rates = [part for name, part in self.memory.named_modules() if name in ("rate", "decay.rate")]
        for rate in rates:
            parametrize.register_parametrization(rate, "weight", _Parts(at + what))

    @torch.no_grad()
    def _ready_kernel(self, layer: KernelDelta) -> None:
        """Initial values with which a kernel delta rule with given keys recalls before any training: steps of 1,
        orthogonal labels, and an answer that inverts them."""
        nn.init.orthogonal_(self.what.weight, (self.parts[2] / self.what.in_features) ** 0.5)
        nn.init.zeros_(self.what.bias)
        nn.init.zeros_(layer.rate.weight)
        nn.init.eye_(layer.out.weight)
        self._inverse(self._labels(layer.project, layer.dim), 1.0)

    def _labels(self, views: nn.Linear, dim: int) -> Tensor:
        """Initialise the projection to labels [dim, what] as an orthogonal one, and return it."""
        label = views.weight[2 * dim :, -self.parts[2] :]
        return label.copy_(nn.init.orthogonal_(torch.empty_like(label), (dim / self.parts[2]) ** 0.5))

    @torch.no_grad()
    def _ready_ttt(self, layer: TTTLayer) -> None:
        """Initial values with which a TTT memory of given keys recalls before any training.

        The inner model ends in a layer normalisation, so its output has the direction of a label, not the length. All
        labels share a constant, and with it the direction contains the length. Hidden units of a TTT-MLP have large
        weights and a negative bias: each is active for few keys, so that a step for one key changes few others. Labels
        are an orthogonal projection of codes, and the answer starts as the inverse of this projection.
        """
        nn.init.orthogonal_(self.what.weight, (self.parts[2] / self.what.in_features) ** 0.5)
        nn.init.normal_(self.what.bias, std=CONSTANT)
        nn.init.eye_(layer.out.weight)
        layer.gamma.fill_(CONSTANT)
        label = self._labels(layer.project, layer.dim)
        turn, constant = label @ self.what.weight, label @ self.what.bias
        self._inverse(label, float((turn.square().sum(1).mean() + constant.var()).sqrt()))
        if isinstance(layer.inner, MLP):
            first, *rest = layer.inner.split(layer.start, layer.width)
            first = torch.randn_like(first) * SHARP / SHORT * layer.width**-0.5
            first[:, -1] = BIAS
            layer.start.copy_(torch.cat([weight.flatten(1) for weight in (first, *rest)], dim=1))

    @torch.no_grad()
    def _inverse(self, label: Tensor, length: float) -> None:
        """Start the answer as the least-squares inverse of the map from codes to label views, label [dim, what] after
        `what`. length: by which the memory divides what it reads. gelu(x) - gelu(-x) = x makes a pair of hidden units
        linear.
        """
        first, last = self.answer[0], self.answer[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        codes = self.what.in_features
        if 2 * codes > first.out_features:
            return
        turn, constant = label @ self.what.weight, label @ self.what.bias
        back = torch.linalg.pinv(turn)
        for rows, sign in ((slice(codes), 1.0), (slice(codes, 2 * codes), -1.0)):
            first.weight[rows], first.bias[rows] = sign * length * back, -sign * (back @ (constant - constant.mean()))
            last.weight[:codes, rows] = sign * torch.eye(codes)
        last.weight[:codes, 2 * codes :] = 0.0
        last.bias[:codes] = 0.0

    def init_state(self, batch: int) -> Any:
        """A fresh state of `batch` rows, all zeros."""
        return self.memory.init_state(batch)

    def forward(
        self,
        what: Tensor,
        where: Tensor,
        ask: Tensor,
        state: Any = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        x = torch.cat([self.where(where), self.where(ask), self.what(what)], dim=-1)
        y, state = self.memory(x, state, reset)
        return self.answer(y), state

    def read(self, ask: Tensor, state: Any) -> Tensor:
        """The answers to questions ask [B, Q, features], without learning: [B, Q, codes + 2]."""
        asked = self.where(ask)
        rest = asked.new_zeros(*ask.shape[:2], self.parts[2])
        x = torch.cat([torch.zeros_like(asked), asked, rest], dim=-1)
        return self.answer(self.memory.read(x, state))


def _network(features: int, where: int) -> nn.Module:
    """The network from features of a place to its key."""
    last = nn.Linear(2 * where, where)
    with torch.no_grad():
        last.weight.mul_(KEYS)
    return nn.Sequential(nn.Linear(features, 2 * where), nn.GELU(), last)
