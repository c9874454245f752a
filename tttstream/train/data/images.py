"""Folders of images as clips, with object masks beside them where there are any."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources.folder import IMAGES, listed, pixels
from tttstream.train.data.clips import Clip, Decoder, Numbers, Reader, Shot

MOST_OBJECTS = 254  # 255 says "unknown" in some data sets


@dataclass(frozen=True)
class ImagesClip(Clip):
    """The images of a folder in natural order. name: the folder.

    masks: a folder of indexed or grey images of the same names, whose pixels number the objects, 0 the background.
    merge: take all objects together as one, as DAVIS 2016 does.
    """

    masks: str | None = None
    merge: bool = False

    def open(self, decoder: Decoder) -> Reader:
        """See Clip."""
        return _ImagesReader(self)

    def count(self, decoder: Decoder) -> int | None:
        """See Clip."""
        return len(_images(self.name))


class _ImagesReader(Reader):
    def __init__(self, clip: ImagesClip) -> None:
        self._clip, self._paths = clip, _images(clip.name)
        self.frames = len(self._paths)
        self._shape = _read(self._paths[0]).shape

    def read(self, indices: Numbers) -> Shot:
        """See Reader."""
        frames: list[NDArray[np.uint8]] = []
        masks: list[NDArray[np.uint8]] = []
        try:
            for path in (self._paths[index] for index in indices if index < len(self._paths)):
                frame, mask = self._frame(path), self._mask(path)
                frames.append(frame)
                masks += [] if mask is None else [mask]
        except SourceError as error:
            if not frames:
                raise
            self.damage = str(error)  # the images before it are good
        if not frames:
            return Shot(np.zeros((0, *self._shape), np.uint8))
        return Shot(np.stack(frames), np.stack(masks) if masks else None)

    def _frame(self, path: Path) -> NDArray[np.uint8]:
        frame = _read(path)
        if frame.shape != self._shape:
            came, first = (f"{width}×{height}" for height, width, _ in (frame.shape, self._shape))
            raise SourceError(f"{path} is {came} pixels and the first image of its folder {first}; use one size")
        return frame

    def _mask(self, path: Path) -> NDArray[np.uint8] | None:
        if self._clip.masks is None:
            return None
        mask = read_mask(Path(self._clip.masks, path.stem + ".png"), self._clip.merge)
        if mask.shape != self._shape[:2]:
            came, expected = (f"{width}×{height}" for height, width in (mask.shape, self._shape[:2]))
            raise SourceError(f"the mask of {path} is {came} pixels, expected {expected} as the image")
        return mask


@lru_cache(maxsize=4096)
def _images(folder: str) -> list[Path]:
    found = listed(Path(folder), IMAGES)
    if not found:
        raise SourceError(f"{folder} holds no images")
    return found


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return pixels(path)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        raise SourceError(f"{path} cannot be read as an image ({error})") from error


def read_mask(path: Path, merge: bool = False) -> NDArray[np.uint8]:
    """The objects that the pixels of a mask belong to, [H, W], 0 the background; 1 for all objects with `merge`.

    A mask of one object may be black and white. Raises SourceError where it cannot be read.
    """
    try:
        with Image.open(path) as file:
            mask = np.array(file if file.mode in ("P", "L", "1") else file.convert("L")).astype(np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise SourceError(f"{path} cannot be read as a mask ({error})") from error
    if merge:
        return (mask > 0).astype(np.uint8)
    return (
        np.where(mask == 255, 1, mask) if set(np.unique(mask)) <= {0, 255} else np.where(mask > MOST_OBJECTS, 0, mask)
    )
