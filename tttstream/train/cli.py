"""`tttstream fit|validate|test|predict`: Lightning's command line over a model, a task, data and a trainer."""

import difflib
import errno
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from tttstream import errors
from tttstream.errors import CheckpointError, ConfigError, DataError, TTTStreamError
from tttstream.io import presets
from tttstream.io.names import expanded
from tttstream.io.outputs import OutputFolder, saving
from tttstream.models.frame import ModelConfig
from tttstream.train.callbacks import Bar, Export, Pace, Pictures, Rows, Visit
from tttstream.train.data import VideoData
from tttstream.train.data.loader import lost
from tttstream.train.given import PARTS, missing
from tttstream.train.in_time import register
from tttstream.train.stopping import Signals, Stop, Stopped, is_chief

OUT = "out"
VERSION = "version_"  # followed by a number: Lightning's names for the folders of runs
BEGINNING = ("config.yaml", "hparams.yaml", "events.out")  # files that a run writes before its first step
LEAST = {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "val_check_interval": 1e-6}  # Lightning accepts less
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
LATEST = ("best", "last", "hpc")  # names that Lightning resolves
UNSENDABLE = re.compile("(?i)can't pickle|cannot pickle|can't get local object")  # messages of pickle
AFTER_CHIEF = 2.0  # seconds: an error on every rank is reported by the first one


class _Parser(LightningArgumentParser):
    """Reports an error in the arguments or in a config in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        own = _own(ex) if ex is not None else None
        raise ConfigError(_short(message) if own is None else str(own)) from ex


def _short(message: str) -> str:
    """The message of a parser, reduced to the causes, in one line."""
    text = " ".join(message.split()).replace('Parser key "', '"')
    *_, causes = text.split(" Errors: ")
    if causes == text:
        return text
    found = [cause for cause in re.split(r"(?:^| )- ", causes.split(" Given value")[0]) if cause]
    key = re.match(r'"[^"]+"', text)
    return f"{key[0] if key else 'config'}: {'; '.join(c for c in found if 'NoneType' not in c)}"


class TrainingCLI(LightningCLI):
    """The keys are trainer, model (a `ModelConfig`), task (a Lightning module that takes a model) and data."""

    def __init__(self, command: str, **options: Any) -> None:
        self._command = command
        self._run: tuple[Path, OutputFolder] | None = None
        try:
            super().__init__(**options)
        except BaseException:
            self._tidy()
            raise

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the requested command: each takes a second to describe."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        parser.add_class_arguments(ModelConfig, "model")
        if self._command == "predict":
            parser.add_argument("--csv", type=bool, default=False, help="write csv tables instead of lines of JSON")
        parser.add_lightning_class_args(LightningModule, "task", subclass_mode=True)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        parser.link_arguments("model", "task.init_args.model")
        parser.link_arguments(("model.size", "data"), "data.init_args.size", _data_size)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without Lightning's warning about arguments that are not those of the process."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]
        seed = self.config[self.config.subcommand].get("seed_everything")
        if not isinstance(seed, bool) and seed is not None and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything must lie from 0 to below 2 ** 32, got {seed}")

    def instantiate_classes(self) -> None:
        """Make the task, the data and the trainer."""
        try:
            instantiate = getattr(self.parser, "instantiate", None) or self.parser.instantiate_classes  # before 4.50
            self.config_init = instantiate(self.config)
        except ValueError as error:
            raise _own(error) or ConfigError(_short(str(error))) from error
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "task")
        part = PARTS[self._command]
        if isinstance(self.datamodule, VideoData) and not self.datamodule.gives(part):
            raise DataError(missing(part))
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **changes: Any) -> Trainer:
        """With a CSV and a TensorBoard log in one folder, unless the configuration sets loggers."""
        given = self._get(self.config_init, "trainer")
        for name, least in LEAST.items():
            if isinstance(given.get(name), (int, float)) and given[name] < least:
                raise ConfigError(f"trainer.{name} must be at least {least}, got {given[name]}")
        if given.get("enable_progress_bar") is False:
            kept = [callback for callback in self.trainer_defaults["callbacks"] if not isinstance(callback, Bar)]
            self.trainer_defaults["callbacks"] = kept
        for callback in self.trainer_defaults["callbacks"]:
            if isinstance(callback, Rows):
                callback.csv = bool(self._command == "predict" and self._get(self.config_init, "csv"))
        root = given["default_root_dir"]
        changes["default_root_dir"] = expanded(str(OUT if root is None else root), "default_root_dir", ConfigError)
        if given.get("logger") is None:
            table = CSVLogger(os.path.abspath(changes["default_root_dir"]), name="train")
            if is_chief():  # the other ranks write into its folder
                self._run = run, _ = _take(table)
                table = CSVLogger(table.save_dir, name="train", version=int(run.name.removeprefix(VERSION)))
            changes["logger"] = [table, TensorBoardLogger(table.root_dir, name="", version=table.version)]
        try:
            trainer = super().instantiate_trainer(**changes, max_time=None)
        except ValueError as error:
            raise ConfigError(_short(str(error))) from error
        callbacks: Any = trainer
        if given.get("max_time") is not None:
            callbacks.callbacks.insert(0, Visit(given["max_time"], verbose=False))
        callbacks.callbacks.append(Stop())
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command. If it fails or stops, end all processes, and remove its folder if it is empty."""
        chief = is_chief()
        with Signals(chief, self._tidy) as signals:
            signals.trainer = self.trainer
            try:
                super()._run_subcommand(subcommand)
            except BaseException as error:
                own = _reported(error)
                if signals.asked and isinstance(error, ProcessExitedException):  # the spawned ranks were stopped
                    own = Stopped(signals.asked)
                if isinstance(own, TTTStreamError) and not chief:
                    time.sleep(AFTER_CHIEF)
                elif not isinstance(own, (TTTStreamError, Stopped)) and self.trainer.world_size > 1:
                    time.sleep(2 * AFTER_CHIEF)
                if own is error and isinstance(own, Stopped) and chief and not signals.answered:
                    early = subcommand == "fit" and not self.trainer.global_step
                    signals.say("before the first step; nothing was saved" if early else "")
                signals.kill()
                self._tidy()
                raise own from error

    def _tidy(self) -> None:
        """Remove half-written files, and the folder of a run without results."""
        if self._run is None:
            return
        run, folder = self._run
        for part in run.rglob(".*.part"):
            part.unlink(missing_ok=True)
        if all(path.name.startswith(BEGINNING) for path in run.glob("*")):
            shutil.rmtree(run, ignore_errors=True)
            folder.discard()
            self._run = None  # from now on it may belong to another run

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint exists. No configuration is read from it."""
        given = self.config[self.config.subcommand]
        path = given.get("ckpt_path")
        if path is None or (self._command == "fit" and path in LATEST):
            return
        path = given["ckpt_path"] = expanded(str(path), "ckpt_path", CheckpointError)
        if not os.path.exists(path):
            raise CheckpointError(f"there is no checkpoint {path}: give a file that `tttstream fit` wrote")


def _take(table: CSVLogger) -> tuple[Path, OutputFolder]:
    """Create the folder of a run with a unique number, also if several runs start at once."""
    folder = OutputFolder(table.root_dir, claim=False)
    number = int(table.version)
    while True:
        run = folder.path / f"{VERSION}{number}"
        with saving(run), suppress(FileExistsError, FileNotFoundError):  # another run's; the last one tidied up
            run.mkdir(parents=True)
            return run, folder
        number += 1


def _data_size(model: int, data: Any) -> int:
    """The side of the data's frames: that of the model. Raises ConfigError if the data has another one."""
    if data is None:
        raise ConfigError("no data is given: add a piece of data/, such as --config data/walk")
    given = data.get("init_args", {}).get("size")
    if given not in (None, model):
        raise ConfigError(f"data.size is {given}, but the model takes pictures of {model}: set --model.size alone")
    return model


