"""The picture of a frame with the taught things that were found in it."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tttstream.streams.teach import UNKNOWN, Box, TeachResult
from tttstream.views.masks import palette
from tttstream.views.overlay import BACKGROUND, MUTED, RGB, TEXT, Picture, fit, font, shortened, to_uint8

BAR = 26  # height of the line under the frame, px
GUIDE = 0.5
"""The side of the square in which the user shows things, as a share of the frame's short side."""


def guide(height: int, width: int) -> Box:
    """The square in the centre of a frame in which the user shows things, see `Box`."""
    side = GUIDE * min(height, width)
    return (width - side) / 2, (height - side) / 2, side, side


class TeachOverlay:
    """Draws frames with the found things, at most `width` pixels wide, always in the size of the first.

    keys: names for the keys 1, 2 …; with them the square for showing things is drawn.
    """

    def __init__(self, width: int = 960, *, keys: Sequence[str] = ()) -> None:
        self._width, self._keys = width, keys
        self._size: tuple[int, int] | None = None
        self._colours: dict[str, RGB] = {}

    def draw(
        self, image: NDArray[np.generic], result: TeachResult, taught: Mapping[str, int], note: str = ""
    ) -> Picture:
        """A new picture [h, w, 3], both sides even. taught: the names, with the number of examples of each. note: a
        word at the end of the line below the frame."""
        frame = to_uint8(image)
        if self._size is None:
            scale = min(1.0, self._width / frame.shape[1])
            height, width = (max(2, round(side * scale) // 2 * 2) for side in frame.shape[:2])
            self._size = height, width
        height, width = self._size
        scale = width / frame.shape[1]
        picture = np.empty((height + BAR, width, 3), np.uint8)
        picture[:height] = fit(frame, height, width)
        picture[height:] = BACKGROUND
        if self._keys:
            self._frame(picture, guide(height, width), MUTED, 1)
        for thing in reversed(result.found):
            self._frame(picture, self._scaled(thing.box, scale), self._colour(thing.label), 2)
        self._write(picture, result, taught, note, scale)
        return picture

    def _write(self, picture: Picture, result: TeachResult, taught: Mapping[str, int], note: str, scale: float) -> None:
        board = Image.fromarray(picture)
        draw = ImageDraw.Draw(board)
        for thing in reversed(result.found):
            left, top, _, _ = self._scaled(thing.box, scale)
            text = f"{thing.label} {100 * thing.probability:.0f} %"
            long = font(15).getlength(text) + 10
            left, top = max(0.0, min(left, picture.shape[1] - long)), max(0.0, top - 21)
            draw.rectangle((left, top, left + long, top + 20), fill=self._colour(thing.label))
            draw.text((left + 5, top + 1), text, fill=BACKGROUND, font=font(15))
        height = picture.shape[0] - BAR
        if self._keys:
            left, top, _, _ = guide(height, picture.shape[1])
            legend = "  ".join(f"{place} {name}" for place, name in enumerate(self._keys, 1))
            draw.text((left, top - 19), shortened(legend, picture.shape[1] - left, 14), fill=TEXT, font=font(14))
        said = ", ".join(thing.label for thing in result.found) or UNKNOWN
        draw.text((10, height + 4), shortened(said, picture.shape[1] / 2, 15), fill=TEXT, font=font(15))
        known = "  ".join(f"{label} {count}" for label, count in taught.items()) or "nothing taught"
        known = shortened(f"{note}  {known}" if note else known, picture.shape[1] / 2 - 30, 13)
        draw.text((picture.shape[1] - 10 - font(13).getlength(known), height + 5), known, fill=MUTED, font=font(13))
        picture[:] = np.asarray(board)

    def _colour(self, label: str) -> RGB:
        """The colour of a label, light enough for dark letters on it; constant for one overlay."""
        if label not in self._colours:
            colour = palette()[len(self._colours) % 254 + 1].astype(int)
            red, green, blue = (colour // 2 + 127).tolist()
            self._colours[label] = red, green, blue
        return self._colours[label]

    @staticmethod
    def _scaled(box: Sequence[float], scale: float) -> Box:
        left, top, width, height = (number * scale for number in box)
        return left, top, width, height

    @staticmethod
    def _frame(picture: Picture, box: Box, colour: RGB, thick: int) -> None:
        left, top, right, bottom = (round(number) for number in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
        right, bottom = min(right, picture.shape[1]) - 1, min(bottom, picture.shape[0] - BAR) - 1
        cv2.rectangle(picture, (left, top), (right, bottom), colour, thick)
