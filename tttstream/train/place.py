"""The place of a process in a run: its lanes, and its part of their segments in time."""

from typing import Any, NamedTuple


class Place(NamedTuple):
    """rows: the index of this process's set of lanes. sets: the number of sets. part, parts: its index in time, and the
    number of processes that share a set of lanes."""

    rows: int = 0
    sets: int = 1
    part: int = 0
    parts: int = 1

    def frames(self, length: int) -> tuple[int, int]:
        """The frames [begin, end) of this part of a segment with this length; parts differ by at most one frame."""
        return self.part * length // self.parts, (self.part + 1) * length // self.parts


def place(trainer: Any) -> Place:
    """The Place of this process in the run of a trainer; a single process without a trainer."""
    if trainer is None:
        return Place()
    given = getattr(trainer.strategy, "place", None)
    return given if isinstance(given, Place) else Place(trainer.global_rank, trainer.world_size)
