"""Segments cut in time over processes: gradients, lanes and losses are those of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.train.conftest import MovingData
from tests.train.forked import ranks
from tttstream.errors import ConfigError
from tttstream.models.frame import ModelConfig
from tttstream.state import pack
from tttstream.train.classification import Classification, Encoder
from tttstream.train.data import Batch, VideoData
from tttstream.train.data.lanes import Piece, Visit, within
from tttstream.train.in_time import InTime
from tttstream.train.novelty import Novelty
from tttstream.train.place import Place
from tttstream.train.prediction import Prediction

TASKS: dict[str, Any] = {"ttt_linear": Prediction, "gated_delta": Prediction, "classes": Classification}


class Notes(Callback):
    """Losses, gradients and measurements of a run. stop: the step after which it ends."""

    def __init__(self, stop: int | None) -> None:
        self.losses: list[float] = []
        self.gradients: list[list[list[float]]] = []
        self.validated: list[dict[str, float]] = []
        self.stop = stop

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        self.gradients.append([[] if p.grad is None else p.grad.flatten().tolist() for p in module.parameters()])

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        trainer.should_stop = len(self.losses) == self.stop

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        metrics = trainer.callback_metrics.items()
        self.validated.append({name: float(value) for name, value in metrics if "val/" in name})


def train(folder: Path, processes: int, parts: int) -> dict[str, Any]:
    """Train every task in one of several processes, `parts` of which share a set of lanes."""
    rows = 4 // (processes // parts)

    def run(name: str, stop: int | None = None, resume: Path | None = None) -> tuple[Trainer, Any, Notes]:
        torch.manual_seed(0)
        memory = "ttt_linear" if name == "classes" else name
        config = ModelConfig(size=16, patch=8, dim=16, depth=2, heads=2, memory=memory)
        task = TASKS[name](config, **{"classes": 3} if name == "classes" else {}, lr=1e-3, warmup=0)
        if name != "classes":
            torch.nn.init.normal_(task.model.next_frame.change.weight, std=0.02)
        notes = Notes(stop)
        trainer = Trainer(
            accelerator="cpu", devices=processes, max_steps=3, max_epochs=-1, logger=False, precision="64-true",
            strategy=InTime(parts, pieces=2) if processes > 1 else "auto", accumulate_grad_batches=2,
            callbacks=[notes], enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            limit_val_batches=2, val_check_interval=4, num_sanity_val_steps=0, default_root_dir=folder,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(task, datamodule=MovingData(20, rows, 7, 3), ckpt_path=resume)
        return trainer, task, notes

    found: dict[str, Any] = {}
    for name in TASKS:
        trainer, task, notes = run(name)
        found[name] = {
            "losses": notes.losses, "gradients": notes.gradients, "validated": notes.validated,
            "state": pack(task._states["train"]).tolist(),
        }  # fmt: skip
        if name == "classes":
            trainer.predict(task, datamodule=MovingData(20, rows, 7, 3), return_predictions=False)
            found["clips"] = task.clip_rows()
    if processes > 1:
        trainer, _, _ = run("ttt_linear", 2)
        trainer.save_checkpoint(folder / "two.ckpt")
        found["resumed"] = run("ttt_linear", None, folder / "two.ckpt")[2].losses
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ranks(partial(train, tmp_path_factory.mktemp("one"), 1, 1), 1)[0]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two sets of lanes, each over two ranks in time."""
    return ranks(partial(train, tmp_path_factory.mktemp("mesh"), 4, 2), 4)


def same(left: Any, right: Any, tolerance: float) -> None:
    a, b = torch.tensor(left, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)
    largest = float(b.abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1e-3, largest))


@pytest.mark.parametrize("name", ["ttt_linear", "gated_delta", "classes"])
def test_rows_and_time(one: dict[str, Any], mesh: list[dict[str, Any]], name: str) -> None:
    """Processes 0 and 1 share the first two lanes in time, 2 and 3 the others; seven frames are three and four.

    Every second gradient is that of an optimiser step, which all processes share; pixels are float32.
    """
    true = one[name]
    assert len(true["gradients"]) == 6
    for number, rank in enumerate(mesh):
        got = rank[name]
        for left, right in zip(got["gradients"][1::2], true["gradients"][1::2], strict=True):
            for a, b in zip(left, right, strict=True):
                same(a, b, 1e-10)
        same(got["losses"], true["losses"], 1e-6)
        rows = number // 2
        same(got["state"], true["state"][2 * rows : 2 * rows + 2], 1e-10)


@pytest.mark.parametrize("name", ["ttt_linear", "classes"])
def test_a_validation_measures_every_frame_once(one: dict[str, Any], mesh: list[dict[str, Any]], name: str) -> None:
    true = one[name]["validated"]
    assert true
    for rank in mesh:
        for got, expected in zip(rank[name]["validated"], true, strict=True):
            assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_clip_is_judged_by_all_its_frames(one: dict[str, Any], mesh: list[dict[str, Any]]) -> None:
    """The last rank of each set writes the rows of its clips, which are those of one process."""
    assert [row["frames"] for row in one["clips"]] == [21] * 4
    assert mesh[1]["clips"] + mesh[3]["clips"] == one["clips"]
    assert mesh[0]["clips"] == mesh[2]["clips"] == []


