"""The queue that demos/memories.py and demos/revisit.py share: its order, and its continuation after a stop."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def runs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("runs", Path(__file__).parent.parent / "demos" / "runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(name: str, rate: float, seed: int) -> dict[str, Any]:
    """A run with its lowest loss at another rate for each memory."""
    return {"memory": name, "rate": rate, "seed": seed, "losses": [1.0, abs(rate - {"gru": 1.0, "delta": 3.0}[name])]}


def test_other_seeds_run_at_the_best_rate_of_each_memory(runs: ModuleType, tmp_path: Path) -> None:
    missing = partial(runs.following, names=["gru", "delta"], rates=[1.0, 3.0], seeds=2)
    records = runs.go_on(tmp_path / "runs.json", 1.0, missing, measured)
    assert [(r["memory"], r["rate"], r["seed"]) for r in records] == [
        ("gru", 1.0, 0), ("delta", 1.0, 0), ("gru", 3.0, 0), ("delta", 3.0, 0), ("gru", 1.0, 1), ("delta", 3.0, 1),
    ]  # fmt: skip


def test_a_stopped_queue_continues(runs: ModuleType, tmp_path: Path) -> None:
    path, done = tmp_path / "runs.json", []
    missing = partial(runs.following, names=["gru", "delta"], rates=[1.0], seeds=1)

    def stopped(name: str, rate: float, seed: int) -> dict[str, Any]:
        if done:
            raise KeyboardInterrupt
        done.append(name)
        return measured(name, rate, seed)

    with pytest.raises(KeyboardInterrupt):
        runs.go_on(path, 1.0, missing, stopped)
    assert [r["memory"] for r in json.loads(path.read_text())] == ["gru"]
    assert [r["memory"] for r in runs.go_on(path, 1.0, missing, measured)] == ["gru", "delta"]
    assert runs.go_on(path, 1.0, missing, stopped) == runs.records_of(path)  # nothing is missing


def test_no_run_begins_after_the_time_limit(runs: ModuleType, tmp_path: Path) -> None:
    missing = partial(runs.following, names=["gru"], rates=[1.0], seeds=1)
    assert runs.go_on(tmp_path / "runs.json", 0.0, missing, measured) == []
    assert not (tmp_path / "runs.json").exists()
