"""Several processes: gradients are those of all lanes together, each process has its own lanes, a resume keeps them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.train.conftest import MovingData
from tests.train.forked import ranks
from tttstream.cli.main import main
from tttstream.models.frame import ModelConfig
from tttstream.state import pack
from tttstream.train.prediction import Prediction


class Losses(Callback):
    """Records the loss of each step, averaged over all ranks, and ends the run after step `stop`."""

    def __init__(self, stop: int | None) -> None:
        self.seen: list[float] = []
        self.stop = stop

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(module.all_gather(outputs["loss"]).mean()))
        trainer.should_stop = len(self.seen) == self.stop


def train(folder: Path, processes: int, strategy: str = "ddp", accelerator: str = "cpu") -> dict[str, Any]:
    """Train in one of several processes, whole and in two parts."""

    def run(stop: int | None = None, resume: Path | None = None) -> tuple[Trainer, Prediction, list[float]]:
        torch.manual_seed(0)
        task = Prediction(ModelConfig(size=16, patch=8, dim=16, depth=1, heads=2), lr=1e-2, warmup=0)
        torch.nn.init.normal_(task.model.next_frame.change.weight, std=0.02)  # type: ignore[union-attr]
        notes = Losses(stop)
        trainer = Trainer(
            accelerator=accelerator, devices=processes, strategy=strategy, max_steps=6, max_epochs=-1, logger=False,
            callbacks=[notes], enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            limit_val_batches=1, val_check_interval=4, num_sanity_val_steps=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(task, datamodule=MovingData(20, rows=4 // processes), ckpt_path=resume)
        return trainer, task, notes.seen

    trainer, task, whole = run()
    state = pack(task._states["train"])
    weights = torch.cat([p.detach().float().cpu().flatten() for p in task.parameters()])
    found = {"losses": whole, "state": state.double().sum(1).tolist(), "weights": weights.tolist()}
    trainer, _, _ = run(3)
    trainer.save_checkpoint(folder / "three.ckpt")
    return {**found, "resumed": run(None, folder / "three.ckpt")[2]}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    return ranks(partial(train, one, 1, "auto"), 1)[0], ranks(partial(train, two, 2), 2)


Found = tuple[dict[str, Any], list[dict[str, Any]]]


def test_two_processes_equal_one_with_all_lanes(found: Found) -> None:
    one, two = found
    for rank in two:
        torch.testing.assert_close(torch.tensor(rank["weights"]), torch.tensor(one["weights"]), rtol=0, atol=2e-4)
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two[0]["weights"] == two[1]["weights"]


def test_each_process_carries_its_own_lanes(found: Found) -> None:
    one, two = found
    assert two[0]["state"] + two[1]["state"] == pytest.approx(one["state"], rel=1e-2, abs=1e-2)
    assert two[0]["state"] != two[1]["state"]


def test_a_resume_gives_every_process_its_lanes_back(found: Found) -> None:
    for rank in found[1]:
        assert rank["resumed"] == rank["losses"][3:]


@pytest.mark.gpu
def test_fully_sharded(tmp_path: Path) -> None:
    one, sharded = (ranks(partial(train, tmp_path, 1, how, "gpu"), 1, "spawn")[0] for how in ("auto", "fsdp"))
    assert sharded["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert sharded["resumed"] == pytest.approx(sharded["losses"][3:], rel=1e-4)


WORDS = [
    *("fit", *(f"--config={name}" for name in ("trainer/fast", "model/tiny", "data/walk", "task/prediction"))),
    *("--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"),
    *("--trainer.max_time=null", "--model.dim=16", "--data.init_args.batch_size=1", "--data.init_args.length=4"),
    *("--data.init_args.workers=0", "--trainer.enable_progress_bar=false"),
]
"""A tiny model on camera walks."""


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start `tttstream fit`. All processes of the run write to one pipe, which closes when the last of them ends."""
    given = [sys.executable, "-m", "tttstream", *WORDS, *words]
    return subprocess.Popen(given, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def movies(folder: Path) -> None:
    """Two videos of noise in a folder for each of two classes."""
    for number in range(4):
        path = folder / "videos" / f"class{number % 2}" / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(8):
                picture = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))