def test_a_resumed_run_continues(mesh: list[dict[str, Any]]) -> None:
    """Not bit for bit: Lightning reads weights of float64 into float32 before it converts them."""
    for rank in mesh:
        assert rank["resumed"] == pytest.approx(rank["ttt_linear"]["losses"][2:], rel=1e-6)


def test_a_part_of_a_batch() -> None:
    frames = torch.arange(5, dtype=torch.uint8).view(1, 5, 1, 1, 1).expand(1, 5, 3, 2, 2)
    counts = torch.arange(5)[None]
    whole = Batch(frames, counts == 3, counts, counts, counts, counts, counts >= 0)
    first, last = whole.part(0, 3), whole.part(3, 5)
    assert first.frame.tolist() == [[0, 1, 2]]
    assert last.frame.tolist() == [[3, 4]]
    assert first.after is not None
    assert first.follows is not None
    assert first.after[0, 0, 0, 0, 0] == 3
    assert not first.follows  # the frame after it begins another video
    assert last.after is last.follows is None


def test_pieces_within_a_part() -> None:
    a, b = Visit(0, 0, 0), Visit(1, 1, 1)
    pieces = [Piece(a, 10, 14), Piece(b, 0, 3)]
    assert within(pieces, 0, 7) == pieces
    assert within(pieces, 2, 5) == [Piece(a, 12, 14), Piece(b, 0, 1)]
    assert within(pieces, 4, 7) == [Piece(b, 0, 3)]
    assert within(pieces, 7, 9) == []


def test_places() -> None:
    assert [Place(0, 1, part, 3).frames(7) for part in range(3)] == [(0, 2), (2, 4), (4, 7)]
    assert Place().frames(5) == (0, 5)


def test_reading_parts_is_reading_the_whole(tmp_path: Path) -> None:
    """The frames that the data of two ranks read are those of one process, and the one after each part is there."""
    from tttstream.train.data import Walks

    def batches(part: int, parts: int) -> list[Batch]:
        data = VideoData(Walks(count=3, seed=1), size=16, length=5, batch_size=2, workers=0, steps=2)
        data.trainer = type("Run", (), {"strategy": type("S", (), {"place": Place(0, 1, part, parts)})()})()
        return list(data.loader("train"))

    for whole, first, last in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert torch.equal(torch.cat([first.frames, last.frames], 1), whole.frames)
        assert torch.equal(torch.cat([first.reset, last.reset], 1), whole.reset)
        assert torch.equal(first.after, whole.frames[:, 2:3])
        assert torch.equal(first.follows, ~whole.reset[:, 2:3])
        assert last.after is None


def test_mistakes(trainer: Any, moving: Any, tiny: Any) -> None:
    with pytest.raises(ConfigError, match="ranks and pieces of at least 1"):
        InTime(0)
    with pytest.raises(ConfigError, match="horizon 3"):
        Prediction(tiny(), horizon=3).go_along(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the task Novelty cannot be cut in time; Prediction, Classification can"):
        Novelty(tiny()).go_along(None)  # type: ignore[arg-type]
    classes = Classification(tiny(size=32), 2, encoder=Encoder("resnet18", frozen=False))
    with pytest.raises(ConfigError, match="a trained encoder"):
        classes.go_along(None)  # type: ignore[arg-type]
    strategy = InTime(3)
    strategy.cluster_environment = type("Two", (), {"world_size": lambda _: 2, "global_rank": lambda _: 0})()
    with pytest.raises(ConfigError, match="2 processes are no multiple of 3"):
        _ = strategy.place


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`tttstream fit` of a tiny model on camera walks, in time over two processes."""
    pieces = ("trainer/fast", "trainer/time", "model/tiny", "data/walk", "task/prediction")
    given = [
        *(sys.executable, "-m", "tttstream", "fit", *(f"--config={name}" for name in pieces)),
        *("--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"),
        *("--trainer.max_time=null", "--model.dim=16", "--data.init_args.batch_size=2", "--data.init_args.length=4"),
        *("--data.init_args.workers=0", "--trainer.enable_progress_bar=false", *words),
    ]
    return subprocess.Popen(given, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.soak
def test_the_command(tmp_path: Path) -> None:
    run = started(tmp_path, "--trainer.max_steps=2")
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 0, said[-3000:]
    left = {path.name for path in (tmp_path / "out" / "train" / "version_0").iterdir()}
    assert {"checkpoints", "config.yaml", "metrics.csv", "model", "best"} <= left


def test_a_rank_that_is_killed(tmp_path: Path) -> None:
    """The run soon ends with an error; no rank waits for the one that has ended."""
    run = started(tmp_path, "--trainer.max_steps=1000000")
    log, limit = tmp_path / "out" / "train" / "version_0" / "metrics.csv", time.monotonic() + 150
    while not log.exists() and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.2)
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
    (other,) = [int(pid) for pid in listed.stdout.split() if Path(f"/proc/{pid}").exists()][:1]
    os.kill(other, signal.SIGKILL)
    begun = time.monotonic()
    said, _ = run.communicate(timeout=100)
    assert run.returncode not in (0, None), said[-3000:]
    assert time.monotonic() - begun < 60


@pytest.mark.soak
def test_a_task_that_cannot(tmp_path: Path) -> None:
    run = started(tmp_path, "--trainer.max_steps=2", "--task.init_args.horizon=2")
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 2, said[-3000:]
    assert "time: expected a horizon of 1" in said
    assert "Traceback" not in said
