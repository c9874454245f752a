"""Training of maps: questions are about the past, ages are true, a run resumes, and the memory is what recalls."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tttstream.cli.main import main
from tttstream.errors import ConfigError, ShapeError
from tttstream.models.map import MapConfig, load
from tttstream.train.data import Batch
from tttstream.train.data.clips import Clip
from tttstream.train.data.indices import PlacesWorlds
from tttstream.train.data.video import PyAV
from tttstream.train.map import Map, begun, in_view

SMALL = {"size": 32, "patch": 8, "codes": 6, "features": 16, "where": 12, "what": 8, "heads": 2}


def batch(rows: int = 2, length: int = 6, first: int = 0, reset: Tensor | None = None) -> Batch:
    """A segment of walks at random poses."""
    draw = torch.Generator().manual_seed(100 + first)
    pose = torch.zeros(rows, length, 5, dtype=torch.float64)
    pose[..., :2] = torch.rand(rows, length, 2, generator=draw, dtype=torch.float64) * 2
    frames = torch.randint(0, 256, (rows, length, 3, 32, 32), generator=draw, dtype=torch.uint8)
    start = torch.zeros(rows, length, dtype=torch.bool) if reset is None else reset
    if first == 0 and reset is None:
        start[:, 0] = True
    number = torch.arange(first, first + length).expand(rows, -1)
    valid = torch.ones(rows, length, dtype=torch.bool)
    return Batch(frames, start, number, number, torch.zeros_like(number), -torch.ones_like(number), valid, None, pose)


def task() -> Map:
    torch.manual_seed(0)
    return Map(MapConfig(**SMALL), past=8)


def test_questions_are_about_frames_of_the_row_and_ages_are_true() -> None:
    job = task()
    first, second = batch(first=0), batch(first=6)
    job._questions(first, "train")
    asked = job._questions(second, "train")
    poses = torch.cat([first.pose, second.pose], 1)[:, -14:]  # the last 8 frames before, and this segment
    frames = torch.cat([first.frames, second.frames], 1)
    points, codes = job.model.points(poses), job.model.codes.encode(job.model.pixels(frames))
    assert (asked.age > 0).float().mean() > 0.5
    for row in range(2):
        for t in range(6):
            now = 6 + t
            for i in range(16):
                place = (points[row].flatten(0, 1) == asked.points[row, t, i]).all(-1).nonzero()
                assert len(place) == 1  # it is a point of one of the row's own frames
                frame, patch = divmod(int(place), 16)
                torch.testing.assert_close(asked.codes[row, t, i], codes[row, frame, patch])
                seen = in_view(asked.points[row : row + 1, t : t + 1, i : i + 1], poses[row : row + 1, :now], 4)
                ages = [now - frame for frame in range(now) if seen[0, 0, 0, frame]]
                assert int(asked.age[row, t, i]) == min(ages, default=0)


def test_nothing_is_asked_across_a_reset() -> None:
    job = task()
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 3] = True
    job._questions(batch(first=0), "train")
    second = batch(first=6, reset=reset)
    asked = job._questions(second, "train")
    assert second.pose is not None
    points = job.model.points(second.pose)
    for t in range(3, 6):
        own = points[:, 3:].flatten(1, 2)
        for row in range(2):
            for i in range(16):
                assert (own[row] == asked.points[row, t, i]).all(-1).any()
    assert (asked.age[:, 3] == 0).all()


def test_in_view() -> None:
    pose = torch.tensor([[[1.0, 1.0, 0.0, 0.0, 0.0]]]).double()
    points = torch.tensor([[1.0, 1.0], [1.37, 1.0], [1.37, 0.63], [1.5, 1.0], [0.4, 1.0]]).double()
    points = torch.cat([points, torch.zeros(5, 3).double()], 1)[None, None]
    assert in_view(points, pose, 4)[0, 0, :, 0].tolist() == [True, True, True, False, False]
    other = points + torch.tensor([0, 0, 0, 0, 1]).double()
    assert not in_view(other, pose, 4).any()
    turned = torch.tensor([[[1.0, 1.0, 0.0, 0.785, 0.0]]]).double()
    assert in_view(points, turned, 4)[0, 0, :, 0].tolist() == [True, True, False, True, True]


def test_data_without_poses_and_odd_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="take data/places"):
        task()(batch()._replace(pose=None), "train")
    with pytest.raises(ConfigError, match="future from 0 to below 1"):
        Map(MapConfig(**SMALL), future=1.0)
    job = task()
    job.model.save(tmp_path / "map")
    assert begun(MapConfig(**SMALL), str(tmp_path / "map")).fingerprint() == job.model.fingerprint()
    with pytest.raises(ConfigError, match="the configuration says"):
        begun(MapConfig(), str(tmp_path / "map"))


def test_worlds_for_training_and_for_tests_show_other_photographs() -> None:
    clips: list[list[Clip]] = [PlacesWorlds(count=2, size=32, held_out=held).clips() for held in (False, True)]
    shots = [part[0].open(PyAV()).read(torch.arange(3).numpy()) for part in clips]
    assert shots[0].poses is not None
    assert shots[0].poses.shape == (3, 5)
    assert (shots[0].frames != shots[1].frames).any()


def losses(run: Path) -> list[float]:
    """The training losses of a run, step by step."""
    with (run / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def test_a_resumed_run_asks_and_learns_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    words = ["fit", "--config=trainer/fast", "--config=model/map", "--config=data/places", "--config=task/map"]
    words += [f"--task.init_args.network.{name}={value}" for name, value in SMALL.items()]
    words += ["--model.size=32", "--data.init_args.length=6", "--data.init_args.batch_size=2"]
    words += ["--data.init_args.workers=0", "--data.val.frames=12", "--trainer.val_check_interval=2"]
    words += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--task.init_args.past=8"]
    words += ["--trainer.enable_model_summary=false", "--task.init_args.warmup=0", "--data.init_args.steps=2"]

    def fit(folder: Path, *more: str) -> Path:
        assert main([*words, f"--trainer.default_root_dir={folder}", *more]) == 0
        return folder / "train" / "version_0"

    # The rates of a run depend on how long it is to be; without any, a loss tells what was asked and what was learned.
    whole = fit(tmp_path / "whole", "--trainer.max_steps=4", "--task.init_args.lr=0")
    part = fit(tmp_path / "part", "--trainer.max_steps=2", "--task.init_args.lr=0")
    saved = torch.load(part / "checkpoints" / "last.ckpt", weights_only=True)
    assert [item.shape[2] for item in saved["tttstream"]["past"]] == [8, 8, 8, 8]
    rest = fit(
        tmp_path / "rest", "--trainer.max_steps=4", "--task.init_args.lr=0",
        f"--ckpt_path={part / 'checkpoints' / 'last.ckpt'}",
    )  # fmt: skip
    assert losses(rest) == losses(whole)[2:]

    out = tmp_path / "watched"
    watch = ["watch", "places", "--model", str(rest / "model"), "--max-frames", "8", "--out", str(out)]
    assert main(watch) == 0
    assert "familiar" in (out / "frames.jsonl").read_text()
    assert (out / "overlay.mp4").stat().st_size > 1000
    assert main(["export", str(rest / "checkpoints" / "last.ckpt"), str(tmp_path / "map")]) == 0
    assert load(str(tmp_path / "map")).fingerprint() == load(str(rest / "model")).fingerprint()
