"""The schedule of lanes: the frames of each lane at each step are a pure function of a seed, so that a run can
continue.

A lane is an endless stream of frames made of visits: clips one after another, each whole or a window of it. The clips
are dealt to the lanes round by round, in a new random order for each round. Lane l gets the clips l, l + L, l + 2L … of
that endless sequence, where L is the number of lanes of all processes. So a process, a worker and a resumed run only
need their number and the step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tttstream.errors import DataError
from tttstream.train.data.clips import Numbers

FOREVER = 1 << 60

# Streams of random numbers, one for each use.
ORDER, VISIT = range(2)


@dataclass(frozen=True)
class Window:
    """The part of a clip in one visit.

    frames: their number, None for all (of an endless clip: without end). stride: the step between frames. start: the
    position of a window of fixed length: "random", "centre" or "first". In training, a clip that is shorter than the
    window is repeated from its start, with a reset; in evaluations the rest is not valid.
    """

    frames: int | None = None
    stride: int = 1
    start: str = "random"

    def __post_init__(self) -> None:
        if (self.frames is not None and self.frames < 1) or self.stride < 1:
            raise DataError(f"window: frames and stride must be at least 1, got {self.frames} and {self.stride}")
        if self.start not in ("random", "centre", "first"):
            raise DataError(f"window: start is {self.start!r}, expected 'random', 'centre' or 'first'")

    def first(self, clip_frames: int | None, seed: int) -> int:
        """The first frame of a visit in a clip with this number of frames (None: endless)."""
        if self.frames is None or self.start == "first":
            return 0
        spare = (FOREVER >> 40 if clip_frames is None else clip_frames) - ((self.frames - 1) * self.stride + 1)
        if spare <= 0:
            return 0
        return spare // 2 if self.start == "centre" else int(np.random.default_rng([seed, 0]).integers(spare + 1))

    def length(self, clip_frames: int | None) -> int:
        """The number of frames of a visit to a clip with this number of frames."""
        if self.frames is not None:
            return self.frames
        return FOREVER if clip_frames is None else -(-clip_frames // self.stride)


class Visit(NamedTuple):
    """One clip in one lane. number: its position in the dealt sequence. seed: for its window and its augmentation."""

    number: int
    clip: int
    seed: int


class Piece(NamedTuple):
    """The frames [start, stop) of a visit."""

    visit: Visit
    start: int
    stop: int


class Schedule:
    """Deals clips to lanes.

    lengths: frames of a visit to each clip, see `Window.length`. lanes: the number of lanes of all processes. rounds:
    the number of visits to each clip, None for no limit. shuffle: draw a new order in each round.
    """

    def __init__(
        self, lengths: Sequence[int], lanes: int, *, seed: int = 0, shuffle: bool = True, rounds: int | None = None
    ) -> None:
        self.lengths, self.lanes, self.seed, self.shuffle, self.rounds = lengths, lanes, seed, shuffle, rounds

    def clip(self, number: int) -> int:
        """The clip at a position of the dealt sequence."""
        dealt, place = divmod(number, len(self.lengths))
        return int(_order(self.seed, dealt, len(self.lengths))[place]) if self.shuffle else place

    def visits(self, lane: int) -> Iterator[tuple[int, int, int]]:
        """The visits of a lane: first frame in the lane, frame after the last, position in the dealt sequence."""
        start, number = 0, lane
        while self.rounds is None or number < self.rounds * len(self.lengths):
            stop = start + self.lengths[self.clip(number)]
            yield start, stop, number
            start, number = stop, number + self.lanes

    def frames(self, lane: int) -> int:
        """The number of frames in a lane, if the number of rounds is limited."""
        return max((stop for _, stop, _ in self.visits(lane)), default=0)

    def segments(self, lane: int, length: int, step: int = 0) -> Iterator[list[Piece]]:
        """The segments of a lane from a step on, each with `length` frames in pieces; fewer or none at its end."""
        at = step * length
        pieces: list[Piece] = []
        missing = length
        for start, stop, number in self.visits(lane):
            while at < stop:
                seed = int(np.random.default_rng([self.seed, VISIT, number]).integers(1 << 62))
                taken = min(missing, stop - at)
                pieces.append(Piece(Visit(number, self.clip(number), seed), at - start, at - start + taken))
                at, missing = at + taken, missing - taken
                if not missing:
                    yield pieces
                    pieces, missing = [], length
        while True:
            yield pieces
            pieces = []


def within(pieces: list[Piece], begin: int, end: int) -> list[Piece]:
    """The frames [begin, end) of the pieces of a segment, in pieces."""
    found, at = [], 0
    for visit, start, stop in pieces:
        first, last = max(begin - at, 0), min(end - at, stop - start)
        if first < last:
            found.append(Piece(visit, start + first, start + last))
        at += stop - start
    return found


@lru_cache(maxsize=4)
def _order(seed: int, dealt: int, count: int) -> Numbers:
    """The order in which clips are dealt in one round."""
    return np.random.default_rng([seed, ORDER, dealt]).permutation(count)
