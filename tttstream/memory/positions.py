"""Positions of tokens in their mini-batch under resets, rotary angles, and the short causal convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def age(reset: Tensor) -> tuple[Tensor, Tensor]:
    """For reset [B, T]: how many tokens ago the last reset of this call was [B, T], and whether there was one."""
    steps = torch.arange(reset.shape[1], device=reset.device)
    last = torch.where(reset, steps, -1).cummax(1).values
    return steps - last, last >= 0


def positions(phase: Tensor, tokens: int, mini_batch: int, reset: Tensor | None) -> Tensor:
    """Place of every token in its mini-batch, 0 .. K - 1: [B, T] whole numbers, from the phases [B] at the start."""
    place = phase.long()[:, None]
    if tokens > 1:
        place = place + torch.arange(tokens, device=phase.device)
    if reset is not None:
        since, seen = age(reset)
        place = torch.where(seen, since, place)
    return place % mini_batch


def latest(past: Tensor, count: int, reset: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The last `count` tokens of each row as of its end, those before its last reset zero: [B, count, dim].

    past: [B, count + T, dim] the last tokens before a call and its own.
    """
    rows, tokens = past.shape[0], past.shape[1] - count
    end = torch.full((rows,), tokens, device=past.device) if lengths is None else lengths
    index = end[:, None] + torch.arange(count, device=past.device)
    kept = past.gather(1, index[..., None].expand(-1, -1, past.shape[-1]))
    if reset is not None:
        steps = torch.arange(tokens, device=past.device)
        last = torch.where(reset & (steps < end[:, None]), steps, -1 - count).amax(1, keepdim=True)
        kept = torch.where((index - count >= last)[..., None], kept, 0.0)
    return kept


class Constant(nn.Module):
    """A constant in the type of states: float64 if the module is float64, else float32. It is rounded once from
    float64, whatever casts the module goes through. A conversion at every call would cost more than the use of
    the constant."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.exact = value.double()
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        self.register_buffer("value", value.to(torch.get_default_device(), dtype), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Constant:
        super()._apply(fn, recurse)
        dtype = torch.float64 if self.value.dtype == torch.float64 else torch.float32
        self.value = self.exact.to(self.value.device, dtype)
        return self


class Rotary(nn.Module):
    """Rotary positions over interleaved pairs (2d, 2d + 1), angle = position * base^(-2d / D), as in the official
    PyTorch release of TTT: positions count inside the mini-batch, so they never run out. The angles are computed in
    `dtype`: that release has them in float32, which is 4e-6 off at position 63."""

    def __init__(self, width: int, mini_batch: int, base: float = 10000.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=dtype, device="cpu") / width)
        angles = torch.arange(mini_batch, dtype=dtype, device="cpu")[:, None] * frequencies
        self.turns = Constant(torch.stack([angles.cos(), angles.sin()], dim=-1))
        self._factors: tuple[Tensor | None, Tensor, list[Tensor]] = None, self.turns.value, []

    def forward(self, x: Tensor, place: Tensor | None) -> Tensor:
        """x [B, T, ..., D] rotated by the angles of its place [B, T]; None: all rows begin a mini-batch."""
        turns, tokens = self.turns.value, x.shape[1]
        if place is None:
            turn = turns.expand(-(-tokens // len(turns)), -1, -1, -1).flatten(0, 1)[:tokens]
        else:
            turn = turns.index_select(0, place.flatten())
        turn = turn.view(-1, tokens, *[1] * (x.dim() - 3), *turns.shape[1:])
        pairs = x.view(*x.shape[:-1], -1, 2)
        if not torch.compiler.is_compiling():  # a third of the time; the compiler knows no complex numbers
            turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turn))
        else:
            (a, b), (cos, sin) = pairs.unbind(-1), turn.unbind(-1)
            turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return turned.flatten(-2)

    def turned(self, views: Tensor, place: int | Tensor) -> Tensor:
        """q, k and v [3, R, 1, D] of one token, q and k rotated by the angles of its place, one for all or [R]."""
        together, by_place = self.factors
        turn = by_place[place] if isinstance(place, int) else together[place].transpose(0, 1).squeeze(2)
        return (views.view(turn.dtype) * turn).view(views.dtype)

    @property
    def factors(self) -> tuple[Tensor, list[Tensor]]:
        """Complex factors of q, k and v (which is not turned) at every place, [K, 3, 1, 1, D / 2], and one by one."""
        value: Any = self._modules["turns"]._buffers["value"]  # type: ignore[union-attr]  # quicker than attributes
        of, together, by_place = self._factors
        if of is not value:
            turn = torch.view_as_complex(value)[:, None, None, None]
            together = torch.cat([turn, turn, torch.ones_like(turn)], dim=1)
            by_place = list(together)
            self._factors = value, together, by_place
        return together, by_place


class ShortConv(nn.Module):
    """Depthwise causal convolutions over one projection of the tokens, `views` of them: one for q and one for k in a
    TTT layer, which share a projection.

    The last `taps - 1` tokens of each row, which the next call needs, are part of the memory's state. A token does not
    see tokens from before its row's last reset.
    """

    def __init__(self, dim: int, taps: int, views: int = 2) -> None:
        super().__init__()
        self.taps = taps
        bound = taps**-0.5
        self.weight = nn.Parameter(torch.empty(views, taps, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(views, dim))

    def forward(self, x: Tensor, window: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, ...]:
        """x [B, T, dim], window [B, taps - 1, dim] -> (a view [B, T, dim] each, the next window)."""
        rows, tokens, _ = x.shape
        past = torch.cat([window.to(x.dtype), x], dim=1)
        ages = None
        if reset is not None:
            since, seen = age(reset)
            ages = torch.where(seen, since, self.taps)[..., None]
        views = self.bias[:, None, None].to(x.dtype).expand(-1, rows, tokens, -1)
        for lag in range(self.taps):
            tap = past[:, self.taps - 1 - lag : self.taps - 1 - lag + tokens]
            if ages is not None:
                tap = torch.where(ages >= lag, tap, 0.0)
            views = views + self.weight[:, self.taps - 1 - lag, None, None].to(x.dtype) * tap
        return *views.unbind(0), latest(past, self.taps - 1, reset, lengths).to(window.dtype)

    def one(self, x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` of one token without a reset: x [B, dim] -> (the views [views, B, dim], the next window)."""
        past = torch.cat([window, x.unsqueeze(1)], dim=1)
        views = (self.weight.unsqueeze(1) * past).sum(2).add_(self.bias.unsqueeze(1))
        return views, past[:, 1:].contiguous()
