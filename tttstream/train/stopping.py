"""Ctrl-C, SIGTERM and failed ranks: a run stops after a step, with a checkpoint, and leaves no process behind."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_only

TAKEN = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
AVERAGING: Any = getattr(lightning_callbacks, "WeightAveraging", ())  # Lightning 2.5 has none
PATIENCE = 60.0  # longest duration in seconds of the step that a signal interrupts
EVERY = 0.2  # seconds between two checks of the other processes


class Stopped(SystemExit):
    """A signal ended the run; the exit code is 128 and its number: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """SIGINT and SIGTERM while a run lasts, and the processes that it started; a context manager.

    The first signal raises `Stopped`; while `deferred` it is only stored in `asked`, and the training loop reads it and
    sets `answered`. With spawned ranks the signal is forwarded to them. A second signal, or a first one without an
    answer, ends all processes at once, and so does the failure of another rank, with its exit code.

    chief: whether this process was started by the user, and not by a run. tidy: called before everything is ended.
    """

    current: ClassVar[Signals | None] = None

    def __init__(self, chief: bool, tidy: Callable[[], None] = lambda: None) -> None:
        self.asked = 0
        self.deferred = self.answered = False
        self.trainer: Any = None
        self._chief, self._tidy = chief, tidy
        self._main = threading.current_thread() is threading.main_thread()  # only the main thread can handle signals
        self._before: dict[signal.Signals, Any] = {}
        self._ranks: list[Any] = []
        self._over = threading.Event()

    def __enter__(self) -> Signals:
        Signals.current = self
        if self._main:
            self._before = {number: signal.getsignal(number) for number in TAKEN}
            self.take()
            if self._chief:
                self._heard, self._told = socket.socketpair()
                self._told.setblocking(False)
                self._wakes = signal.set_wakeup_fd(self._told.fileno(), warn_on_full_buffer=False)
                self._hears = threading.Thread(target=self._watch, name="signals", daemon=True)
                self._hears.start()
        return self

    def __exit__(self, *_: object) -> None:
        Signals.current = None
        self._over.set()
        if self._main and self._chief:
            signal.set_wakeup_fd(self._wakes)
            self._hears.join()
            self._heard.close()
            self._told.close()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> None:
        """Install the handlers, also in place of Lightning's for SIGTERM, which communicates with other ranks."""
        if self._main:
            for number in TAKEN:
                signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            return
        self.asked = number
        spawned = self._spawned()
        for process in spawned:
            if process.is_alive():
                os.kill(process.pid, number)
        if not self.deferred and not spawned:
            raise Stopped(number)

    def _spawned(self) -> list[Any]:
        launcher = self.trainer and self.trainer.strategy.launcher
        return launcher.procs if isinstance(launcher, _MultiProcessingLauncher) else []

    def _watch(self) -> None:
        """Receive every signal, also while the main thread waits in a collective, and check the other ranks."""
        came, first = 0, 0.0
        while not self._over.is_set():
            if select.select([self._heard], [], [], EVERY)[0]:
                for number in self._heard.recv(64):
                    if number in TAKEN:
                        came += 1
                        first = first or time.monotonic()
                        if came == 1 and self.deferred:
                            _say(
                                f"{TAKEN[signal.Signals(number)]}: stopping after this step; a second signal ends at "
                                "once"
                            )
                        if came > 1:
                            _say("ended at once, without a checkpoint")
                            self.end(128 + number)
            late = came > 0 and time.monotonic() - first > PATIENCE  # the handler may have run before this thread heard
            if late and self.asked and self.deferred and not self.answered:
                _say(f"the step did not end in {PATIENCE:.0f} s: ended without a checkpoint")
                self.end(128 + self.asked)
            self._look()

    def _look(self) -> None:
        """End this rank if another rank has failed, which has reported its error; this one would wait for it
        forever."""
        launcher = self.trainer and self.trainer.strategy.launcher
        if launcher is None or self._spawned() or self.answered:
            return
        if launcher.procs:  # replaces Lightning's observer, which kills this process and so loses the exit code
            self._ranks, launcher.procs[:] = list(launcher.procs), []
        for process in self._ranks:
            if process.poll():
                self.end(process.returncode if process.returncode > 0 else 128 - process.returncode)

    def say(self, more: str) -> None:
        """Print which signal stopped the run."""
        _say(f"stopped by {TAKEN[signal.Signals(self.asked)]} {more}".rstrip())

    def kill(self) -> None:
        """End the other ranks and this process's workers."""
        self.answered = True
        launcher = self.trainer and self.trainer.strategy.launcher
        for process in [*self._ranks, *(launcher.procs if launcher else []), *multiprocessing.active_children()]:
            with contextlib.suppress(OSError, ValueError):  # it has ended
                process.kill()

    def end(self, code: int) -> None:
        """Exit at once, even if the main thread waits."""
        self.kill()
        self._tidy()
        sys.stdout.flush()
        os._exit(code)


