"""Layouts: the output of a module as tokens of a stream, and the memory's output added to it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tttstream.errors import ConfigError
from tttstream.state import State

CHANNELS = ("first", "last")


@dataclass(frozen=True)
class Shape:
    """The layout of a module's output for one frame. axis: of its channels: 1 in [n, C, H, W], -1 elsewhere. width: C.
    sizes: all other sizes, () for a vector.
    """

    axis: int
    width: int
    sizes: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """N, the tokens of a frame."""
        return math.prod(self.sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tokens. A list of tokens counts as a square; extra tokens before it are class tokens."""
        if len(self.sizes) == 2:
            return self.sizes[0], self.sizes[1]
        side = math.isqrt(self.tokens)
        return side, side

    def tokens_of(self, x: Tensor) -> Tensor:
        """[n, …] -> [n, N, C]."""
        return x.movedim(self.axis, -1).reshape(x.shape[0], -1, x.shape[self.axis])

    def added(self, x: Tensor, y: Tensor) -> Tensor:
        """x with the tokens y [n, N or 1, C] added, in the layout of x; one token is added everywhere."""
        sizes = x.movedim(self.axis, -1).shape[1:-1]
        y = y.expand(-1, math.prod(sizes), -1).reshape(x.shape[0], *sizes, -1)
        return x + y.movedim(-1, self.axis)


def shape_of(output: Tensor, name: str, channels: str | None) -> Shape:
    """The layout of a module's output for square frames, [n, …].

    channels: "first" or "last" in maps; by default found by the two equal sizes. Raises ConfigError if the layout is
    not clear.
    """
    sizes = tuple(output.shape[1:])
    if output.dim() in (2, 3):
        return Shape(-1, sizes[-1], sizes[:-1])
    if output.dim() != 4:
        raise ConfigError(
            f"insert: {name} gives {list(output.shape)}: expected vectors [n, C], tokens [n, N, C] or maps [n, C, H, W]"
        )
    if channels is None:
        first, last = sizes[1] == sizes[2], sizes[0] == sizes[1]
        if first == last:
            raise ConfigError(
                f"insert: {name} gives {list(output.shape)}, and where its channels are is not clear: say "
                'channels="first" or channels="last"'
            )
        channels = "first" if first else "last"
    if channels == "first":
        return Shape(1, sizes[0], sizes[1:])
    return Shape(-1, sizes[2], sizes[:2])


class Reading(ABC):
    """How a memory reads the tokens of frames. x: [B, T, N, C]."""

    frames: ClassVar[bool] = False
    """Whether a memory reads whole frames of N tokens."""
    fixed: ClassVar[bool] = False
    """Whether each of the N tokens has its own state."""

    def rows(self, shape: Shape) -> int:
        """The number of the memory's rows for one stream."""
        return 1

    @abstractmethod
    def into(self, x: Tensor) -> Tensor:
        """The rows of the memory, [rows, tokens, C]."""

    @abstractmethod
    def back(self, y: Tensor, x: Tensor) -> Tensor:
        """The memory's output, [B, T, N or 1, C]."""

    def reset(self, reset: Tensor, x: Tensor) -> Tensor:
        """[B, T] -> [rows, tokens]."""
        return reset

    def lengths(self, lengths: Tensor, x: Tensor) -> Tensor:
        """[B] -> [rows]."""
        return lengths

    def state(self, state: State) -> State:
        """From the state of the streams to that of the memory."""
        return state

    def kept(self, state: State, rows: int) -> State:
        """The inverse of `state`."""
        return state


class Sequence(Reading):
    """The tokens of a frame one after another, frame after frame: B rows of T · N tokens."""

    frames = True

    def into(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        return y.unflatten(1, x.shape[1:3])

    def reset(self, reset: Tensor, x: Tensor) -> Tensor:
        first = torch.arange(x.shape[2], device=x.device) == 0
        return (reset[:, :, None] & first).flatten(1)

    def lengths(self, lengths: Tensor, x: Tensor) -> Tensor:
        return lengths * x.shape[2]


class Position(Reading):
    """Each position by itself, over time: B · N rows of T tokens, with a state each."""

    fixed = True

    def rows(self, shape: Shape) -> int:
        return shape.tokens

    def into(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(0, 1)

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

    def reset(self, reset: Tensor, x: Tensor) -> Tensor:
        return reset.repeat_interleave(x.shape[2], 0)

    def lengths(self, lengths: Tensor, x: Tensor) -> Tensor:
        return lengths.repeat_interleave(x.shape[2], 0)

    def state(self, state: State) -> State:
        return state.map(lambda leaf: leaf.flatten(0, 1))

    def kept(self, state: State, rows: int) -> State:
        return state.map(lambda leaf: leaf.unflatten(0, (rows, -1)))


class Mean(Reading):
    """One token for each frame, the mean of its tokens; the output is added to all of them: B rows of T tokens."""

    def into(self, x: Tensor) -> Tensor:
        return x.mean(2)

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        return y[:, :, None]


READINGS: dict[str, type[Reading]] = {"mean": Mean, "sequence": Sequence, "position": Position}
"""The ways of reading, by name."""


def reading(name: str) -> Reading:
    """A way of reading. Raises ConfigError for an unknown one."""
    if name not in READINGS:
        raise ConfigError(f"insert: tokens is {name!r}, expected one of {', '.join(READINGS)}")
    return READINGS[name]()
