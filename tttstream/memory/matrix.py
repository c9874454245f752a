"""Memories whose state is a matrix a head, written by a rule that is linear in it: additive, delta, gated delta.

A matrix memory has four parts: views of the token (projections, a short convolution, unit
keys), the rule (what a token does to the matrix, `Token`), the recurrence that runs it (`recurrence`), and the read-out
(norm, gate, projection). Letters: B rows, T tokens, H heads, D head width.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory.base import Memory
from tttstream.memory.positions import ShortConv
from tttstream.memory.recurrence import LEAST, Before, Token, recurrence
from tttstream.state import State

NORM_EPS = 1e-6


class _Matrix(NamedTuple):
    matrix: Tensor
    window: Tensor


class MatrixState(State, _Matrix):
    """matrix [B, H, Dk, Dv]: what is remembered. window [B, taps - 1, channels]: the last tokens that the short
    convolution (or the token shift) still sees."""

    __slots__ = ()


class Seen(NamedTuple):
    """A call as a matrix memory takes it: x [B, T, dim], zero where a token is not finite or beyond its row's length;
    window as in the state; reset and lengths as given."""

    x: Tensor
    window: Tensor
    reset: Tensor | None
    lengths: Tensor | None


class MatrixMemory(Memory):
    """Shared by all matrix memories: one call from tokens to outputs. A kind defines `look`, `read_out` and its sizes.

    A token with a NaN or an infinity has a NaN as its output and is remembered as a token of zeros.
    """

    state_type: Any = MatrixState  # of these fields, or of more between the first and the last
    linear: bool = True  # whether a token's update is linear in the state

    def __init__(self, dim: int, heads: int, keys: int, values: int, window: tuple[int, int]) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self._matrix, self._window = (heads, keys, values), window

    def init_state(self, batch: int) -> Any:
        """A matrix of zeros and an empty window."""
        return MatrixState(self.zeros(batch, *self._matrix), self.zeros(batch, *self._window))

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """x [B, T, dim] -> y [B, T, dim] and the state after it; see `Memory`."""
        state = self.check(x, state, reset, lengths)
        finite = x.isfinite().all(-1, keepdim=True)
        counted = finite
        inside = None
        if lengths is not None:
            inside = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
            counted = finite & inside
        seen = Seen(torch.where(counted, x, 0.0), state.window, reset, lengths)
        token, rest, window = self.look(seen)
        o, *held = self.run(token, state, reset, lengths)
        y = torch.where(finite, self.read_out(seen.x, o, rest), torch.nan)
        return (y if inside is None else torch.where(inside, y, 0.0)), self.state_type(*held, window)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        """The update of the state by the tokens, further values that `read_out` needs, and the next window."""
        raise NotImplementedError

    def run(
        self, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None, before: Before | None = None
    ) -> tuple[Tensor, ...]:
        """The read-outs [B, T, H, Dv], and the state after the call without its window. before: see `recurrence`."""
        return recurrence(token, state.matrix, reset, lengths, before)

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        """From what was read, [B, T, H, Dv] in the state's type, to y [B, T, dim] in x's."""
        raise NotImplementedError


def convolved(conv: ShortConv | None, x: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """x [B, T, channels] after a short convolution and SiLU, unchanged without a convolution; and the next window."""
    if conv is None:
        return x, seen.window
    if x.shape[1] == 1 and seen.reset is None and seen.lengths is None and x.dtype == seen.window.dtype:
        view, window = conv.one(x[:, 0], seen.window)
        return F.silu(view.transpose(0, 1)), window
    view, window = conv(x, seen.window, seen.reset, seen.lengths)
    return F.silu(view), window


def linear(into: int, out: int, bias: bool = False) -> nn.Linear:
    """A linear layer whose weights are drawn as a TTT layer's projections: N(0, 1 / into), biases zero."""
    layer = nn.Linear(into, out, bias=bias)
    nn.init.normal_(layer.weight, std=into**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def unit(x: Tensor) -> Tensor:
    """x over its length, smooth at zero, in float32 or better."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + NORM_EPS)


def check_heads(name: str, dim: int, heads: int, conv: int = 0) -> None:
    """Raises ConfigError if dim is no multiple of heads, or a convolution has a negative width."""
    if dim < 1 or heads < 1 or dim % heads:
        raise ConfigError(f"{name}: dim must be a multiple of heads, got dim={dim}, heads={heads}")
    if conv < 0:
        raise ConfigError(f"{name}: conv is the width of a convolution, 0 for none, got {conv}")


class Additive(MatrixMemory):
    """Linear attention without a norm: S += k^T v, o = q S (Katharopoulos et al., arXiv 2006.16236, equations 16 to 18
    without the divisor; Schlag et al., arXiv 2102.11174, section 3).

    Nothing is removed or normalised, so a value that is written twice is read twice as large: the memory counts.
    The state grows with the stream, so law 6 exempts it by name: float32 counts ones up to 2^24 = 16,777,216, token
    by token, and no further.

    Args:
        dim: width of the tokens. heads: matrices side by side, each D x D with D = dim / heads.
        conv: width of causal convolutions on q, k and v, followed by SiLU; 0 for neither.
    """

    adds_up = True
    columns = 1  # of the matrix, over D

    def __init__(self, dim: int, heads: int = 1, conv: int = 4) -> None:
        check_heads(type(self).__name__, dim, heads, conv)
        width = dim // heads
        super().__init__(dim, heads, width, self.columns * width, (max(conv - 1, 0), 3 * dim))
        self.project = linear(dim, 3 * dim)
        self.conv = ShortConv(3 * dim, conv, views=1) if conv else None
        self.out = linear(dim, dim)

    @property
    def views(self) -> nn.Linear | None:
        return self.project

    def projected(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k (of length 1) and v [B, T, H, D], and the next window."""
        projected, window = convolved(self.conv, self.project(seen.x), seen)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).unbind(2)
        return unit(q), unit(k), v, window

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        q, k, v, window = self.projected(seen)
        return Token(q, k, v), None, window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        return self.out(o.flatten(2).to(x.dtype))


