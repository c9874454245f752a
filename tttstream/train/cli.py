"""`tttstream fit|validate|test|predict`: Lightning's command line over a model, a task, data and a trainer."""

from __future__ import annotations

import difflib
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from tttstream import presets
from tttstream.errors import CheckpointError, ConfigError
from tttstream.model import ModelConfig
from tttstream.train.callbacks import Bar, Export, Pace, Pictures

OUT = "out"
LATEST = ("best", "last", "hpc")  # what Lightning itself finds


class _Parser(LightningArgumentParser):
    """Says what is wrong with the arguments or a config in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigError(_short(message)) from ex


def _short(message: str) -> str:
    """What a parser has to say, without the tree of attempts that it adds."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r"\s+", " ", " ".join(lines))


class TrainingCLI(LightningCLI):
    """The keys are trainer, model (a `ModelConfig`), task (a Lightning module that takes a model) and data."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See the class."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults({f"trainer.{k}": v for k, v in self.trainer_defaults.items() if k != "callbacks"})
        parser.add_class_arguments(ModelConfig, "model")
        parser.add_lightning_class_args(LightningModule, "task", subclass_mode=True)
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        parser.link_arguments("model", "task.init_args.model")
        parser.link_arguments("model.size", "data.init_args.size")

    def instantiate_classes(self) -> None:
        """Make the task, the data and the trainer."""
        self.config_init = self.parser.instantiate_classes(self.config)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "task")
        self.trainer = self.instantiate_trainer()

    def _parse_ckpt_path(self) -> None:
        """Nothing of the configuration comes from a checkpoint; only that there is one is looked at here."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path not in LATEST and not Path(path).exists():
            raise CheckpointError(f"there is no checkpoint {path}: give a file that `tttstream fit` wrote")


def resolve(words: Sequence[str]) -> list[str]:
    """The arguments, with the names of shipped configurations made paths.

    Raises ConfigError where a config is neither a file nor a shipped one.
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
    if Path(name).is_file():
        return name
    path = presets.find(name)
    if path is None:
        known = presets.names()
        near = difflib.get_close_matches(name.removesuffix(".yaml"), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"the shipped ones are {', '.join(known) or 'missing'}"
        raise ConfigError(f"there is no config {name}: give a file, or a shipped one by name; {hint}")
    return str(path)


def main(words: Sequence[str]) -> int:
    """Run one of the four commands with its arguments."""
    warnings.filterwarnings("ignore", message=".*litlogger.*")
    logging.getLogger("lightning.pytorch").addFilter(lambda record: "litlogger" not in record.getMessage())
    defaults: dict[str, Any] = {
        "default_root_dir": OUT,
        "logger": [
            {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": OUT, "name": "train"}}
            for kind in ("CSVLogger", "TensorBoardLogger")
        ],
        "plugins": [{"class_path": "tttstream.train.checkpoint.WholeFiles"}],
        "callbacks": [Bar(), Pace(), Pictures(), Export()],
    }
    try:
        TrainingCLI(
            trainer_defaults=defaults,
            parser_class=_Parser,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=resolve(words),
        )
    except MisconfigurationException as error:
        raise ConfigError(_short(str(error))) from error
    return 0
