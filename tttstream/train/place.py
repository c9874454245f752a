"""Where a process of a run stands: which lanes it has, and which part of their segments in time."""

from __future__ import annotations

from typing import Any, NamedTuple


class Place(NamedTuple):
    """rows: the number of this process's set of lanes. sets: how many sets there are. part, parts: its place in time
    and how many processes share a set of lanes."""

    rows: int = 0
    sets: int = 1
    part: int = 0
    parts: int = 1

    def frames(self, length: int) -> tuple[int, int]:
        """The frames [begin, end) of this part of a segment of that length; parts differ by one frame at most."""
        return self.part * length // self.parts, (self.part + 1) * length // self.parts


def place(trainer: Any) -> Place:
    """Where this process stands in a trainer's run; alone without a trainer."""
    if trainer is None:
        return Place()
    given = getattr(trainer.strategy, "place", None)
    return given if isinstance(given, Place) else Place(trainer.global_rank, trainer.world_size)
