"""PlaceMemory: binds where to what in a memory of the catalogue, and answers what is where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tttstream import memory as catalogue
from tttstream.memory import Memory, TTTLayer

KEYS = 3.0  # how much longer than PyTorch's start keys are at first: a key must tell its place from all others


class _Parts(nn.Module):
    """Keeps a weight to some of its parts: those of `mask`, the others are 0."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class PlaceMemory(nn.Module):
    """A memory of codes by place. Every token tells what is where, and asks what is elsewhere.

    A token is [where it is | where it asks | what is here]. In a TTT memory the training view k comes from the first
    part alone, the test view q from the second, the label view v from the third, and k and q begin with the same
    projection, so that from the first step on a question meets what was learned at its place. Other memories get the
    same tokens.

    codes: width of what. features: of where. where, what: widths of the parts. memory, heads, options: see
    `tttstream.memory.build`.

    Called as (what [B, T, codes], where [B, T, features], ask [B, T, features], state, reset [B, T]) ->
    (answer, state). signs: [B, T, where] each, with which the keys of where and of ask are multiplied; None for none.

    answer [B, T, codes + 2]: what is at the place asked for, the log of the squared error to be expected (mean over
    codes), and a logit of whether the place was ever seen.
    """

    def __init__(
        self,
        codes: int,
        features: int,
        *,
        where: int = 96,
        what: int = 64,
        memory: str = "ttt_mlp",
        heads: int = 4,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        dim = 2 * where + what
        self.parts = where, where, what
        last = nn.Linear(2 * where, where)
        self.where = nn.Sequential(nn.Linear(features, 2 * where), nn.GELU(), last)
        self.what = nn.Linear(codes, what)
        self.memory: Memory = catalogue.build(memory, dim=dim, heads=heads, **(options or {}))
        self.answer = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, codes + 2))
        with torch.no_grad():
            last.weight.mul_(KEYS)
            nn.init.normal_(self.what.weight, std=codes**-0.5)
        if isinstance(self.memory, TTTLayer):
            self._part(self.memory)

    def _part(self, layer: TTTLayer) -> None:
        """Give each view of the layer its part of the token."""
        at, ask, what = torch.eye(3).repeat_interleave(torch.tensor(self.parts), dim=1)
        views = torch.stack([ask, at, what]).repeat_interleave(layer.dim, dim=0)
        with torch.no_grad():
            where, told = self.parts[0], self.parts[2]
            same = torch.randn(layer.dim, where) * where**-0.5
            layer.project.weight[: layer.dim, where : 2 * where] = same
            layer.project.weight[layer.dim : 2 * layer.dim, :where] = same
            layer.project.weight[2 * layer.dim :, 2 * where :] = torch.randn(layer.dim, told) * told**-0.5
        parametrize.register_parametrization(layer.project, "weight", _Parts(views))
        parametrize.register_parametrization(layer.rate, "weight", _Parts(at + what))

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
        signs: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """See the class."""
        at, asked = self.where(where), self.where(ask)
        if signs is not None:
            at, asked = at * signs[0], asked * signs[1]
        x = torch.cat([at, asked, self.what(what)], dim=-1)
        y, state = self.memory(x, state, reset)
        return self.answer(y), state

    def read(self, ask: Tensor, state: Any, signs: Tensor | None = None) -> Tensor:
        """The answers to questions ask [B, Q, features], without learning: [B, Q, codes + 2]."""
        asked = self.where(ask) if signs is None else self.where(ask) * signs
        rest = asked.new_zeros(*ask.shape[:2], self.parts[2])
        x = torch.cat([torch.zeros_like(asked), asked, rest], dim=-1)
        if isinstance(self.memory, TTTLayer):
            y, _ = self.memory(x, state, learn=False)
        else:  # one token after the state for each question
            count = x.shape[1]
            many = self.memory.init_state(len(x)) if state is None else state
            many = many[torch.arange(len(x), device=x.device).repeat_interleave(count)]
            y = self.memory(x.flatten(0, 1)[:, None], many)[0].view(*x.shape[:2], -1)
        return self.answer(y)
