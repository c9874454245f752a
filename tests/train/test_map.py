"""Training of maps: questions are about the past, ages are true, a run resumes, and the memory is what recalls."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.cli.main import main
from tttstream.errors import ConfigError
from tttstream.models import load
from tttstream.models.map import MapConfig
from tttstream.poses import Angle, Form, Number
from tttstream.train.data import Batch
from tttstream.train.data.clips import Clip
from tttstream.train.data.indices import PlacesWorlds
from tttstream.train.data.video import PyAV
from tttstream.train.map import WHOLE, Map, Past, begun, cell_keys, flips, renumbered

SMALL = {"size": 32, "patch": 8, "codes": 6, "marks": 4, "where": 12, "what": 8, "heads": 2}


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


def task(past: int = 200) -> Map:
    torch.manual_seed(0)
    return Map(MapConfig(**SMALL), tokens=16, past=past)


def sights(job: Map, *batches: Batch) -> list[dict[tuple[float, ...], list[tuple[int, Tensor]]]]:
    """For every row: cells that were seen whole, each with its frames and codes, by time."""
    found: list[dict[tuple[float, ...], list[tuple[int, Tensor]]]] = [{} for _ in range(2)]
    first = 0
    for one in batches:
        cells = job.model.cells(one.frames, one.pose, count=16)
        for row, t, i in (cells.shown >= WHOLE).nonzero().tolist():
            place = tuple(cells.points[row, t, i].tolist())
            found[row].setdefault(place, []).append((first + t, cells.codes[row, t, i]))
        first += one.frames.shape[1]
    return found


def test_questions_are_about_cells_out_of_sight_and_ages_are_true() -> None:
    job = task()
    first, second = batch(first=0), batch(first=6)
    job._questions(first, "val")
    _, asked = job._questions(second, "val")
    known = sights(job, first, second)
    assert (asked.age > 0).float().mean() > 0.6
    for row in range(2):
        for t in range(6):
            for i in range(16):
                seen = known[row][tuple(asked.points[row, t, i].tolist())]
                assert all(frame != 6 + t for frame, _ in seen)  # it is not in view
                before = [sight for sight in seen if sight[0] < 6 + t]
                frame, codes = before[-1] if before else seen[0]
                assert int(asked.age[row, t, i]) == (6 + t - frame if before else 0)
                torch.testing.assert_close(asked.codes[row, t, i], codes)
    every = [set(map(tuple, asked.points[row].flatten(0, 1).tolist())) for row in range(2)]
    assert all(len(points) > len(seen) / 2 for points, seen in zip(every, known, strict=True))  # all get their turn


def test_no_more_cells_are_kept_than_asked_for_the_latest_first() -> None:
    job, first = task(past=20), batch(first=0)
    job._questions(first, "val")
    kept = Past(*job._carried["val"])
    assert kept.key.shape == (2, 20)
    known = sights(job, first)
    for row in range(2):
        latest = sorted((seen[-1][0] for seen in known[row].values()), reverse=True)[:20]
        assert kept.frame[row].tolist() == latest
        assert len(set(kept.key[row].tolist())) == 20


def test_nothing_is_asked_across_a_reset() -> None:
    job = task()
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 3] = True
    job._questions(batch(first=0), "val")
    second = batch(first=6, reset=reset)
    _, asked = job._questions(second, "val")
    for row, seen in enumerate(sights(job, second)):
        own = {place for place, found in seen.items() if found[-1][0] >= 3}
        for point, counts in zip(asked.points[row, 3:].flatten(0, 1), asked.counts[row, 3:].flatten(), strict=True):
            assert not counts or tuple(point.tolist()) in own
    assert (asked.age[:, 3] == 0).all()


def test_frames_that_do_not_count_are_not_remembered() -> None:
    job, one = task(), batch(first=0)
    one.valid[1, 2:] = False
    job._questions(one, "val")
    kept = Past(*job._carried["val"])
    assert kept.frame[1][kept.key[1] >= 0].max() == 1


def test_every_clip_has_signs_of_its_own() -> None:
    clips = torch.tensor([[4, 4, 5], [6, 6, 6]])
    signs = flips(clips, 48)
    assert (signs.abs() == 1).all()
    assert torch.equal(signs[0, 0], signs[0, 1])
    assert torch.equal(signs, flips(clips, 48))
    assert all((a != b).sum() > 10 for a, b in ((signs[0, 0], signs[0, 2]), (signs[0, 2], signs[1, 0])))


def test_every_clip_has_worlds_of_its_own() -> None:
    clips = torch.tensor([[4, 4, 5], [6, 6, 6]])
    added = renumbered(clips)
    assert torch.equal(added, renumbered(clips))
    assert added[0, 0] == added[0, 1]
    assert len({int(added[0, 0]), int(added[0, 2]), int(added[1, 0])}) == 3
    assert ((added >= 0) & (added < 2**20)).all()


def test_an_angle_in_the_data_is_the_roll() -> None:
    """Batches have the cosine and the sine of an angle; the others are x, y, log zoom and world."""
    form = Form([Number("x"), Number("y"), Angle("yaw", "rad")])
    clip = PlacesWorlds(1).clips()[0]
    turned = type("Turned", (type(clip),), {"form": form})(**vars(clip))
    job, turns = task(), torch.linspace(-3, 3, 6, dtype=torch.float64)
    given = batch(rows=1)
    assert given.pose is not None
    pose = torch.cat([given.pose[..., :2], turns.cos()[None, :, None], turns.sin()[None, :, None]], -1)
    job._trainer = SimpleNamespace(datamodule=SimpleNamespace(clips=lambda part: [turned]))  # type: ignore[assignment]
    job.setup("fit")
    found = job.poses(given._replace(pose=pose))
    assert torch.equal(found[..., :2], given.pose[..., :2])
    torch.testing.assert_close(found[..., 2:], F.pad(turns[None, :, None], (1, 1)))
    numbers = Form([Number("x"), Number("y"), Angle("yaw", "rad"), Angle("pitch", "rad")])
    job._trainer.datamodule.clips = lambda part: [type("Tilted", (type(clip),), {"form": numbers})(**vars(clip))]
    with pytest.raises(ConfigError, match="a map lies in a plane"):
        job.setup("fit")


def test_poses_of_two_numbers_have_worlds_of_their_clips() -> None:
    job, given = task(), batch(rows=1)
    assert given.pose is not None
    cells, _ = job._questions(given._replace(pose=given.pose[..., :2]), "train")
    assert set(cells.points[..., 2].unique().tolist()) == {float(renumbered(given.clip)[0, 0])}


def test_cells_have_numbers_of_their_own() -> None:
    points = torch.tensor([[0.1, 0.1, 0], [0.3, 0.1, 0], [0.1, 0.3, 0], [-0.1, 0.1, 0], [0.1, 0.1, 1], [0.2, 0.2, 0]])
    keys = cell_keys(points.double(), 4).tolist()
    assert len(set(keys[:5])) == 5
    assert keys[5] == keys[0]
    assert min(keys) >= 0


def test_data_without_poses_and_odd_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use data/places"):
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


def test_a_resumed_run_asks_and_learns_what_an_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated: list[int] = []
    monkeypatch.setattr("tttstream.train.map.calibrate", lambda model, frames: calibrated.append(frames))
    words = ["fit", "--config=trainer/fast", "--config=model/map", "--config=data/places", "--config=task/map"]
    words += [f"--task.init_args.network.{name}={value}" for name, value in SMALL.items()]
    words += ["--model.size=32", "--data.init_args.length=6", "--data.init_args.batch_size=2"]
    words += ["--data.init_args.workers=0", "--data.val.frames=12", "--trainer.val_check_interval=2"]
    words += ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--task.init_args.past=8"]
    words += ["--trainer.enable_model_summary=false", "--task.init_args.warmup=0"]
    words += ["--data.init_args.steps=2"]

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
    assert calibrated == [1000] * sum(
        (run / name).is_dir() for run in (whole, part, rest) for name in ("model", "best")
    )

    out = tmp_path / "watched"
    watch = ["watch", "places", "--model", str(rest / "model"), "--max-frames", "8", "--out", str(out)]
    assert main(watch) == 0
    assert "familiar" in (out / "frames.jsonl").read_text()
    assert (out / "overlay.mp4").stat().st_size > 1000
    assert main(["export", str(rest / "checkpoints" / "last.ckpt"), str(tmp_path / "map")]) == 0
    assert load(str(tmp_path / "map")).fingerprint() == load(str(rest / "model")).fingerprint()
