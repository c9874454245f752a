"""Callbacks of a run: a progress bar, its speed, a time limit, pictures, predictions, and folders for `watch`."""

import csv
import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from tttstream.io.outputs import TextFile, saving
from tttstream.models.base import SavedModel
from tttstream.train.data import VideoData
from tttstream.train.export import read
from tttstream.train.given import PARTS
from tttstream.train.stopping import folder, go_on, shown
from tttstream.train.task import StreamTask
from tttstream.views.overlay import Picture
from tttstream.views.sheet import sheet
from tttstream.views.still import Still

NAMES = {"train/loss": "loss", "train/inner_before": "inner", "train/inner_after": "after", "val/loss": "val"}


class Bar(TQDMProgressBar):
    """Lightning's bar with the loss, the inner loss before and after learning a frame, and frames a second."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else 20)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        found = trainer.callback_metrics
        shown: dict[str, Any] = {short: f"{float(found[name]):.3g}" for name, short in NAMES.items() if name in found}
        if "train/frames_per_s" in found:
            shown["frames/s"] = f"{float(found['train/frames_per_s']):.0f}"
        return shown

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the line, so that an error message has its own line."""
        for bar in (self._val_progress_bar, self._train_progress_bar):
            if bar is not None:
                bar.close()


class _Stopwatch(PassThroughProfiler):
    """Adds up how long the trainer waits for the next batch."""

    FETCH = "[_TrainingEpochLoop].train_dataloader_next"

    def __init__(self) -> None:
        super().__init__()
        self.waited_s = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        if action_name == self.FETCH:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == self.FETCH:
            self.waited_s += time.perf_counter() - self._since


class Pace(Callback):
    """Logs train/frames_per_s and train/data_wait, the share of the time in which the trainer waits for data.

    Both cover the steps since the last log. With the user's own profiler there is no data_wait.
    """

    def __init__(self) -> None:
        self._watch: _Stopwatch | None = None
        self._since, self._waited, self._frames, self._every = 0.0, 0.0, 0, 1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the default profiler, which measures nothing."""
        untyped: Any = trainer
        if stage == "fit" and type(untyped.profiler) is PassThroughProfiler:
            untyped.profiler = self._watch = _Stopwatch()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the measurement."""
        untyped: Any = trainer
        self._every = max(1, untyped.log_every_n_steps)
        self._begin()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start again after validation, which is not training."""
        self._begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log where a step is logged."""
        self._frames += batch.frames.shape[:2].numel() * trainer.world_size
        took = time.perf_counter() - self._since
        values = {"train/frames_per_s": self._frames / took}
        if self._watch is not None:
            values["train/data_wait"] = min(1.0, (self._watch.waited_s - self._waited) / took)
        pl_module.log_dict(values)
        if trainer.global_step % self._every == 0:
            self._begin()

    def _begin(self) -> None:
        self._since, self._frames = time.perf_counter(), 0
        self._waited = 0.0 if self._watch is None else self._watch.waited_s


class Visit(Timer):
    """Ends a run after its own time limit; the time of the runs that it resumes does not count."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Start with the full time again."""


class Pictures(Callback):
    """Writes the pictures that the first validation batch returns under "pictures": rows of columns of frames.

    They are saved in the run's folder as pictures/step_….png and in TensorBoard. The task's `validation_step` returns
    them as [rows, columns, 3, H, W] in 0..1, and their titles under "labels", as lists of rows of words.
    """

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, dict) or "pictures" not in outputs or not trainer.is_global_zero:
            return
        if trainer.sanity_checking:
            return
        whole = labelled(outputs["pictures"], outputs.get("labels"))
        path = folder(trainer) / "pictures" / f"step_{trainer.global_step:07d}.png"
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        Still(path, whole, claim=False).close()
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("pictures", whole, trainer.global_step, dataformats="HWC")


