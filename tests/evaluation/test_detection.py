"""Events in the surprise, and the comparison with simple baselines."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tttstream.evaluation.detection import Comparison, EventDetector, auroc
from tttstream.frames import Result
from tttstream.sources.base import Event


def result(index: int, surprise: float) -> Result:
    return Result(index, index / 10, surprise, 1.0, 0.1, 7.0, np.ones((2, 2), np.float32), np.zeros(2, np.float32))


def events(scores: Sequence[float], **options: Any) -> EventDetector:
    detector = EventDetector(**options)
    begun = [index for index, score in enumerate(scores) if detector.update(result(index, score))]
    assert begun == [event.index for event in detector.events]
    return detector


def test_one_rise_is_one_event_with_its_highest_surprise() -> None:
    detector = events([0, 0, 3.5, 6, 2, 4, 1, 1, 1, 1, 1, 0, 5, 0])
    assert [(e.index, e.time_s, e.surprise) for e in detector.events] == [(2, 0.2, 6), (12, 1.2, 5)]
    assert detector.total == 2


def test_flicker_around_the_threshold_does_not_split_an_event() -> None:
    assert events([0] * 5 + [3.1, 2.9] * 20 + [0] * 10).total == 1
    assert events([0] * 5 + [3.1, 1.0, 1.0, 3.2] + [0] * 10).total == 1


def test_the_list_of_events_is_bounded() -> None:
    detector = EventDetector()
    for index in range(12_000 * 7):
        detector.update(result(index, 9.0 if index % 7 == 0 else 0.0))
    assert detector.total == 12_000
    assert len(detector.events) == 10_000


def test_auroc_is_the_chance_that_a_positive_scores_higher() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40).astype(float), rng.integers(0, 7, 60).astype(float)
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert auroc(positive, negative) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(positive, positive[:0]))


@pytest.mark.parametrize("capacity", [300, 1000])
def test_the_report_on_a_stream_with_known_answers(capacity: int) -> None:
    """Surprise finds each object three frames late and no cut; the pictures change at the first frame of every
    event."""
    planted = [Event("object", start, start + 20) for start in (200, 300, 500, 600)] + [Event("scene", 400, 401)]
    rng = np.random.default_rng(1)
    comparison = Comparison(capacity)
    for index in range(700):
        since = [index - event.start for event in planted if event.start <= index < event.stop]
        image = rng.integers(90, 100, (16, 16, 3)).astype(np.uint8)
        if since and since[0] == 0:
            image += 100
        score = 5.0 if since and since[0] >= 3 else float(rng.uniform(0, 1))
        comparison.add(image, result(index, score))
    report = comparison.report(planted)
    assert list(report) == ["surprise", "frame_difference", "mog2"]
    objects = report["surprise"]["by_kind"]["object"]
    assert objects == {"events": 4 if capacity == 1000 else 2, "auroc": 1.0, "found": 1.0, "delay_frames": 3.0}
    difference = report["frame_difference"]
    assert difference["delay_frames"] == 0
    assert difference["auroc"] == difference["found"] == 1
    if capacity == 1000:
        assert report["surprise"]["by_kind"]["scene"]["events"] == 1
        assert report["surprise"]["auroc"] > report["surprise"]["by_kind"]["scene"]["auroc"]


def test_a_scene_that_is_a_revisit_too_counts_once() -> None:
    comparison = Comparison()
    for index in range(300):
        comparison.add(np.zeros((8, 8, 3), np.uint8), result(index, 4.0 if 200 <= index < 205 else 0.0))
    report = comparison.report([Event("scene", 200, 201), Event("revisit", 200, 201)])["surprise"]
    assert report["events"] == report["by_kind"]["scene"]["events"] == report["by_kind"]["revisit"]["events"] == 1


def test_a_stream_that_begins_late_is_judged_by_its_frames() -> None:
    comparison = Comparison()
    for index in range(1000, 1300):
        comparison.add(np.zeros((8, 8, 3), np.uint8), result(index, 4.0 if 1200 <= index < 1210 else 0.0))
    report = comparison.report([Event("a", 500, 510), Event("a", 1200, 1210)])
    assert report["surprise"]["by_kind"]["a"] == {"events": 1, "auroc": 1.0, "found": 1.0, "delay_frames": 0.0}
    assert report["mog2"]["auroc"] == 0.5


def test_no_event_is_no_figure() -> None:
    comparison = Comparison()
    for index in range(60):
        comparison.add(np.zeros((8, 8, 3), np.uint8), result(index, 0.0))
    nothing = {"events": 0, "auroc": None, "found": None, "delay_frames": None, "by_kind": {}}
    assert comparison.report([])["surprise"] == nothing