class _DeltaRule(Additive):
    """Shared by the delta kinds: the step size beta = reach sigmoid(x w + b) of each head."""

    adds_up = False

    def __init__(self, dim: int, heads: int, conv: int, reach: float) -> None:
        super().__init__(dim, heads, conv)
        if not 0 < reach <= 2:
            raise ConfigError(f"{type(self).__name__}: expected a reach above 0 and at most 2, got {reach}")
        self.reach = reach
        self.rate = linear(dim, heads, bias=True)

    def step_size(self, x: Tensor) -> Tensor:
        """beta [B, T, H, 1]."""
        return self.reach * torch.sigmoid(self.rate(x).to(self.state_dtype))[..., None]


class Delta(_DeltaRule):
    """The delta rule: S += beta k^T (v - k S), o = q S, k of length 1 (Schlag et al., arXiv 2102.11174, equation 24;
    Yang et al., arXiv 2406.06484, equation 1).

    It is the gradient step of rate beta on 0.5 |k S - v|^2, which at beta = 1 puts v where k reads. With beta up to 2 a
    step may overshoot, and the transition I - beta k^T k has an eigenvalue down to -1, which lets a state flip from
    token to token (Grazzi et al., arXiv 2411.12537). What is read is normalised head by head.

    Args:
        dim, heads, conv: see `Additive`.
        reach: the largest beta, above 0 and at most 2.
    """

    def __init__(self, dim: int, heads: int = 1, conv: int = 4, reach: float = 2.0) -> None:
        super().__init__(dim, heads, conv, reach)
        self.norm = nn.RMSNorm(dim // heads, eps=NORM_EPS)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        q, k, v, window = self.projected(seen)
        return Token(q, self.step_size(seen.x) * k, v, read=k), None, window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        return self.out(self.norm(o.to(self.norm.weight.dtype)).flatten(2))


class KernelDelta(_DeltaRule):
    """The delta rule on random Fourier features: S += beta (2 / F) f(k)^T (v - f(k) S), o = f(q) S, with
    f(k) = [cos(k W), sin(k W)] (Rahimi and Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007; with
    steps of the gradient, Singh et al., Online Learning with Kernels, IJCNN 2012).

    The squared length of f(k) is F / 2 for every k, so the step is normalised: beta = 1 puts v where k reads. A matrix
    with D key channels recalls D pairs at most, one with F features F. What is written at one key reaches another by
    (2 / F) f(k) f(k')^T, about exp(-sharp^2 (1 - k k'^T)): keys that are far apart hardly interfere. In the terms
    of the TTT paper (arXiv 2407.04620), the inner model has two layers. Only the outer loop trains the first one, W, so
    the whole state is used for pairs. The read-out is not normalised: what was never written reads as zero.

    Args:
        dim, heads, conv: see `Additive`. reach: see `Delta`.
        features: F of each head, an even number; by default 8 D, so that S has as many numbers as the weights of a
            TTT-MLP, whose state also has the sums of a mini-batch.
        sharp: standard deviation of W at the start. 1 suits keys that are learned; given keys that are far apart
            interfere less with 3.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        conv: int = 4,
        reach: float = 2.0,
        features: int | None = None,
        sharp: float = 1.0,
    ) -> None:
        super().__init__(dim, heads, conv, reach)
        width = dim // heads
        features = 8 * width if features is None else features
        if features < 2 or features % 2 or not 0 < sharp < math.inf:
            raise ConfigError(
                f"KernelDelta: expected an even number of features and sharp above 0, got {features} and {sharp:g}"
            )
        self._matrix = heads, features, width
        self.waves = nn.Parameter(sharp * torch.randn(heads, width, features // 2))

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        q, k, v, window = self.projected(seen)
        return Token(q, self.step_size(seen.x), v, read=k), None, window

    def run(
        self, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None, before: Before | None = None
    ) -> tuple[Tensor, ...]:
        return recurrence(token, state.matrix, reset, lengths, before, self.lifted)

    def read(self, x: Tensor, state: Any = None) -> Tensor:
        """See `Memory.read`. Without a convolution nothing is learned; with one, each token is learned in a copy."""
        if self.conv is not None:
            return super().read(x, state)
        state = self.check(x, state, None, None)
        finite = x.isfinite().all(-1, keepdim=True)
        seen = Seen(torch.where(finite, x, 0.0), state.window, None, None)
        q = self.projected(seen)[0].to(state.matrix.dtype).transpose(1, 2)
        o = self.features(q.flatten(0, 1)) @ state.matrix.flatten(0, 1)
        return torch.where(finite, self.read_out(x, o.view_as(q).transpose(1, 2), None), torch.nan)

    def lifted(self, token: Token) -> Token:
        """Tokens [n * H, C, ...] of q, beta, v and read=k with f(q), beta / |f(k)|^2 f(k) and f(k)."""
        assert token.read is not None
        q, k = self.features(token.q), self.features(token.read)
        return Token(q, token.k * (2 / k.shape[-1]) * k, token.v, read=k)

    def features(self, x: Tensor) -> Tensor:
        """f(x) [n * H, C, F] of x [n * H, C, D]."""
        waves = self.waves.to(x.dtype)
        angles = (x.unflatten(0, (-1, self.heads)) @ waves).flatten(0, 1)
        return torch.cat([angles.cos(), angles.sin()], -1)


class GatedDelta(Delta):
    """The gated delta rule: S' = alpha S, S = S' + beta k^T (v - k S'), o = q S (Yang et al., arXiv 2412.06464,
    equation 10).

    decay="scalar": alpha = exp(-a softplus(x w + b)), a number a head, as in Mamba-2 and in that paper.
    decay="channel": a number a key channel (Kimi Linear, arXiv 2510.26692, equation 1), here
    alpha = exp(-5 sigmoid(x W + b)), bounded below so that the chunk form stays inside the range of float32. What is
    read is normalised head by head and multiplied by SiLU of a projection of x.

    Args:
        dim, heads, conv: see `Additive`. reach: see `Delta`.
        decay: "scalar" or "channel".
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        conv: int = 4,
        reach: float = 1.0,
        decay: Literal["scalar", "channel"] = "scalar",
    ) -> None:
        super().__init__(dim, heads, conv, reach)
        if decay not in ("scalar", "channel"):
            raise ConfigError(f'{type(self).__name__}: expected decay="scalar" or "channel", got {decay!r}')
        self.decay = Decay(dim, heads) if decay == "scalar" else ChannelDecay(dim, heads)
        self.gate = linear(dim, dim)

    def look(self, seen: Seen) -> tuple[Token, Any, Tensor]:
        token, rest, window = super().look(seen)
        return token._replace(decay=self.decay(seen.x).to(self.state_dtype)), rest, window

    def read_out(self, x: Tensor, o: Tensor, rest: Any) -> Tensor:
        return self.out(self.norm(o.to(self.norm.weight.dtype)).flatten(2) * F.silu(self.gate(x)))