def labelled(pictures: Tensor, labels: list[list[str]] | None = None) -> Picture:
    """[rows, columns, 3, H, W] in 0..1 and their titles, if any -> one picture of them all."""
    shown = (pictures.float().clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return sheet(shown.permute(0, 1, 3, 4, 2).cpu().numpy(), labels or [[""] * shown.shape[1]] * shown.shape[0])


class Rows(Callback):
    """Writes the rows that `predict_step` returns as lines of JSON: predictions.jsonl in the run's folder, and the rows
    of a task's `clip_rows` as clips.jsonl.

    The number under "clip" is replaced by the clip's name, where the data has a list of clips.
    csv: write tables instead, predictions.csv and clips.csv.
    """

    def __init__(self) -> None:
        self.csv = False
        self._file: TextFile | None = None
        self._clips: TextFile | None = None
        self._rows: dict[TextFile, list[dict[str, Any]]] = {}
        self._names: list[str] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file; each process has its own."""
        run = Path(trainer.log_dir or trainer.default_root_dir)  # of rank 0; all ranks are here
        with saving(run):
            run.mkdir(parents=True, exist_ok=True)
        number = f"-{trainer.global_rank}" if trainer.world_size > 1 else ""
        ending = "csv" if self.csv else "jsonl"
        self._file = TextFile(run / f"predictions{number}.{ending}")
        self._clips = TextFile(run / f"clips{number}.{ending}") if hasattr(pl_module, "clip_rows") else None
        data: Any = trainer
        listed = getattr(data.datamodule, "clips", None)
        self._names = [] if listed is None else [clip.name for clip in listed("test")]

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the rows."""
        if self._file is None or not isinstance(outputs, list):
            return
        for row in outputs:
            self._write(self._file, row)

    def _write(self, file: TextFile, row: dict[str, Any]) -> None:
        clip = row.get("clip", -1)
        row = {**row, **({"clip": self._names[clip]} if 0 <= clip < len(self._names) else {})}
        if self.csv:  # kept, because a later row may have more columns than the first
            self._rows.setdefault(file, []).append(row)
        else:
            file.write_json(row)

    def _close(self, file: TextFile) -> None:
        rows, text = self._rows.pop(file, []), io.StringIO()
        if rows:
            columns = dict.fromkeys(name for row in rows for name in row)
            table = csv.DictWriter(text, columns, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            file.write(text.getvalue())
        file.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rename the finished file."""
        if self._file is not None:
            self._close(self._file)
            print(f"one line for each frame: {self._file.path}")
        if self._clips is not None:
            told: Any = pl_module
            for row in told.clip_rows():
                self._write(self._clips, row)
            self._close(self._clips)
            print(f"one line for each clip: {self._clips.path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove half-written files."""
        for file in (self._file, self._clips):
            if file is not None:
                file.discard()


class Export(Callback):
    """At the end of a run, writes the folders for `tttstream watch --model`: model, and best if one is known.

    model: the weights at the end (averaged, if a callback averages them). best: those of the best checkpoint. Both are
    in the run's folder.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = getattr(pl_module, "model", None)
        if not isinstance(model, SavedModel) or not trainer.is_global_zero:
            return
        run = folder(trainer)
        task: Any = pl_module
        if isinstance(pl_module, StreamTask):
            pl_module.complete(model)
        model.save(run / "model")
        written = [run / "model"]
        kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        best = next((callback.best_model_path for callback in kept if callback.monitor), "")
        if best and Path(best).is_file():  # a resumed run may name one that was moved
            chosen = read(Path(best))
            if isinstance(pl_module, StreamTask):
                pl_module.complete(chosen)
            chosen.save(run / "best")
            written.append(run / "best")
        print("the model is in", " and ".join(f"{folder}" for folder in written))
        print(f"to use it: tttstream {model.USE} --model {shown(written[-1])}")
        paths = [best, *(callback.best_model_path for callback in kept)]
        found = next((path for path in map(Path, filter(None, paths)) if path.is_file()), None)
        command = _measures(trainer)
        if found is not None and command is not None:
            words = task.test_words() if command == "test" and hasattr(task, "test_words") else []
            print("to measure it:", " ".join([go_on(trainer, found, command), *words]))


def _measures(trainer: Trainer) -> str | None:
    """The command that evaluates the trained model: test, or validate if there is no data for test, or none."""
    untyped: Any = trainer
    data = untyped.datamodule
    if not isinstance(data, VideoData):
        return "test"
    return next((command for command in ("test", "validate") if data.gives(PARTS[command])), None)
