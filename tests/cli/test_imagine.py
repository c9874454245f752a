"""`tttstream imagine`: pictures of the world and of poses of a saved map, or an error in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tttstream import MapStream
from tttstream.cli.main import main
from tttstream.models import load_as
from tttstream.models.map import MapConfig, MapModel


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    folder = tmp_path / "map"
    MapModel(MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)).save(folder)
    return str(folder)


@pytest.fixture
def state(model: str, tmp_path: Path) -> Path:
    path = tmp_path / "state.safetensors"
    words = ["watch", "places", "--model", model, "--max-frames", "20", "--out", str(tmp_path / "watched")]
    assert main([*words, "--no-overlay", "--save-state", str(path)]) == 0
    return path


def test_the_world(model: str, state: Path, tmp_path: Path) -> None:
    assert main(["imagine", str(state), "--model", model, "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "world.png") as image:
        assert min(image.size) >= 28
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["world.png"]


def test_poses(model: str, state: Path, tmp_path: Path) -> None:
    poses = tmp_path / "poses.csv"
    poses.write_text("x,y\n1.5,1.5\n2,1\n0.5,0.25\n")
    out = tmp_path / "out"
    assert main(["imagine", str(state), "--model", model, "--poses", str(poses), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "00002.png", "familiar.csv"]
    with Image.open(out / "00001.png") as image:
        assert image.size == (32, 32)
    table = np.genfromtxt(out / "familiar.csv", delimiter=",", names=True)
    assert table["pose"].tolist() == [0, 1, 2]
    assert ((table["familiar"] > 0) & (table["familiar"] < 1)).all()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("x,y,log_zoom,roll_rad\n1.5,1.25,0,0.5\n", None),
        ("frame,x,y,roll\n1,1.5,1.25,0.5\n", "x,y,roll:rad"),
        ("t,y,x,yaw_deg,speed\n9,1.25,1.5,28.64788975654116,3\n", "x,y,yaw_deg"),
    ],
)
def test_angles_and_chosen_columns(text: str, keys: str | None, model: str, state: Path, tmp_path: Path) -> None:
    poses, out = tmp_path / "poses.csv", tmp_path / "out"
    poses.write_text(text)
    words = ["imagine", str(state), "--model", model, "--poses", str(poses), "--out", str(out)]
    assert main(words if keys is None else [*words, "--pose", keys]) == 0
    stream = MapStream(load_as(MapModel, model))
    stream.load(state)
    with Image.open(out / "00000.png") as image:
        np.testing.assert_array_equal(np.asarray(image), stream.imagine((1.5, 1.25, 0, 0.5)).picture)


@pytest.mark.parametrize("case", ["no state", "another model", "bad pose", "no plane", "no file", "out is a file"])
def test_mistakes(case: str, model: str, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, words = tmp_path / "out", [str(state), "--model", model]
    if case == "no state":
        words[0] = str(tmp_path / "nothing")
    if case == "another model":
        torch.manual_seed(1)
        MapModel(MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)).save(tmp_path / "other")
        words[2] = str(tmp_path / "other")
    if case == "bad pose":
        (tmp_path / "poses.csv").write_text("x\n1.5\n")
        words += ["--poses", str(tmp_path / "poses.csv")]
    if case == "no plane":
        (tmp_path / "poses.csv").write_text("0 1 2 3 0 0 0 1\n")
        words += ["--poses", str(tmp_path / "poses.csv")]
    if case == "no file":
        words += ["--pose", "x,y"]
    if case == "out is a file":
        out.write_text("")
    capsys.readouterr()
    assert main(["imagine", *words, "--out", str(out)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("tttstream: error: ")
    assert case == "out is a file" or not out.exists()
