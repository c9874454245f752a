"""The surprise scale: level and spread of a stream's loss do not matter, events do, and it is never spoilt."""

import math
import random

import pytest

from tttstream.streams.normaliser import Normaliser


def losses(count: int, scale: float, spread: float, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [scale * math.exp(spread * generator.gauss(0, 1)) for _ in range(count)]


def scores(values: list[float]) -> list[float]:
    normaliser = Normaliser()
    return [normaliser.push(value) for value in values]


@pytest.mark.parametrize(("scale", "spread"), [(1.0, 0.05), (1e-3, 0.05), (500.0, 0.3)], ids=str)
def test_any_stream_scores_about_zero_and_one(scale: float, spread: float) -> None:
    tail = scores(losses(3000, scale, spread))[500:]
    mean = sum(tail) / len(tail)
    assert abs(mean) < 0.1
    assert 0.85 < math.sqrt(sum((score - mean) ** 2 for score in tail) / len(tail)) < 1.15


def test_an_event_has_a_high_score_and_does_not_hide_the_next() -> None:
    values = losses(1000, 1.0, 0.1)
    for event in (600, 640, 680):
        values[event] *= 3.0
    result = scores(values)
    assert all(result[event] > 5 for event in (600, 640, 680))
    assert max(result[400:600]) < 5


def test_a_fresh_memory_that_learns_hides_no_event() -> None:
    values = [8.0] + [4.0 * math.exp(0.6 * math.exp(-t / 40)) for t in range(300)]
    values = [value * noise for value, noise in zip(values, losses(301, 1.0, 0.001), strict=True)]
    quiet = scores(values)
    assert max(quiet) < 3
    for event in (20, 60, 140):
        values[event:] = [value * 1.1 for value in values[event:]]
    assert all(scores(values)[event] > 5 for event in (20, 60, 140))


def test_on_a_still_picture_a_hundredth_more_is_an_event() -> None:
    values = losses(300, 2.0, 0.0005) + losses(20, 2.02, 0.0005)
    result = scores(values)
    assert max(result[:300]) < 3 < result[300]


def test_the_first_frames_have_no_surprise() -> None:
    assert scores(losses(8, 1.0, 1.0)) == [0.0] * 8


def test_a_still_picture_is_no_surprise() -> None:
    assert all(abs(score) < 1 for score in scores([2.0] * 500 + [2.001] * 20))


def test_a_loss_of_zero_is_allowed() -> None:
    assert all(math.isfinite(score) for score in scores([0.0, 1.0] * 50))


def test_it_continues_from_its_saved_values() -> None:
    values = losses(300, 1.0, 0.2)
    whole = scores(values)
    first, second = Normaliser(), Normaliser()
    for value in values[:137]:
        first.push(value)
    second.restore(first.state())
    assert [second.push(value) for value in values[137:]] == whole[137:]


def test_a_restart_forgets_the_level_and_keeps_the_deviation() -> None:
    """The loss of a fresh memory is no event; a later rise is one, on the scale of all earlier frames."""
    normaliser = Normaliser()
    for value in losses(100, 1.0, 0.05):
        normaliser.push(value)
    variance = normaliser.variance
    normaliser.restart()
    assert normaliser.push(50.0) == 0.0
    assert normaliser.variance == variance
    again = Normaliser()
    again.restore(normaliser.state())
    for one in (normaliser, again):
        assert one.push(20.0) < 0.0
    assert normaliser.push(20.0 * 50) == again.push(20.0 * 50) > 3.0
