"""What a run costs: percentiles in constant memory, memory over time."""

from __future__ import annotations

import numpy as np
import pytest

from tttstream.evaluation.measures import Latencies, Rate, Usage


@pytest.mark.parametrize("count", [1, 7, 9_999])
def test_percentiles_of_a_short_run_are_exact(count: int) -> None:
    values = np.random.default_rng(count).lognormal(2, 1, count)
    latencies = Latencies()
    for value in values:
        latencies.add(float(value))
    for percent in (50, 95, 99):
        assert latencies.percentile(percent) == pytest.approx(np.percentile(values, percent))


def test_percentiles_of_a_long_run_are_within_a_percent() -> None:
    values = np.random.default_rng(0).lognormal(2, 1, 60_000)
    values[:3] = 0, 1e-9, 1e9
    latencies = Latencies()
    for value in values:
        latencies.add(float(value))
    for percent in (50, 95, 99):
        assert latencies.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0.01)


def test_usage_keeps_the_most() -> None:
    usage = Usage()
    block = np.ones(40_000_000)  # larger than the memory that earlier tests freed and the allocator kept
    usage.sample(10)
    del block
    usage.sample(1000)
    said = usage.summary()
    assert said["max"] is not None
    assert said["end"] is not None
    assert said["start"] is not None
    assert said["max"] >= said["start"] + 50
    assert said["end"] < said["max"] - 50
    assert said["warm"] == said["end"]


def test_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tttstream.evaluation.measures.time.perf_counter", lambda: now[0])
    rate = Rate()
    for _ in range(100):
        now[0] += 0.02
        rate.tick()
    assert rate.overall == pytest.approx(50)
    assert rate.late == pytest.approx(50)
    assert rate.seconds == pytest.approx(2)
