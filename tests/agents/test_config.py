"""The config of a run: values from YAML and JSON, and mistakes, which are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tttstream_agents import config as configs
from tttstream_agents.errors import TrainingError


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lrr": 1}, r"unknown option lrr \(did you mean lr\?\); known are env,"),
        ({"lr": "fast"}, "lr must be a number, got 'fast'"),
        ({"dim": 1.5}, "dim must be a whole number, got 1.5"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"segment": 60}, "segment must divide rollout"),
        ({"autoreset": "never"}, "autoreset must be"),
        ({"seed": -1}, "cannot be negative"),
        ({"lr": 0}, "lr must lie between 1e-12 and inf, got 0.0"),
        ({"gamma": 1.5}, "gamma must lie between 0 and 1"),
        ({"clip": float("nan")}, "clip must lie between"),
        ({1: 2, "lrr": 1}, "unknown option 1, lrr "),
    ],
)
def test_mistakes_in_a_config_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        configs.build(values, "test")


def test_numbers_of_yaml_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 1e-3\nstop_return: 1\noptions: {mini_batch: 4}\n")
    config = configs.build(configs.read(str(tmp_path / "a.yaml")), "a")
    assert (config.lr, config.stop_return, config.options) == (1e-3, 1.0, {"mini_batch": 4})
    assert configs.build(json.loads(config.to_json()), "json") == config