def spread(heads: int) -> Tensor:
    """Steps of the decays at the start, [heads] from 0.001 to 0.1 evenly in their logarithm, as those of Mamba-2."""
    return torch.logspace(-3, -1, heads) if heads > 1 else torch.tensor([0.01])


class Decay(nn.Module):
    """log alpha = -a softplus(x w + b) a head, a and b learned, as in Mamba-2 (Dao and Gu, arXiv 2405.21060)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.rate = nn.Linear(dim, heads)
        nn.init.normal_(self.rate.weight, std=0.02)
        with torch.no_grad():
            self.rate.bias.copy_(spread(heads).expm1().log())  # the inverse of softplus
        self.scale = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, dim] -> [B, T, H, 1]."""
        return (-self.scale.exp() * F.softplus(self.rate(x)))[..., None]


class ChannelDecay(nn.Module):
    """log alpha = LEAST sigmoid(x W1 W2 + b) a channel, W1 of one head's width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        width = dim // heads
        self.down, self.up = linear(dim, width), nn.Linear(width, dim)
        nn.init.normal_(self.up.weight, std=0.02)
        with torch.no_grad():
            self.up.bias.copy_((spread(heads) / -LEAST).logit().repeat_interleave(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, dim] -> [B, T, H, D]."""
        return (LEAST * torch.sigmoid(self.up(self.down(x)))).unflatten(-1, (self.heads, -1))
