"""Moving digits: handwritten digits, drawn here or read from idx files, that bounce in a small picture."""

import gzip
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DataError
from tttstream.train.data.clips import Decoder, GeneratedClip, Numbers, Pixels, Reader, Shot

DIGIT, PICTURE, SPEED = 28, 64, 3.6  # pixels, pixels, pixels a frame: a tenth of the free space of a digit
DRAWN, MOVES = 4000, 10
FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_SIMPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


@dataclass(frozen=True)
class DigitsClip(GeneratedClip):
    """Digits that move in straight lines and bounce off the edges, in the manner of Moving MNIST.

    (Srivastava, Mansimov, Salakhutdinov: Unsupervised learning of video representations using LSTMs, 2015: digits of 28
    pixels at a random place of a picture of 64, each with its own random direction; where they overlap, the brighter
    pixel shows.) Masks number the digits 1, 2 … in the order of drawing, the last on top.

    seed: of the digits, their positions and directions. count_of_digits: their number. images: an idx file of digits
    (train-images-idx3-ubyte, also with .gz), None for digits drawn by fonts at random widths, slants and sizes.
    """

    size: int = PICTURE
    count_of_digits: int = 2
    images: str | None = None

    def open(self, decoder: Decoder) -> Reader:
        return _DigitsReader(self)


class _DigitsReader(Reader):
    def __init__(self, clip: DigitsClip) -> None:
        self.frames = clip.frames
        digits = None if clip.images is None else read_idx(clip.images)
        rng = np.random.default_rng([clip.seed, MOVES])
        n, scale = clip.count_of_digits, clip.size / PICTURE
        side = round(DIGIT * scale)
        numbers = rng.integers(DRAWN if digits is None else len(digits), size=n)
        self._digits = [_fit(drawn_digit(int(k)) if digits is None else digits[k], side) for k in numbers]
        self._size, self._way = clip.size, clip.size - side
        angle = rng.uniform(0, 2 * np.pi, n)
        self._from = rng.uniform(0, self._way, (n, 2))
        self._speed = SPEED * scale * np.stack([np.sin(angle), np.cos(angle)], axis=-1)

    def read(self, indices: Numbers) -> Shot:
        frames = np.zeros((len(indices), self._size, self._size), np.uint8)
        masks = np.zeros_like(frames)
        # Between two edges a digit moves like a point on a circle twice as long, folded.
        places = np.abs(
            np.mod(self._from + indices[:, None, None] * self._speed + self._way, 2 * self._way) - self._way
        )
        for frame, mask, corners in zip(frames, masks, np.rint(places).astype(int), strict=True):
            for number, (digit, (top, left)) in enumerate(zip(self._digits, corners, strict=True), start=1):
                area = np.s_[top : top + len(digit), left : left + len(digit)]
                np.maximum(frame[area], digit, out=frame[area])
                mask[area][digit > 127] = number
        return Shot(np.repeat(frames[..., None], 3, axis=-1), masks)


def _fit(digit: Pixels, side: int) -> Pixels:
    if side == len(digit):
        return digit
    how = cv2.INTER_AREA if side < len(digit) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(digit, (side, side), interpolation=how), np.uint8)


@lru_cache(maxsize=DRAWN)
def drawn_digit(number: int) -> Pixels:
    """A digit drawn with a font, uint8 [28, 28]: 0, 1 … 9 in turn, each with its own width, slant and size."""
    rng = np.random.default_rng([DIGIT, number])
    side = 4 * DIGIT
    canvas: Pixels = np.zeros((side, side), np.uint8)
    text, font, thickness = str(number % 10), FONTS[rng.integers(len(FONTS))], int(rng.integers(6, 13))
    (width, height), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = 0.62 * side / height
    origin = (round((side - scale * width) / 2), round((side + scale * height) / 2))
    cv2.putText(canvas, text, origin, font, scale, 255, thickness, cv2.LINE_AA)
    turn, slant = rng.uniform(-0.2, 0.2), rng.uniform(-0.3, 0.3)
    matrix = np.array([[np.cos(turn), slant - np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * rng.uniform(0.85, 1.1)
    middle = np.full(2, side / 2)
    matrix = np.hstack([matrix, (middle - matrix @ middle)[:, None]])
    turned = cv2.warpAffine(canvas, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return np.asarray(cv2.resize(turned, (DIGIT, DIGIT), interpolation=cv2.INTER_AREA), np.uint8)


@lru_cache(maxsize=2)
def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """The images of an idx file (the format of MNIST), uint8 [n, 28, 28]. Raises DataError for another file."""
    path = Path(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError as error:
        raise DataError(f"no idx file {path}; give train-images-idx3-ubyte, or none to have digits drawn") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    head = np.frombuffer(data[:16], ">u4")
    if len(head) < 4 or head[0] != 0x803 or len(data) != 16 + int(np.prod(head[1:].astype(int))) or head[1] == 0:
        raise DataError(f"{path} is not an idx file of images: expected the magic number 0x803 and n × rows × columns")
    if tuple(head[2:]) != (DIGIT, DIGIT):
        raise DataError(f"{path} holds images of {head[2]}×{head[3]} pixels, expected {DIGIT}×{DIGIT}")
    return np.frombuffer(data, np.uint8, offset=16).reshape(-1, DIGIT, DIGIT)
