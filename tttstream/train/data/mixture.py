"""Several indices as one: real videos beside generated ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from tttstream.errors import DataError
from tttstream.train.data.clips import Clip
from tttstream.train.data.indices import Index


@dataclass
class Mixture(Index):
    """The clips of several indices, those of part i `repeats[i]` times in each round (once where none is given)."""

    parts: list[Index]
    repeats: list[int] = field(default_factory=list)

    def clips(self) -> list[Clip]:
        """See Index."""
        repeats = self.repeats or [1] * len(self.parts)
        if len(repeats) != len(self.parts) or min(repeats, default=0) < 1:
            raise DataError(f"mixture: expected a number of repeats for each of {len(self.parts)} parts, got {repeats}")
        return [clip for part, count in zip(self.parts, repeats, strict=True) for clip in part.clips() * count]
