"""Clips for training, validation and test, told apart by their source video and never by the piece shown of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from tttstream.errors import DataError
from tttstream.train.data.clips import Clip


def cut(clips: Sequence[Clip], fractions: Sequence[float]) -> list[list[Clip]]:
    """Deal clips to parts of about these fractions by a hash of their file's name.

    All clips of one file land in the same part, in every run, and wherever the folder stands.
    """
    if any(part < 0 for part in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"fractions must be at least 0 and sum to 1, got {list(fractions)}")
    parts: list[list[Clip]] = [[] for _ in fractions]
    for clip in clips:
        parts[_part(clip.name, fractions)].append(clip)
    return parts


def _part(name: str, fractions: Sequence[float]) -> int:
    place = int.from_bytes(hashlib.sha256(name.replace("\\", "/").rsplit("/", 1)[-1].encode()).digest()[:8], "big")
    reached = 0.0
    for number, fraction in enumerate(fractions):
        reached += fraction
        if place < reached * 2**64:
            return number
    return max(number for number, fraction in enumerate(fractions) if fraction > 0)
