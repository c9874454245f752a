"""RWKV-7 as a memory: its time mixing, a generalised delta rule with a decay and a rate of its own a channel.

Letters: B rows, T tokens, H heads, D head width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.memory.matrix import MatrixMemory, Seen, check_heads, linear, unit
from tttstream.memory.recurrence import Token

FASTEST = -math.exp(-0.5)  # the smallest logarithm of a decay
GROUP_EPS = 64e-5
MIXED = ("r", "w", "k", "v", "a", "g")


class RWKV7(MatrixMemory):
    """The time mixing of RWKV-7 (Peng et al., arXiv 2503.14456, section 4, equations 3 to 23).

    With keys as rows of the state, S = diag(w) S - (a * h)^T (h S) + k^T v and o = r S: h is a key of length 1, a in
    (0, 1) the rate of what is removed, w in (exp(-exp(-1/2)), 1) the decay, each a number a channel. Every projection
    sees a mixture of the token and the one before it. What is read is normalised head by head, the token's own value is
    added as far as its key fits r, and a gate multiplies the sum. One layer stands alone here, so values are not mixed
    with those of a first layer, and the channel mixing is left to the network around it.

    Args:
        dim: width of the tokens. heads: states side by side, each D x D with D = dim / heads.
        rank: inner width of the small networks behind w, a and the gate.
    """

    def __init__(self, dim: int, heads: int = 1, rank: int = 32) -> None:
        check_heads("RWKV7", dim, heads)
        if rank < 1:
            raise ConfigError(f"RWKV7: rank must be at least 1, got {rank}")
        width = dim // heads
        super().__init__(dim, heads, width, width, (1, dim))
        self.mix = nn.Parameter(torch.full((len(MIXED), dim), 0.5))
        self.receptance, self.key, self.value = (linear(dim, dim) for _ in range(3))
        self.decay, self.rate = (Small(dim, rank, dim, inner) for inner in (torch.tanh, None))
        self.gate = Small(dim, rank, dim, torch.sigmoid, bias=False)
        self.remove = nn.Parameter(torch.full((dim,), 0.85))
        self.keep = nn.Parameter(torch.ones(dim))
        self.bonus = nn.Parameter(torch.zeros(heads, width))
        self.norm = nn.GroupNorm(heads, dim, eps=GROUP_EPS)
        self.out = linear(dim, dim)
        with torch.no_grad():  # decays of exp(-0.001) to exp(-0.4) a token, the same in every head
            speeds = torch.logspace(-3, math.log10(0.4), width) / -FASTEST
            self.decay.up.bias.copy_(speeds.logit().repeat(heads))

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        before, window = shifted(seen)
        r, w, k, v, a, g = (torch.lerp(seen.x, before, share) for share in self.mix.to(seen.x.dtype))
        dtype = self.state_dtype
        r, k, v = self.receptance(r), self.key(k), self.value(v)
        decay = FASTEST * torch.sigmoid(self.decay(w).to(dtype))
        rate = torch.sigmoid(self.rate(a).to(dtype))
        removed = unit((k * self.remove).to(dtype).unflatten(-1, (self.heads, -1)))
        k = k.to(dtype) * torch.lerp(torch.ones_like(rate), rate, self.keep.to(dtype))
        r, k, v, decay, rate = (z.to(dtype).unflatten(-1, (self.heads, -1)) for z in (r, k, v, decay, rate))
        # the recurrence reads the state after its decay, the paper before it
        token = Token(r, k, v, decay, read=removed * (-decay).exp(), erase=rate * removed)
        own = (r * k * self.bonus).sum(-1, keepdim=True) * v
        return token, (own, self.gate(g)), window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        own, gate = rest
        o = self.norm(o.to(self.norm.weight.dtype).flatten(2).flatten(0, 1)).view(*o.shape[:2], -1)
        return self.out((o + own.to(o.dtype).flatten(2)) * gate)


class Small(nn.Module):
    """A network of two thin layers: inner(x W1) W2 + b."""

    def __init__(
        self, dim: int, rank: int, out: int, inner: Callable[[Tensor], Tensor] | None, bias: bool = True
    ) -> None:
        super().__init__()
        self.inner = inner
        self.down, self.up = linear(dim, rank), linear(rank, out, bias)
        with torch.no_grad():
            self.up.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., out]."""
        x = self.down(x)
        return self.up(x if self.inner is None else self.inner(x))


def shifted(seen: Seen) -> tuple[Tensor, Tensor]:
    """The token before each [B, T, dim], zeros after a reset; and the next window [B, 1, dim]."""
    past = torch.cat([seen.window.to(seen.x.dtype), seen.x], 1)
    before = past[:, :-1]
    if seen.reset is not None:
        before = torch.where(seen.reset[..., None], 0.0, before)
    if seen.lengths is None:
        last = past[:, -1:].clone()  # a view would keep the whole call in memory
    else:
        last = past.gather(1, seen.lengths[:, None, None].expand(-1, 1, past.shape[-1]))
    return before, last.to(seen.window.dtype)
