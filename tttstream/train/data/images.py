"""Folders of images as clips, with their object masks if there are any."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.io.mask_files import Labels, MaskSequence
from tttstream.sources.folder import IMAGES, listed
from tttstream.sources.pages import read_image
from tttstream.train.data.clips import Clip, Decoder, Numbers, Reader, Shot, VideoClip, length, piece

# The last two are listed in order to refuse them
MASKS = (".png", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".gif", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImagesClip(Clip):
    """The images of a folder in natural order; files with several images are refused. name: the folder.

    masks: a folder of images of the same names, PNG or others without loss, read by the rule of
    `tttstream.io.mask_files`. merge: join all objects to one, as in DAVIS 2016. start, stop: the images [start, stop)
    of it, None: to the end.
    """

    masks: str | None = None
    merge: bool = False
    start: int = 0
    stop: int | None = None

    def open(self, decoder: Decoder) -> Reader:
        return piece(_ImagesReader(self), self.start, self.stop)

    def count(self, decoder: Decoder) -> int | None:
        return length(len(_images(self.name)), self.start, self.stop)


def clip_at(path: str, label: int = -1, start: int = 0, stop: int | None = None) -> Clip:
    """The clip of a folder of images, or of a video file, or its frames [start, stop)."""
    if os.path.isdir(path):
        return ImagesClip(path, label, start=start, stop=stop)
    return VideoClip(path, label, start=start, stop=stop)


class _ImagesReader(Reader):
    def __init__(self, clip: ImagesClip) -> None:
        self._clip, self._paths = clip, _images(clip.name)
        self.frames = len(self._paths)
        self._masks = None if clip.masks is None else _masks(clip.name, clip.masks)
        self._shape = read_image(self._paths[0]).shape

    def read(self, indices: Numbers) -> Shot:
        frames: list[NDArray[np.uint8]] = []
        masks: list[Labels] = []
        try:
            for index in (int(index) for index in indices if index < len(self._paths)):
                frame, mask = self._frame(self._paths[index]), self._mask(index)
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
        frame = read_image(path)
        if frame.shape != self._shape:
            came, first = (f"{width}×{height}" for height, width, _ in (frame.shape, self._shape))
            raise SourceError(f"{path} is {came} pixels and the first image of its folder {first}; use one size")
        return frame

    def _mask(self, index: int) -> Labels | None:
        if self._masks is None:
            return None
        mask = self._masks[index].labels
        if mask.shape != self._shape[:2]:
            came, expected = (f"{width}×{height}" for height, width in (mask.shape, self._shape[:2]))
            raise SourceError(f"the mask of {self._paths[index]} is {came} pixels, expected {expected} as the image")
        return np.minimum(mask, 1) if self._clip.merge else mask


@lru_cache(maxsize=4096)
def _images(folder: str) -> list[Path]:
    found = listed(Path(folder), IMAGES)
    if not found:
        raise SourceError(f"{folder} holds no images")
    return found


@lru_cache(maxsize=4096)
def _masks(folder: str, masks: str) -> MaskSequence:
    """The masks of the images of a folder, which have the same names in another folder."""
    try:
        there = {path.stem + path.suffix.lower(): path for path in Path(masks).iterdir()}
    except OSError as error:
        raise SourceError(f"{masks} cannot be listed: {error.strerror}") from error

    def mask(image: Path) -> Path:
        found = (there.get(image.stem + suffix) for suffix in MASKS)
        return next((path for path in found if path is not None), Path(masks, image.stem + ".png"))

    return MaskSequence([mask(path) for path in _images(folder)])