FOLDERS = [f"--data.init_args.{part}=tttstream.train.data.ClassFolders" for part in ("train", "val", "test")]
FOLDERS += [f"--data.init_args.{part}.init_args.root=videos" for part in ("train", "val", "test")]
TASKS = {
    "prediction": ["--config=trainer/ddp"],
    "classification": [
        *("--config=trainer/ddp", "--config=task/classification", "--task.init_args.classes=2"),
        *("--task.init_args.encoder=null", *FOLDERS),
    ],
    "mask": [
        *("--config=trainer/ddp", "--config=task/mask", "--config=data/objects", "--model.size=48"),
        *("--task.init_args.slots=30", "--data.init_args.steps=5", "--data.init_args.workers=0"),
    ],
    "spawn": ["--trainer.strategy=ddp_spawn", "--trainer.devices=2"],
}


AVERAGED = "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging\n"


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.soak if k != "prediction" else []) for k in TASKS])
def test_the_command_with_every_callback(tmp_path: Path, kind: str) -> None:
    """Pictures, both checkpoints, averaged weights and the export: no rank waits for one that has gone on."""
    (tmp_path / "averaged.yaml").write_text(AVERAGED)
    movies(tmp_path)
    averaged = [] if kind == "spawn" else ["--config=averaged.yaml"]
    run = started(tmp_path, *TASKS[kind], *averaged, "--trainer.max_steps=2")
    said, _ = run.communicate(timeout=280)
    assert run.returncode == 0, said[-3000:]
    assert "sync_dist" not in said
    left = {path.name for path in (tmp_path / "out" / "train" / "version_0").iterdir()}
    assert {"checkpoints", "config.yaml", "metrics.csv", "model", "best"} <= left
    assert "pictures" in left or kind == "classification"  # which draws none
    assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == ["version_0"]


def test_objects_that_cannot_be_sent_to_a_spawned_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lightning's averaging of weights contains a function that pickle refuses: one line, and no folder of a run."""
    monkeypatch.chdir(tmp_path)
    Path("averaged.yaml").write_text(AVERAGED)
    assert main([*WORDS, *TASKS["spawn"], "--config=averaged.yaml", "--trainer.max_steps=2"]) == 2
    said = capsys.readouterr().err
    assert "cannot be sent to spawned processes" in said
    assert "Traceback" not in said
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("kind", "number"),
    [(None, signal.SIGINT), ("ddp", signal.SIGTERM), ("ddp_spawn", signal.SIGTERM)],
    ids=["one", "two", "spawned"],
)
def test_a_signal_to_the_process_that_was_started(tmp_path: Path, kind: str | None, number: signal.Signals) -> None:
    """It ends with 128 plus the signal's number, a checkpoint, and no process that still has its output open."""
    several = [f"--trainer.strategy={kind}", "--trainer.devices=2"] if kind else []
    run = started(tmp_path, *several, "--trainer.max_steps=1000000")
    folder = tmp_path / "out" / "train" / "version_0" / "checkpoints"
    limit = time.monotonic() + 180
    while not (folder / "best.ckpt").exists() and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.2)
    run.send_signal(number)
    said, _ = run.communicate(timeout=100)  # until the last process has closed it
    assert run.returncode == 128 + number, said[-3000:]
    assert said.count("tttstream: stopped by") == 1
    assert (folder / "last.ckpt").exists()
    assert not list(folder.glob(".*"))


def test_a_rank_that_fails(tmp_path: Path) -> None:
    """It also ends the other one, which waits in the next step."""
    (tmp_path / "breaks.py").write_text(
        "from lightning.pytorch import Callback\n\n\nclass Break(Callback):\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_rank == 1:\n            raise RuntimeError('rank 1 broke')\n"
    )
    (tmp_path / "break.yaml").write_text("trainer: {callbacks+: [{class_path: breaks.Break}]}\n")
    run = started(tmp_path, "--config=trainer/ddp", "--config=break.yaml")
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 1, said[-3000:]
    assert "rank 1 broke" in said
