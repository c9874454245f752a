"""Indices of training data: each Index reads one layout of video files and lists them as clips."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, ClassVar

from tttstream.errors import DataError, SourceError
from tttstream.sources.listing import expand, spelled
from tttstream.train.data.clips import Clip
from tttstream.train.data.digits import DigitsClip, read_idx
from tttstream.train.data.generated import PlacesClip, WalkClip
from tttstream.train.data.images import clip_at

LEAST = 16  # pixels: least side of a picture in which a digit can move


class Index(ABC):
    """A list of clips. classes: the names of the labels, in order; empty if clips have no labels."""

    classes: Sequence[str] = ()
    named: ClassVar[bool] = False
    """Whether the index determines the classes from its data if none are given."""
    shared = False

    @abstractmethod
    def clips(self) -> list[Clip]:
        """All clips, in a fixed order. Raises DataError if there is none."""

    def share(self, classes: Sequence[str]) -> None:
        """Use the classes of the training data, in their order, if none were given."""
        if self.named and classes and not self.classes:
            self.classes, self.shared = list(classes), True

    def sized(self, size: int) -> Index:
        """This index for data of `size` × `size` pixels; generated clips are drawn in this size. Raises DataError if
        another size was given."""
        return self


@dataclass
class Videos(Index):
    """Unlabelled videos, subfolders included.

    folders: folders of videos or of images, or video files. skip: patterns (`*cuts*`) of names to leave out.
    """

    folders: str | list[str]
    skip: list[str] = field(default_factory=list)

    def clips(self) -> list[Clip]:
        folders = [self.folders] if isinstance(self.folders, str) else self.folders
        try:
            for folder in map(spelled, folders):
                if not os.path.exists(folder):
                    raise DataError(f"no folder of videos {folder}; give a folder, a video file, or a list of them")
            paths = expand(folders)
        except SourceError as error:
            raise DataError(str(error)) from error
        kept = [path for path in paths if not any(fnmatch(os.path.basename(path), pattern) for pattern in self.skip)]
        if not kept:
            raise DataError(f"skip={self.skip} leaves no video of {', '.join(folders)}")
        return [clip_at(path) for path in kept]


@dataclass
class Walks(Index):
    """Camera walks over photographs, generated on demand.

    count: their number. frames: length of each, None for endless. size: side in pixels. seed: of the first; the others
    have the next seeds, so the seed of a validation must differ by `count` or more.
    """

    count: int = 8
    frames: int | None = None
    size: int = 128
    seed: int = 0

    def clips(self) -> list[Clip]:
        found = seeds("walks", self.seed, self.count, frames=self.frames)
        return [WalkClip(f"walk {seed}", seed=seed, size=self.size, frames=self.frames) for seed in found]


@dataclass
class PlacesWorlds(Index):
    """Cameras that walk, return, turn and zoom in worlds of photographs, with their poses; see PlacesClip.

    count, frames, size, seed: as for Walks. held_out: use the photographs that were not used to train shipped models.
    speed: the step between frames; by default one of STRIDES for each camera.
    """

    count: int = 8
    frames: int | None = None
    size: int = 64
    seed: int = 0
    held_out: bool = False
    speed: int | None = None

    def clips(self) -> list[Clip]:
        found = seeds("places", self.seed, self.count, frames=self.frames, speed=self.speed)
        options: dict[str, Any] = {"size": self.size, "frames": self.frames, "speed": self.speed}
        return [PlacesClip(f"places {seed}", seed=seed, held_out=self.held_out, **options) for seed in found]


@dataclass
class MovingDigits(Index):
    """Sequences of moving digits, generated on demand; see DigitsClip.

    The usual protocol is 20 frames of 64 × 64 pixels with two digits: 10 to learn from, 10 to predict. Sequences depend
    only on their seeds, so a test set is always the same.
    """

    count: int = 10_000
    frames: int | None = 20
    digits: int = 2
    size: int = 64
    seed: int = 0
    images: str | None = None

    def clips(self) -> list[Clip]:
        if self.images is not None:
            read_idx(self.images)
        if self.size < LEAST or self.seed < 0:
            raise DataError(f"digits: expected size >= {LEAST} and seed >= 0, got {self.size} and {self.seed}")
        found = seeds("digits", self.seed, self.count, frames=self.frames, digits=self.digits)
        options: dict[str, Any] = {"size": self.size, "frames": self.frames, "images": self.images}
        return [DigitsClip(f"digits {s}", masked=True, seed=s, count_of_digits=self.digits, **options) for s in found]


def seeds(kind: str, first: int, count: int, **more: int | None) -> range:
    """The seeds of `count` generated clips, from the first on. Raises DataError if the first is negative, or if the
    count or another given number is below 1."""
    for name, value in {"count": count, **more}.items():
        if value is not None and value < 1:
            raise DataError(f"{kind}: {name} must be at least 1, got {value}")
    if first < 0:
        raise DataError(f"{kind}: seed cannot be negative, got {first}")
    return range(first, first + count)
