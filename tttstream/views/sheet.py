"""A sheet of pictures in rows and columns, each with a title."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tttstream.views.overlay import BACKGROUND, TEXT, Picture, font

SIDE = 144  # pixels: pictures are enlarged by whole factors up to about this width, so that words fit above them
LINE, GAP = 20, 4  # height of a line of words, and the space between pictures
LARGE, SMALL = 12, 8  # sizes of letters, the second for long lines


def sheet(pictures: NDArray[np.uint8], labels: Sequence[Sequence[str]]) -> Picture:
    """Tile pictures [rows, columns, H, W, 3] and their labels into one picture; each picture is enlarged by
    a whole factor."""
    rows, columns, height, width = pictures.shape[:4]
    factor = max(1, round(SIDE / width))
    tall, wide = height * factor, width * factor
    whole = Image.new("RGB", (columns * (wide + GAP) + GAP, rows * (LINE + tall + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(whole)
    for row in range(rows):
        for column in range(columns):
            left, top = GAP + column * (wide + GAP), GAP + row * (LINE + tall + GAP)
            panel = Image.fromarray(pictures[row, column]).resize((wide, tall), Image.Resampling.NEAREST)
            whole.paste(panel, (left, top + LINE))
            text = labels[row][column]
            size = next(
                (size for size in range(LARGE, SMALL, -1) if draw.textlength(text, font(size)) < wide - 1), SMALL
            )
            while text and draw.textlength(text, font(size)) >= wide - 1:
                text = text[:-1]
            draw.text((left + 1, top + LINE / 2), text, fill=TEXT, font=font(size), anchor="lm")
    return np.array(whole)
