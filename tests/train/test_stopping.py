"""A run that is stopped by a signal or by the failure of a rank: its files, and its continuation."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from tttstream.cli.main import main
from tttstream.train.prediction import Prediction
from tttstream.train.stopping import EVERY, Signals, Stop, Stopped

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Found .* in eval mode")
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C works as in a terminal, also if the tests run in the background, where it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Notes(Callback):
    """The losses of a run; sends this process a signal in a step, or in a batch of the validation after it."""

    def __init__(self, number: int = 0, step: int = -1, batch: int | None = None) -> None:
        self.losses: list[float] = []
        self.measured: list[float] = []
        self.number, self.step, self.batch = number, step, batch

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.batch is None and trainer.global_step == self.step:
            self.step = -1  # only once: a second signal would end this process
            os.kill(os.getpid(), self.number)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == self.batch and trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.measured.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def fit(tiny: Make, moving: Any, trainer: Make, tmp_path: Path) -> Make:
    def run(notes: Notes, resume: Path | None = None, **options: Any) -> Path:
        folder = tmp_path / f"kept_{id(notes)}"
        torch.manual_seed(0)
        task = Prediction(tiny(), lr=1e-2, warmup=0)
        torch.nn.init.normal_(task.model.next_frame.change.weight, std=0.02)
        kept = ModelCheckpoint(dirpath=folder, filename="best", monitor="val/loss")
        callbacks = [notes, EMAWeightAveraging(decay=0.5), kept, Stop()]
        given: dict[str, Any] = {"max_steps": 9, "max_epochs": -1, "enable_checkpointing": True}
        given |= {"limit_val_batches": 3, "val_check_interval": 3, "check_val_every_n_epoch": None}
        made: Trainer = trainer(callbacks=callbacks[:3], **given, **options)
        made.callbacks.append(callbacks[3])  # type: ignore[attr-defined]
        with Signals(chief=True) as signals:
            signals.trainer = made
            made.fit(task, datamodule=moving(5), ckpt_path=resume)
        return folder

    return run


@pytest.mark.parametrize(
    ("step", "batch", "accumulate"),
    [(3, None, 1), (4, None, 1), (2, None, 1), (3, 1, 1), (6, 2, 1), (6, 0, 1), (4, None, 2), (3, 0, 2)],
    ids=["a step", "an epoch's end", "before validation", "in validation", "its end", "again", "added up", "in both"],
)
def test_it_continues_as_without_an_interruption(
    fit: Make, tmp_path: Path, step: int, batch: int | None, accumulate: int
) -> None:
    options = {"accumulate_grad_batches": accumulate}
    whole, first, second = Notes(), Notes(signal.SIGINT, step, batch), Notes()
    fit(whole, **options)
    with pytest.raises(Stopped) as caught:
        fit(first, **options)
    assert caught.value.code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(second, tmp_path / f"kept_{id(first)}" / "last.ckpt", **options)
    assert first.losses + second.losses == whole.losses
    assert first.measured + second.measured == whole.measured


class Early(Callback):
    """Sends this process Ctrl-C in the validation before the first step."""

    def on_validation_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pieces = [f"--config={name}" for name in ("trainer/fast", "model/tiny", "data/walk", "task/prediction")]
    sizes = [f"--data.init_args.{name}" for name in ("batch_size=1", "length=4", "workers=0")]
    early = f"--trainer.callbacks={Early.__module__}.Early"
    monkeypatch.setitem(sys.modules, Early.__module__, sys.modules[__name__])
    assert main(["fit", *pieces, *sizes, "--trainer.enable_progress_bar=false", early]) == 130
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped" in line]
    assert said == ["tttstream: stopped by Ctrl-C before the first step; nothing was saved"]
    assert not (tmp_path / "out").exists()


def test_sigterm_and_its_message(fit: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped) as caught:
        fit(notes := Notes(signal.SIGTERM, 3))
    assert caught.value.code == 143
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped by" in line]
    assert said[0].startswith("tttstream: stopped by SIGTERM after step 4; to continue: tttstream fit ")
    assert said[0].endswith(f"--ckpt_path={tmp_path}/kept_{id(notes)}/last.ckpt")


def test_a_signal_that_the_thread_has_not_received_yet_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler may run while the watching thread is between its wait for signals and its look at the time."""
    ended: list[int] = []
    with Signals(chief=True) as signals:
        monkeypatch.setattr(signals, "end", ended.append)
        signals.deferred, signals.asked = True, signal.SIGINT  # as the handler leaves them
        time.sleep(3 * EVERY)
    assert not ended
