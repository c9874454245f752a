"""The chart and its record: constant memory, exact extremes, separate highlights, a PNG."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tttstream.errors import OutputError
from tttstream.frames import Result
from tttstream.sources.base import Event
from tttstream.views.chart import ChartFile, draw_chart, expand
from tttstream.views.overlay import clock, compress
from tttstream.views.trace import Envelope, Highlights, Trace

IMAGE = np.zeros((40, 60, 3), dtype=np.uint8)


def result(index: int, surprise: float) -> Result:
    return Result(index, index / 10, surprise, 1.0, 0.1, 7.0, np.ones((2, 2), np.float32), np.zeros(2, np.float32))


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100, 1001])
def test_envelope_holds_the_true_extremes(count: int) -> None:
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    envelope = Envelope(16)
    for value in values:
        envelope.add(float(value))
    numbers, low, mean, high = envelope.curves()
    assert len(numbers) <= 16
    groups = [values[start : start + envelope.width] for start in range(0, count, envelope.width)]
    np.testing.assert_array_equal(low, [group.min() for group in groups])
    np.testing.assert_array_equal(high, [group.max() for group in groups])
    np.testing.assert_allclose(mean, [group.mean() for group in groups], rtol=1e-4, atol=1e-6)
    if envelope.width == 1:
        np.testing.assert_array_equal(numbers, np.arange(count))


def test_highlights_are_separate_peaks() -> None:
    highlights = Highlights(count=4)
    peaks = {100: 9.0, 103: 8.5, 400: 7.0, 700: 5.0}
    for index in range(1000):
        highlights.add(index, IMAGE, result(index, peaks.get(index, 0.1)))
    assert [moment.frame for moment in highlights.in_order(1000, threshold=3.0, least=1)] == [100, 400, 700]
    assert [moment.frame for moment in highlights.in_order(1000, threshold=8.0, least=2)] == [100, 400]
    assert [moment.frame for moment in highlights.in_order(1000, threshold=6.0, least=0)] == [100, 400]


def test_surprise_is_drawn_straight_to_the_knee_and_as_its_logarithm_beyond() -> None:
    values = np.linspace(-5, 300, 1000)
    heights = compress(values, 6.0)
    np.testing.assert_array_equal(heights[values <= 6], values[values <= 6])
    np.testing.assert_allclose(np.diff(compress(6.0 * np.exp([0.0, 1.0, 2.0]), 6.0)), 6.0)
    assert (np.diff(heights) > 0).all()
    np.testing.assert_allclose(expand(heights, 6.0), values)


@pytest.mark.parametrize("count", [1, 2, 300, 5000])
def test_the_chart_is_drawn(tmp_path: Path, count: int) -> None:
    trace = Trace()
    for index in range(count):
        trace.add(IMAGE, result(index, 6.0 if index % 100 == 50 else 0.0))
    planted = [Event("scene", 50, 60), Event("object", 150, 170)] if count > 200 else []
    with ChartFile(tmp_path / "surprise.png") as file:
        file.draw(trace, "a title", planted=planted, detected=[50, 150] if count > 200 else [])
    image = cv2.imread(os.fspath(tmp_path / "surprise.png"))
    assert image.shape == (832, 1560, 3)
    assert image.std() > 5
    assert os.listdir(tmp_path) == ["surprise.png"]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("step", [0.04, 0.0, 10.0])
def test_a_very_short_run_shows_every_frame_with_its_time(count: int, step: float) -> None:
    """One point a frame inside the chart, also if the time does not advance."""
    trace = Trace()
    for index in range(count):
        trace.add(IMAGE, replace(result(index, 4.0 * index), time_s=5 + step * index))
    figure = draw_chart(trace, "a title", [], [count - 1], 3.0)
    above, _, below = figure.axes[:3]
    for axes, values in zip(figure.axes[:3], ([0, 4, 8], [10] * 3, [7] * 3), strict=True):
        curve = next(line for line in axes.lines if line.get_marker() == "o")
        np.testing.assert_allclose(curve.get_xydata(), [(i, values[i]) for i in range(count)], rtol=1e-5)
        low, high = axes.get_xlim()
        assert low < 0
        assert high > count - 1
        assert axes.get_ylim()[0] < min(values) or min(values) == 0
        assert axes.get_ylim()[1] > max(values[:count])
    mark = next(line for line in above.lines if line.get_marker() == "v")
    assert list(np.ravel(mark.get_xdata())) == [count - 1]
    said = [text.get_text() for text in below.get_xticklabels()]
    assert said == [f"frame {i} · {clock(5 + step * i, 2)}" for i in range(count)]
    assert f"{count} frame{'s' * (count > 1)}" in [text.get_text() for text in figure.texts]


@pytest.mark.parametrize(("count", "step"), [(9, 0.04), (40, 1 / 240), (30, 0.05), (400, 0.04), (5000, 1.0)])
def test_times_under_the_chart_differ(count: int, step: float) -> None:
    trace = Trace()
    for index in range(count):
        trace.add(IMAGE, replace(result(index, 0.0), time_s=step * index))
    axes = draw_chart(trace, "", [], [], 3.0).axes[2]
    low, high = axes.get_xlim()
    ticks = [value for value in axes.get_xticks() if low <= value <= high]
    said = axes.xaxis.get_major_formatter().format_ticks(ticks)
    assert len(ticks) >= 3
    for value, text in zip(ticks, said, strict=True):
        minutes, seconds = text.rsplit(":", 1)
        hours, minutes = minutes.split(":") if ":" in minutes else ("0", minutes)
        assert 3600 * int(hours) + 60 * int(minutes) + float(seconds) == pytest.approx(value, abs=1e-9)


def test_a_chart_never_drawn_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no chart"), ChartFile(tmp_path / "surprise.png"):
        pass
    assert os.listdir(tmp_path) == []