def _reported(error: BaseException) -> BaseException:
    """Our own error behind torch's error of a worker or of a spawned rank, if there is one; else the error."""
    last = str(error).rstrip().rpartition("\n")[2]
    if UNSENDABLE.match(str(error)):
        return ConfigError(
            f"the objects of the run cannot be sent to spawned processes ({error}): use the strategy ddp"
        )
    spawned = re.match(r"tttstream[\w.]*\.(\w+Error): (.*)", last)
    if isinstance(error, ProcessRaisedException) and spawned:
        return getattr(errors, spawned[1], ConfigError)(spawned[2])
    return lost(error) or error


def _own(error: Exception) -> TTTStreamError | None:
    """Our own error that made the parser reject a class, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TTTStreamError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def resolve(words: Sequence[str]) -> list[str]:
    """The arguments, with the names of shipped configurations replaced by paths.

    Raises ConfigError if a config is neither a file nor a shipped one.
    """
    resolved: list[str] = []
    is_config = False
    for word in words:
        flag, given, value = word.partition("=")
        if is_config:
            resolved.append(_config(word))
        elif given and flag in ("-c", "--config"):
            resolved.append(f"{flag}={_config(value)}")
        else:
            resolved.append(word)
        is_config = not is_config and word in ("-c", "--config")
    return resolved


def _config(name: str) -> str:
    if os.path.isfile(name):
        try:
            Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the config {name} cannot be read as text: {error}") from error
        return name
    path = presets.find(name)
    if path is None:
        known = [known for known in presets.names() if not known.startswith("agents/")]
        near = difflib.get_close_matches(name.removesuffix(".yaml"), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"the shipped ones are {', '.join(known) or 'missing'}"
        raise ConfigError(f"there is no config {name}: give a file, or a shipped one by name; {hint}")
    return str(path)


class _Lines(logging.Handler):
    """Writes the log of this package as lines on standard error, in the first process of a run."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(rank_zero_only, "rank", 0) == 0:
            print(f"tttstream: {record.getMessage()}", file=sys.stderr, flush=True)


def main(words: Sequence[str]) -> int:
    """Run one of the four commands with its arguments."""
    own, lines = logging.getLogger("tttstream"), _Lines()
    level = own.level
    own.addHandler(lines)
    own.setLevel(logging.INFO)
    try:
        return _main(words)
    finally:
        own.setLevel(level)
        own.removeHandler(lines)


def _main(words: Sequence[str]) -> int:
    # Messages of Lightning 2.6 on another product, a deprecation in torch, a resumed run's folder and frozen encoders.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
    known = r"`isinstance\(treespec, LeafSpec\)`|The dirpath has changed|Found \d+ module\(s\) in eval mode"
    warnings.filterwarnings("ignore", message=known)
    register()
    defaults: dict[str, Any] = {
        "default_root_dir": OUT,
        "plugins": [{"class_path": "tttstream.train.checkpoint.WholeFiles"}],
        "callbacks": [Bar(), Pace(), Pictures(), Rows(), Export()],
    }
    try:
        TrainingCLI(
            words[0],
            trainer_defaults=defaults,
            parser_class=_Parser,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=resolve(words),
        )
    except Stopped as stopped:
        return int(stopped.code or 0)
    except MisconfigurationException as error:
        raise ConfigError(_short(str(error))) from error
    except OSError as error:  # of a log, say
        if isinstance(error, TTTStreamError) or error.errno not in FULL:
            raise
        with saving(error.filename or OUT):
            raise
    return 0