class Stop(Callback):
    """Ends training after the step in which any rank received a signal, with a checkpoint for an exact continuation.

    An interrupted validation is repeated when the run continues. The checkpoint is last.ckpt in the folder of the
    others; without checkpoints (`enable_checkpointing: false`) nothing is saved. It must be the last callback.
    """

    def __init__(self) -> None:
        self._signals: Signals | None = None
        self._step, self._stepped = 0, True
        self._said, self._spawned = "", False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_signals": None}  # a spawned rank has its own

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Install the handlers in a spawned rank."""
        self._spawned = self._spawned or Signals.current is None
        self._signals = Signals.current or Signals(chief=False).__enter__()

    def _take(self) -> Signals:
        assert self._signals is not None
        self._signals.take()
        return self._signals

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers again: Lightning has replaced that of SIGTERM."""
        self._take()

    on_validation_start = on_test_start = on_predict_start = on_sanity_check_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a checkpoint can be saved."""
        self._take().deferred = True
        self._step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on only files are written; a signal is ignored."""
        self._take().deferred = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here, unless gradients are being accumulated, or a validation follows, which then stops."""
        self._stepped, self._step = trainer.global_step > self._step, trainer.global_step
        loop: Any = trainer.fit_loop
        if self._stepped and not loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._stop_if_asked(trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop here, and mark this validation as not done in the checkpoint."""
        training = trainer.state.fn == "fit" and not trainer.sanity_checking
        if training and self._stepped and self._asked(trainer):
            callbacks: Any = trainer
            for callback in callbacks.callbacks:
                if isinstance(callback, AVERAGING):  # the model has the averaged weights while it is validated
                    callback.on_validation_epoch_end(trainer, pl_module)
            progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.increment_started()
            progress.current.processed = progress.current.completed = 0
            self._stop_if_asked(trainer)

    def _asked(self, trainer: Trainer) -> int:
        """The signal that any rank received, 0 for none."""
        assert self._signals is not None
        asked = self._signals.asked
        if trainer.world_size > 1:
            everyone: Any = trainer.strategy
            asked = int(everyone.reduce(torch.tensor(asked, device=everyone.root_device), reduce_op="max"))
        return asked

    def _stop_if_asked(self, trainer: Trainer) -> None:
        asked = self._asked(trainer)
        if not asked:
            return
        assert self._signals is not None
        self._signals.answered = True
        kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        self._said = f"stopped by {TAKEN[signal.Signals(asked)]} after step {trainer.global_step}"
        if kept:
            folder = next((callback for callback in kept if callback.monitor is None), kept[0]).dirpath
            path = Path(folder or trainer.default_root_dir) / "last.ckpt"
            trainer.save_checkpoint(path)
            self._said += f"; to continue: {go_on(trainer, path)}"
        else:
            self._said += "; nothing was saved (trainer.enable_checkpointing is false)"
        stopped = Stopped(asked)
        if self._spawned:  # in this case Lightning does not call on_exception of callbacks
            self.on_exception(trainer, trainer.lightning_module, stopped)
        raise stopped

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print how to continue."""
        if isinstance(exception, Stopped) and self._said and is_chief():
            _say(self._said)


def is_chief() -> bool:
    """Whether this is rank 0, which the user started, or its launcher; known before ranks communicate."""
    return not getattr(rank_zero_only, "rank", 0)


def go_on(trainer: Trainer, checkpoint: Path, command: str = "fit") -> str:
    """The command that continues a run from one of its checkpoints. On rank 0, which has the folder."""
    config = folder(trainer) / "config.yaml"
    given = ["--config", shown(config)] if config.is_file() else ["…"]
    return " ".join(["tttstream", command, *given, f"--ckpt_path={shown(checkpoint)}"])


def folder(trainer: Trainer) -> Path:
    """The folder of the run in this process; `trainer.log_dir` would wait for all ranks."""
    for logger in trainer.loggers:
        found = getattr(logger, "log_dir", None) or logger.save_dir
        if found is not None:
            return Path(found)
    return Path(trainer.default_root_dir)


def shown(path: Path) -> str:
    """A path relative to the current folder, if it is inside."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _say(text: str) -> None:
    print(f"tttstream: {text}", file=sys.stderr, flush=True)
