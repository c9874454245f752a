"""Outlines from boxes and points: the object in the box or at the point, and refused arguments."""

from __future__ import annotations

import numpy as np
import pytest

from tttstream.errors import FrameError
from tttstream.evaluation.davis import region_similarity
from tttstream.streams.outlines import from_box, from_point


def disk(height: int = 300, width: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """A noisy orange disk on noisy blue, and its mask."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:height, :width]
    mask = np.hypot(ys - 140, xs - 210) < 60
    image = np.where(mask[..., None], (220, 140, 40), (40, 80, 160)) + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_disk_is_found_in_its_box_and_about_a_point(kind: type) -> None:
    image, mask = disk()
    frame = image if kind is np.uint8 else (image / 255).astype(kind)
    boxed, pointed = from_box(frame, (140, 70, 145, 150)), from_point(frame, (200, 150))
    assert boxed.shape == pointed.shape == mask.shape
    assert region_similarity(boxed, mask) > 0.95
    assert region_similarity(pointed, mask) > 0.95
    assert np.array_equal(boxed, from_box(frame, (140, 70, 145, 150)))


def test_boxes_over_the_border_and_those_that_hide_nothing() -> None:
    image, _ = disk()
    assert not from_box(image, (-50, -50, 120, 120))[70:].any()
    whole = from_box(image, (0, 0, 400, 300))  # no background to learn from: the ellipse in the box
    assert whole[150, 200]
    assert not whole[2, 2]
    assert from_box(np.zeros((40, 40, 3), np.uint8), (10, 10, 12, 8)).sum() == pytest.approx(np.pi * 6 * 4, rel=0.15)
    assert from_box(image, (399, 299, 1, 1)).any()
    large = np.kron(image, np.ones((4, 4, 1), np.uint8))
    assert from_box(large, (21, 41, 1, 1)).sum() == 1  # less than a pixel where the outline is computed


def test_a_guess_shows_parts_that_look_like_the_background() -> None:
    image, mask = disk()
    hole = np.zeros_like(mask)
    hole[120:160, 190:230] = True
    image[hole] = image[:40, :40].reshape(-1, 3)
    box = (140, 70, 145, 150)
    assert not from_box(image, box)[hole].any()
    with_guess = from_box(image, box, np.roll(mask, 6, 1))  # a guess that is a little beside the object
    assert with_guess[hole].all()
    assert region_similarity(with_guess, mask) > 0.93
    tiny = np.zeros_like(mask)
    tiny[140:145, 200:205] = True
    assert np.array_equal(from_box(image, box, tiny), from_box(image, box))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda image: from_box(image, (500, 0, 10, 10)), "has no pixel of the frame of 400x300"),
        (lambda image: from_box(image, (10, 10, 0, 10)), "has no pixel"),
        (lambda image: from_box(image, (10, 10, 5)), "expected a box x, y, width, height"),
        (lambda image: from_box(image, (10, 10, np.nan, 5)), "expected a box"),
        (lambda image: from_point(image, (400, 10)), "is outside of the frame of 400x300"),
        (lambda image: from_point(image, (1, 2, 3)), "expected a point x, y"),
    ],
)
def test_invalid_boxes_and_points(call: object, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        call(disk()[0])  # type: ignore[operator]
