"""The overlay: always one size, heat only where surprise is unusual, and an alert above the threshold."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream.frames import Result
from tttstream.views.overlay import ALERT, Overlay, clock, size_text

RNG = np.random.default_rng(0)
GREY = np.full((96, 96, 3), 120, dtype=np.uint8)


def result(index: int = 0, surprise: float = 0.0, losses: NDArray[np.float32] | None = None) -> Result:
    losses = RNG.uniform(0.9, 1.1, (12, 12)).astype(np.float32) if losses is None else losses
    return Result(index, index / 25, surprise, 1.0, 0.2, 5.0, losses, np.zeros(4, np.float32))


@pytest.mark.parametrize("shape", [(96, 96), (432, 768), (768, 432), (101, 77), (8, 400)])
def test_the_size_is_even_and_constant(shape: tuple[int, int]) -> None:
    overlay = Overlay()
    first = overlay.draw(np.zeros((*shape, 3), np.uint8), result()).shape
    assert first[0] % 2 == first[1] % 2 == 0
    assert first[1] == 480
    assert overlay.draw(np.zeros((50, 90, 3), np.float32), result(1)).shape == first


def test_heat_shows_where_surprise_is_and_the_usual_stays_clear() -> None:
    overlay = Overlay(width=480)
    for index in range(30):
        usual = overlay.draw(GREY, result(index)).copy()
    assert np.abs(usual[:480].astype(int) - 120).mean() < 3
    losses = RNG.uniform(0.9, 1.1, (12, 12)).astype(np.float32)
    losses[3:6, 6:9] = 3.0
    picture = overlay.draw(GREY, result(30, losses=losses))[:480].astype(int)
    assert np.abs(picture[140:220, 260:340] - 120).mean() > 40
    assert np.abs(picture[300:, :200] - 120).mean() < 3


def test_the_alert_frame_is_drawn_only_above_the_threshold() -> None:
    overlay = Overlay(threshold=3.0)
    assert tuple(overlay.draw(GREY, result(0, surprise=3.1))[200, 1]) == ALERT
    assert tuple(overlay.draw(GREY, result(1, surprise=2.9))[200, 1]) != ALERT


def test_an_event_marks_the_curve() -> None:
    plain, marked = Overlay(), Overlay()
    losses = np.ones((12, 12), np.float32)
    a = plain.draw(GREY, result(0, losses=losses))
    b = marked.draw(GREY, result(0, losses=losses), event=True)
    assert (a[:480] == b[:480]).all()
    assert (a[520:] != b[520:]).any()


def test_the_picture_is_repeatable_and_survives_odd_values() -> None:
    pictures = []
    for _ in range(2):
        overlay = Overlay()
        losses = np.array([[np.nan, 1.0], [np.inf, 2.0]], np.float32)
        overlay.draw(GREY, result(0, surprise=float("nan"), losses=losses))
        pictures.append(overlay.draw(GREY, result(1, surprise=400.0, losses=losses), fps=30, state_bytes=10).copy())
    assert (pictures[0] == pictures[1]).all()


def test_float_and_uint8_pictures_look_the_same() -> None:
    losses = np.ones((12, 12), np.float32)
    a = Overlay().draw(GREY, result(0, losses=losses)).astype(int)
    b = Overlay().draw(GREY.astype(np.float32) / 255, result(0, losses=losses)).astype(int)
    assert np.abs(a - b).max() <= 1


def test_text_for_people() -> None:
    assert clock(5.04) == "0:05.0"
    assert clock(59.96) == "1:00.0"
    assert clock(3723.4) == "1:02:03.4"
    assert clock(5.125, 3) == "0:05.125"
    assert clock(59.996, 2) == "1:00.00"
    assert size_text(67_600) == "68 kB"
    assert size_text(1_234_567) == "1.2 MB"
