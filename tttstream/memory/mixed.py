"""Heads of several memories in one layer, each with its own rule.

Letters: B rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.memory.base import Memory
from tttstream.memory.matrix import check_heads, linear
from tttstream.memory.registry import build
from tttstream.state import State

RULES = ("ttt_mlp", "delta", "additive")


class _Parts(NamedTuple):
    parts: tuple[Any, ...]


class MixedState(State, _Parts):
    """parts: the state of the heads of each rule."""

    __slots__ = ()


class Mixed(Memory):
    """Mixed heads: delta rule, sums (additive) and a deep inner model (MLP).

    A projection maps the token to the inputs of all rules, the heads of a rule are one memory, and a projection joins
    their outputs. `heads` of width dim / heads are assigned to the rules in turn. Every rule has at least one head, so
    with fewer heads than rules the layer is wider than dim inside.

    Args:
        dim: width of the tokens. heads: total number, if there are at least as many as rules.
        rules: names of memories that have heads and go token by token.
        options: further arguments of a rule's memory, by name.
    """

    state_type = MixedState
    parts: Sequence[Memory]  # an nn.ModuleList

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        rules: Sequence[str] = RULES,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        check_heads("Mixed", dim, heads)
        rules, given = tuple(rules), dict(options or {})
        if not rules or len(set(rules)) < len(rules) or set(given) - set(rules):
            raise ConfigError(f"Mixed: expected rules without repetition and options of these, got {rules} and {given}")
        self.dim, self.heads, self.rules = dim, heads, rules
        shares = [max(1, len(range(place, heads, len(rules)))) for place in range(len(rules))]
        self.sizes = [share * dim // heads for share in shares]
        parts = [
            build(rule, dim=size, heads=share, **given.get(rule, {}))
            for rule, size, share in zip(rules, self.sizes, shares, strict=True)
        ]
        self.parts = nn.ModuleList(parts)  # type: ignore[assignment]
        unfit = [rule for rule, part in zip(rules, self.parts, strict=True) if not part.bounded]
        if unfit or any(getattr(part, "causal", "token") == "frame" for part in self.parts):
            said = ", ".join(rules)
            raise ConfigError(f"Mixed: expected rules of constant memory that go token by token, got {said}")
        self.into, self.out = linear(dim, sum(self.sizes)), linear(sum(self.sizes), dim)

    def init_state(self, batch: int) -> MixedState:
        """Fresh states of all parts."""
        return MixedState(tuple(part.init_state(batch) for part in self.parts))

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MixedState]:
        """x [B, T, dim] -> y [B, T, dim] and the state after it; see `Memory`."""
        state = self.check(x, state, reset, lengths)
        if lengths is not None:
            x = torch.where((torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None], x, 0.0)
        shares = self.into(x).split(self.sizes, -1)
        told = [
            part(share, old, reset, lengths) for part, share, old in zip(self.parts, shares, state.parts, strict=True)
        ]
        return self.out(torch.cat([y for y, _ in told], -1)), MixedState(tuple(new for _, new in told))
