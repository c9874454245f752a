"""Masks over frames and sheets of pictures: outlines are visible on any background, colours differ, and words fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, binary_erosion

from tttstream.views.masks import MaskOverlay, distinct, mask_image, palette
from tttstream.views.overlay import BACKGROUND
from tttstream.views.sheet import GAP, LINE, sheet

HEIGHT, WIDTH = 60, 80


def light(picture: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(picture.astype(float) @ [0.299, 0.587, 0.114])


@pytest.mark.parametrize("number", [1, 2, 7, 15])
@pytest.mark.parametrize("ground", ["black", "white", "grey", "own", "mixed", "stripes"])
def test_an_outline_can_be_seen_on_any_ground(number: int, ground: str) -> None:
    """Along the outline, a pixel just outside and one just inside differ strongly, and one of them differs from the
    frame."""
    colour = palette()[number]
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:] = {"white": 255, "grey": 128, "own": colour, "mixed": colour // 2 + 64}.get(ground, 0)
    if ground == "stripes":
        frame[:, ::2] = 255
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:40, 25:60] = number
    picture = MaskOverlay(palette()).draw(frame, mask)
    inside = mask > 0
    around, rim = binary_dilation(inside) & ~inside, inside & ~binary_erosion(inside)
    dark, pale = light(picture)[around], light(picture)[rim]
    assert dark.max() < 30
    assert pale.min() > 160
    moved = [np.abs(light(picture) - light(frame))[part].mean() for part in (around, rim)]
    assert max(moved) > 90
    far = ~binary_dilation(inside, iterations=3)
    assert np.array_equal(picture[far], frame[far])


def test_there_is_no_outline_along_the_edge_of_the_picture() -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[40:, :30] = 1
    picture = MaskOverlay(palette()).draw(np.zeros((HEIGHT, WIDTH, 3), np.uint8), mask)
    assert picture[-1, 10].tolist() == picture[50, 10].tolist() == [64, 0, 0]
    assert picture[50, 0].tolist() == [64, 0, 0]
    assert light(picture[40, 10]) > 160


def test_colours_that_cannot_be_distinguished_are_replaced() -> None:
    grey_ramp = np.repeat(np.arange(4, dtype=np.uint8)[:, None], 3, axis=1)
    assert distinct(grey_ramp)[1:].tolist() == palette()[1:4].tolist()
    own = np.array([[0, 0, 0], [9, 200, 9], [9, 200, 9], [200, 9, 9]], np.uint8)
    found = distinct(own)
    assert found[[1, 3]].tolist() == own[[1, 3]].tolist()
    assert len(np.unique(found, axis=0)) == 4
    assert np.array_equal(distinct(palette()), palette())


@pytest.mark.parametrize(("largest", "mode"), [(254, "P"), (255, "I;16"), (65_535, "I;16"), (70_000, "I")])
def test_numbers_fit_the_image_they_are_written_in(largest: int, mode: str) -> None:
    mask = np.array([[0, 1], [largest, 2]], np.int32)
    image = mask_image(mask, palette(), largest)
    assert image.mode == mode
    assert np.array_equal(np.asarray(image), mask)


def test_a_sheet_has_words_above_each_picture_and_leaves_the_pictures_alone() -> None:
    pictures = np.random.default_rng(0).integers(60, 256, (2, 3, 32, 32, 3), np.uint8)
    words = [["clip 0, frame 7", "predicted", ""], ["a very long line of words that cannot fit above it", "4 ×", "x"]]
    whole = sheet(pictures, words)
    side = 32 * 4  # 144 pixels or so, by a whole factor
    assert whole.shape == (2 * (LINE + side + GAP) + GAP, 3 * (side + GAP) + GAP, 3)
    for row in range(2):
        for column in range(3):
            left, top = GAP + column * (side + GAP), GAP + row * (LINE + side + GAP)
            panel = whole[top + LINE : top + LINE + side, left : left + side]
            assert np.array_equal(panel[::4, ::4], pictures[row, column])
            strip = whole[top : top + LINE, left : left + side]
            assert bool((strip != BACKGROUND).any()) == bool(words[row][column])
            assert (whole[:, left + side : left + side + GAP] == BACKGROUND).all()
