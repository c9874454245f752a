"""Detectors of novelty at the same number of false alarms."""

import numpy as np
import pytest

from tttstream.evaluation.spliced import Spliced, alarms, at_rates


def stream(seed: int, frames: int = 600) -> Spliced:
    """Events every 100 frames. "sharp" finds all of them, "false" also alarms once between two events, "blind"
    never."""
    rng, made = np.random.default_rng(seed), Spliced()
    image = np.zeros((8, 8, 3), np.uint8)
    for at in range(frames):
        begins = at % 100 == 50
        quiet = 1 + 0.01 * float(rng.random())
        moment = at == 300
        sharp, blind = 9.0 if begins else quiet, quiet
        also = 99.0 if moment else sharp
        made.add(image, sharp, blind, "cut" if begins else None, also=also)
    return made


def test_more_is_found_where_more_false_alarms_are_allowed() -> None:
    report = at_rates([stream(0), stream(1)], (0.0, 100.0))
    assert report["surprise"] == [1.0, 1.0]
    assert report["also"][0] < 0.5  # whatever finds the events raises the false alarm too
    assert report["also"][1] == 1.0
    assert report["frozen"][0] <= 0.2


def test_each_kind_of_event_has_shares_of_its_own() -> None:
    made = stream(0)
    made.events = [(at, "cut" if at < 300 else "thing") for at, _ in made.events]
    made.scores["frozen"] = [9.0 if at in (50, 150, 250) else 1.0 + 0.01 * (at % 7) for at in range(600)]
    assert at_rates([made], (100.0,), "cut")["frozen"] == [1.0]
    assert at_rates([made], (0.0,), "thing")["frozen"] == [0.0]
    assert at_rates([made], (0.0,), "thing")["surprise"] == [1.0]
    assert np.isnan(at_rates([made], (0.0,), "scene")["surprise"][0])


@pytest.mark.parametrize("threshold", [2.0, 4.0])
def test_an_alarm_lasts_until_half_of_its_threshold(threshold: float) -> None:
    scores = np.array([0.0, 1.1, 0.6, 1.1, 0.4, 1.1]) * threshold
    assert alarms(scores, threshold) == [1, 5]
