"""`tttstream watch` with poses: in frames.jsonl, after a restart, and in one clear line if they are missing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Env, register, registry
from gymnasium.spaces import Box, Discrete
from PIL import Image

from tests.cli.watching import lines
from tttstream.cli.main import main
from tttstream.models.map import MapConfig, MapModel


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (tmp_path / "poses.csv").write_text("x,yaw_deg\n" + "\n".join(f"{i / 3!r},{90 * i}" for i in range(12)))
    return folder


def watch(*words: object) -> int:
    return main(["watch", *map(str, words), "--size", "32", "--no-overlay"])


def test_poses_of_a_folder(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = tmp_path / "poses.csv"
    assert watch(images, "--poses", poses, "--out", tmp_path / "whole") == 0
    said = capsys.readouterr().err
    assert "poses: poses.csv: csv, 12 rows one a frame: x, yaw_deg (in deg, as cosine and sine) (images has 12" in said
    whole = lines(tmp_path / "whole")
    turns = [[1, 0], [0, 1], [-1, 0], [0, -1]]
    assert [row["pose"] for row in whole] == [[i / 3, *turns[i % 4]] for i in range(12)]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["poses"]["numbers"] == ["x", "cos yaw_deg", "sin yaw_deg"]
    assert summary["poses"]["missing"] == 0
    state = tmp_path / "state"
    assert watch(images, "--poses", poses, "--max-frames", 5, "--save-state", state, "--out", tmp_path / "a") == 0
    assert watch(images, "--poses", poses, "--load-state", state, "--out", tmp_path / "b") == 0
    assert lines(tmp_path / "a") + lines(tmp_path / "b") == whole


def test_too_few(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poses = tmp_path / "few.csv"
    poses.write_text("x\n1\n2\nlost\n4\n")
    assert watch(images, "--poses", poses, "--out", tmp_path / "out", "--on-error", "raise") == 2
    assert "few.csv line 4: x is 'lost'" in capsys.readouterr().err
    poses.write_text("x\n1\n2\n3\n4\n")
    assert watch(images, "--poses", poses, "--out", tmp_path / "out", "--on-error", "raise") == 2
    assert "frame 4: few.csv has no row 4 (after line 5, its last one)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert watch(images, "--poses", poses, "--out", tmp_path / "out") == 0
    assert "8 frames skipped without a pose, the first: frame 4: few.csv has no row 4" in capsys.readouterr().err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["frames"], summary["skipped"], summary["poses"]["missing"]) == (4, 8, 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pose", "x"], "--poses FILE"),
        (["--poses", "absent.csv"], "there is no file of poses absent.csv"),
        (["--policy", "a:b"], "is none"),
    ],
)
def test_in_one_line(
    images: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(images, *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not os.path.exists(tmp_path / "out")


def test_one_file_is_of_one_source(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(images, images, "--poses", "poses.csv") == 2
    assert "--poses belongs to one source" in capsys.readouterr().err


def test_an_environment(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    words = ["gym:MiniGrid-Empty-6x6-v0", "--pose", "minigrid", "--max-frames", 6, "--out", tmp_path]
    assert watch(*words) == 0
    assert [len(row["pose"]) for row in lines(tmp_path)] == [4] * 6


def test_an_endless_source_without_a_frame_that_can_be_used_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    MapModel(MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)).save(tmp_path / "map")
    keys = "obs[0],obs[1],unwrapped.steps"  # the steps as log zoom
    register("Far-v0", entry_point=Far)
    words = ("gym:Far-v0", "--pose", keys, "--model", tmp_path / "map", "--max-frames", 5, "--out", tmp_path / "out")
    try:
        assert watch(*words) == 2
    finally:
        del registry["Far-v0"]
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no readable frame: frame 0: a view is" in said
    assert not (tmp_path / "out").exists()


class Far(Env[Any, Any]):
    """An environment whose third number is no zoom."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space, steps = Box(-1, 1, (2,)), Discrete(2), 90
    render_mode = "rgb_array"

    def __init__(self, render_mode: str | None = None) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


def test_the_side_of_a_view(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Poses in centimetres with a view of 100 equal poses in views; other models have no views."""
    torch.manual_seed(0)
    MapModel(MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)).save(tmp_path / "map")
    losses = []
    for factor, more in ((1, ()), (100, ("--view", 100))):
        table = "x,y\n" + "\n".join(f"{factor * i / 8!r},{factor * 0.5!r}" for i in range(12))
        (tmp_path / "poses.csv").write_text(table)
        out, state = tmp_path / f"by {factor}", tmp_path / f"{factor}.safetensors"
        words = ("--model", tmp_path / "map", "--poses", tmp_path / "poses.csv", "--out", out, "--save-state", state)
        assert watch(images, *words, *more) == 0
        losses.append([row["surprise"] for row in lines(out)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    capsys.readouterr()
    assert watch(images, "--model", tmp_path / "map", "--view", 2, "--load-state", state) == 2
    assert "sets --view: leave it out" in capsys.readouterr().err
    assert watch(images, "--model", "base", "--view", 2) == 2
    assert "--view needs a map" in capsys.readouterr().err
