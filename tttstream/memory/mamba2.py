"""Mamba-2 as a memory: the state space dual (SSD) layer between its projections, convolution and gate.

Letters: B rows, T tokens, H heads, P head width, N size of the state a channel.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory.matrix import NORM_EPS, MatrixMemory, Seen, check_heads, convolved, linear, spread
from tttstream.memory.positions import ShortConv
from tttstream.memory.recurrence import Token


class Mamba2(MatrixMemory):
    """Mamba-2 (Dao and Gu, arXiv 2405.21060, sections 5 to 7): S = exp(-a d) S + d B^T x, y = C S + D x.

    d = softplus(a projection of the token) a head; B and C [N], the key and the query, are shared by all heads; x [P],
    the value, B and C pass a causal convolution and SiLU; y is multiplied by SiLU of a projection, normalised over the
    whole width, and projected.

    Args:
        dim: width of the tokens. heads: states side by side, each N x P with P = expand * dim / heads.
        state: N. expand: inner width over dim.
        conv: width of the causal convolution, at least 1.
    """

    def __init__(self, dim: int, heads: int = 1, state: int = 64, expand: int = 2, conv: int = 4) -> None:
        check_heads("Mamba2", expand * dim, heads)
        if state < 1 or expand < 1 or conv < 1:
            raise ConfigError(f"Mamba2: expected at least 1, got {state = }, {expand = }, {conv = }")
        inner = expand * dim
        self._split = inner, inner + 2 * state, heads
        self._parts = inner, state, state
        super().__init__(dim, heads, state, inner // heads, (conv - 1, inner + 2 * state))
        self.project = linear(dim, sum(self._split))
        self.conv = ShortConv(inner + 2 * state, conv, views=1)
        self.scale = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.bias = nn.Parameter(spread(heads).expm1().log())
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=NORM_EPS)
        self.out = linear(inner, dim)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        gate, projected, step = self.project(seen.x).split(self._split, -1)
        projected, window = convolved(self.conv, projected, seen)
        x, key, query = projected.to(self.state_dtype).split(self._parts, -1)
        x = x.unflatten(-1, (self.heads, -1))
        step = F.softplus(step.to(self.state_dtype) + self.bias)[..., None]
        key, query = (z[..., None, :].expand(-1, -1, self.heads, -1) for z in (key, query))
        return Token(query, key, step * x, -self.scale.exp()[:, None] * step), (gate, x), window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        gate, value = rest
        y = torch.addcmul(o, self.skip[:, None], value).flatten(2)
        return self.out(self.norm(y.to(self.norm.weight.dtype) * F.silu(gate)))
