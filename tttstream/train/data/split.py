"""Splits clips into training, validation and test by their video files, so that a file is in one part only."""

import hashlib
import os
from collections.abc import Sequence

from tttstream.errors import DataError
from tttstream.train.data.clips import Clip


def cut(clips: Sequence[Clip], fractions: Sequence[float]) -> list[list[Clip]]:
    """Assign clips to parts of about these fractions by a hash of the name of their file.

    All clips of one file are in the same part, in every run, independent of the location of the folder and of other
    files. Only a part that would be empty, which happens with few files, gets a file from the largest part.
    """
    if not (all(part >= 0 for part in fractions) and abs(sum(fractions) - 1) <= 1e-6):  # NaN fails both
        raise DataError(f"fractions must be at least 0 and sum to 1, got {list(fractions)}")
    files: list[dict[str, list[Clip]]] = [{} for _ in fractions]
    for clip in clips:
        name = clip.name.replace("\\", "/").rsplit("/", 1)[-1]
        files[_part(_place(name), fractions)].setdefault(name, []).append(clip)
    for part, fraction in zip(files, fractions, strict=True):
        most = max(files, key=len)
        if fraction > 0 and not part and len(most) > 1:
            name = min(most, key=_place)
            part[name] = most.pop(name)
    return [[clip for found in part.values() for clip in found] for part in files]


def shared(some: Sequence[Clip], others: Sequence[Clip]) -> list[str]:
    """The names of the videos of `others` that are among `some`, including parts of one video and links to it."""
    paths = {os.path.realpath(clip.name) for clip in some}
    return [name for name in dict.fromkeys(clip.name for clip in others) if os.path.realpath(name) in paths]


def _place(name: str) -> float:
    """A number from 0 to 1 that depends only on a name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _part(place: float, fractions: Sequence[float]) -> int:
    reached = 0.0
    for number, fraction in enumerate(fractions):
        reached += fraction
        if place < reached:
            return number
    return max(number for number, fraction in enumerate(fractions) if fraction > 0)
