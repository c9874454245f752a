"""The picture of a frame with its objects, and images that store masks."""

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.views.overlay import Picture, fit, to_uint8

Labels = NDArray[np.uint8]
RGB = tuple[int, int, int]

DARK: RGB = (12, 12, 12)
"""The outer line of an object; the inner one is a light shade of its colour, so that one is visible on any ground."""

LARGEST = 254
"""The largest number in an image of 8 bits: 255 would be read as void."""


def palette() -> NDArray[np.uint8]:
    """Colours [256, 3] of object numbers as in DAVIS and PASCAL VOC: neighbours differ, 0 is black."""
    numbers, colours = np.arange(256), np.zeros((256, 3), int)
    for place in range(8):  # three bits at a time, the lowest ones to the highest bits of red, green and blue
        for channel in range(3):
            colours[:, channel] |= (numbers >> (3 * place + channel) & 1) << (7 - place)
    return colours.astype(np.uint8)


def mask_image(mask: NDArray[np.integer[Any]], colours: NDArray[np.uint8], largest: int = LARGEST) -> Image.Image:
    """A mask [H, W] as an image whose pixels are object numbers.

    largest: the largest possible number. Up to 254 the pixels have 8 bits and are shown in these colours [256, 3]; up
    to 65535 they are grey with 16 bits, above that with 32, which TIFF supports and PNG does not.
    """
    if largest > LARGEST:
        return Image.fromarray(mask.astype(np.uint16 if largest <= 65535 else np.int32))
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(colours.tobytes())
    return image


def distinct(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return colours [n, 3] without repetition. Colour 0 is that of the background. Other colours that are almost black
    or repeated are replaced by colours of the palette."""
    spare = palette()
    found = np.zeros_like(colours)
    seen: set[tuple[int, ...]] = set()
    for number in range(1, len(colours)):
        choices = [colours[number], *np.roll(spare[1:], -(number - 1), axis=0)]
        free = (c for c in choices if c.max() >= 32 and tuple(c.tolist()) not in seen)
        found[number] = next(free, colours[number])
        seen.add(tuple(found[number].tolist()))
    return found


class MaskOverlay:
    """Draws frames with their masks, at most `width` pixels wide, always in the size of the first.

    colours: [n, 3], of the objects 1 … n - 1. An object is tinted, and has a dark outline with a light one inside, so
    that it is visible on any ground.
    """

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
        _outline(picture, small, self._colours, 2 if width > 480 else 1)
        return picture


def _outline(picture: Picture, mask: Labels, colours: NDArray[np.uint8], thick: int) -> None:
    """Draw the outlines of all objects, in place: dark outside, light inside, each `thick` pixels wide."""
    kernel = np.ones((3, 3), np.uint8)
    inner = np.zeros(mask.shape, np.uint8)
    outer = np.zeros(mask.shape, bool)
    for number in np.unique(mask[mask > 0]):
        # an object may continue outside of the picture: no line along the picture's edge
        own = (mask == number).astype(np.uint8)
        core = cv2.erode(own, kernel, iterations=thick, borderType=cv2.BORDER_CONSTANT, borderValue=(1,))
        inner[(own > core)] = number
        outer |= cv2.dilate(own, kernel, iterations=thick) > own
    picture[outer & (inner == 0)] = DARK
    light = (colours // 3 + 170).astype(np.uint8)  # a third of the colour, two thirds of white
    picture[inner > 0] = light[inner[inner > 0]]
