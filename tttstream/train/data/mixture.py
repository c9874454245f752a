"""Joins several indices, for example of real and of generated videos."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tttstream.errors import DataError
from tttstream.train.data.clips import Clip
from tttstream.train.data.indices import Index


@dataclass
class Mixture(Index):
    """The clips of several indices; those of part i occur `repeats[i]` times in each round (by default once).

    If labels have names, all parts must have the same; a part without given classes uses those of the parts before.
    """

    parts: list[Index]
    repeats: list[int] = field(default_factory=list)

    named = True

    def clips(self) -> list[Clip]:
        repeats = self.repeats or [1] * len(self.parts)
        if len(repeats) != len(self.parts) or min(repeats, default=0) < 1:
            raise DataError(f"mixture: expected a number of repeats for each of {len(self.parts)} parts, got {repeats}")
        clips: list[Clip] = []
        numbered = False
        for part, count in zip(self.parts, repeats, strict=True):
            part.share(self.classes)
            found = part.clips()
            numbered |= not part.classes and any(clip.label >= 0 for clip in found)
            if part.classes and self.classes and [*part.classes] != [*self.classes]:
                raise DataError("mixture: its parts have other classes, or in another order; give all the same classes")
            self.classes = part.classes or self.classes
            clips += found * count
        if numbered and self.classes:
            raise DataError("mixture: some parts have labels with names, others numbers; give all the same classes")
        return clips

    def share(self, classes: Sequence[str]) -> None:
        for part in self.parts:
            part.share(classes)
