"""One matrix memory with heads of three rules: additive, delta, and delta with decay.

Letters: B rows, T tokens, H heads, A additive heads, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory.matrix import Decay, Delta, Seen, check_heads
from tttstream.memory.recurrence import Token

RULES = ("additive", "delta", "gated_delta")


class MixedHeads(Delta):
    """Heads of the additive, the delta and the gated delta rule side by side; all see the whole token.

        additive      S = S + w k^T v,             w in (0, 1)
        delta         S = S + beta k^T (v - k S),  beta in (0, 2)
        gated_delta   S' = alpha S, then the delta rule on S'

    One recurrence runs all heads. The first value of an additive head is always 1. The first column of its S is then
    the sum of weighted keys, so q S counts similar tokens. The read-out o = q S of an additive head grows with the
    stream, and a norm over all heads would shrink the read-outs of the others. So every o is normalised head by head.
    In addition, the layer adds a learned sum of the additive read-outs (initially the counts) to all channels: a linear
    layer can read it, so the memory counts, and a LayerNorm after the layer removes it. The initial projections of
    queries and keys are equal, so that a token reads the values of similar tokens from the first training step on.

    Args:
        dim: width of the tokens, a multiple of the number of heads.
        heads: total number, at least one of each entry of `rules`.
        conv: see `Additive`.
        rules: of the heads, in turn.
    """

    adds_up = True

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        conv: int = 4,
        rules: Sequence[str] = ("additive", "delta", "delta", "gated_delta"),
    ) -> None:
        check_heads(type(self).__name__, dim, heads, conv)
        rules = tuple(rules)
        if not rules or set(rules) - set(RULES):
            raise ConfigError(
                f"MixedHeads: expected rules of {', '.join(RULES)}, got {', '.join(map(str, rules)) or 'none'}; "
                "memories of other kinds stand side by side in 'mixed'"
            )
        super().__init__(dim, max(heads, len(rules)), conv)
        dealt = [rules[place % len(rules)] for place in range(self.heads)]
        self.adding, self.fading = dealt.count("additive"), dealt.count("gated_delta")  # the first heads, and the last
        self.decay = Decay(dim, self.fading) if self.fading else None
        self.total = nn.Parameter(torch.zeros(self.adding, dim // self.heads))
        with torch.no_grad():
            self.total[:, 0] = 1.0
            self.project.weight[:dim] = self.project.weight[dim : 2 * dim]
            if self.conv is not None:
                self.conv.weight[..., :dim] = self.conv.weight[..., dim : 2 * dim]

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        q, k, v, window = self.projected(seen)
        adding, steady = self.adding, self.heads - self.fading
        size = self.step_size(seen.x)
        size = torch.cat([size[:, :, :adding] / self.reach, size[:, :, adding:]], 2)
        read = torch.cat([torch.zeros_like(k[:, :, :adding]), k[:, :, adding:]], 2)
        one = F.pad(v[:, :, :adding, 1:], (1, 0), value=1.0)
        v = torch.cat([one, v[:, :, adding:]], 2)
        decay = None
        if self.decay is not None:
            fade = self.decay(seen.x).to(self.state_dtype)
            decay = torch.cat([fade.new_zeros(*fade.shape[:2], steady, 1), fade], 2)
        return Token(q, size * k, v, decay, read), None, window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        o = o.to(self.norm.weight.dtype)
        total = (o[:, :, : self.adding] * self.total).sum((-2, -1))
        return self.out(self.norm(o).flatten(2)) + total[..., None]
