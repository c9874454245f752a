"""The picture of a frame with the objects that were found in it, and the images that masks are kept in."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.views.overlay import Picture, fit, to_uint8

Labels = NDArray[np.uint8]


def palette() -> NDArray[np.uint8]:
    """Colours [256, 3] of object numbers, as DAVIS and PASCAL VOC have them: neighbours differ, 0 is black."""
    numbers, colours = np.arange(256), np.zeros((256, 3), int)
    for place in range(8):  # three bits at a time, the lowest ones to the highest bits of red, green and blue
        for channel in range(3):
            colours[:, channel] |= (numbers >> (3 * place + channel) & 1) << (7 - place)
    return colours.astype(np.uint8)


def mask_image(mask: Labels, colours: NDArray[np.uint8]) -> Image.Image:
    """A mask [H, W] as an image whose pixels are object numbers and are shown in colour."""
    image = Image.fromarray(mask)
    image.putpalette(colours.tobytes())
    return image


class MaskOverlay:
    """Draws frames with their masks over them, at most `width` pixels wide, always of the size of the first."""

    def __init__(self, colours: NDArray[np.uint8], width: int = 960, opacity: float = 0.5) -> None:
        self._colours, self._width, self._opacity = colours, width, opacity
        self._size: tuple[int, int] | None = None

    def draw(self, image: NDArray[np.generic], mask: Labels) -> Picture:
        """A new picture [h, w, 3], both sides even."""
        frame = to_uint8(image)
        if self._size is None:
            scale = min(1.0, self._width / frame.shape[1])
            self._size = cast(
                "tuple[int, int]", tuple(max(2, round(side * scale) // 2 * 2) for side in frame.shape[:2])
            )
        height, width = self._size
        picture = frame.copy() if frame.shape[:2] == self._size else fit(frame, height, width)
        small = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
        mixed = cv2.addWeighted(picture, 1 - self._opacity, self._colours[small], self._opacity, 0)
        picture[small > 0] = mixed[small > 0]
        for number in np.unique(small[small > 0]):
            outlines, _ = cv2.findContours((small == number).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            colour = tuple(int(value) for value in self._colours[number])
            cv2.drawContours(picture, outlines, -1, colour, 2 if width > 480 else 1, cv2.LINE_AA)
        return picture
