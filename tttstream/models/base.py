"""SavedModel, the base class of models with a folder: format, description, fingerprint and `save`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError, ShapeError
from tttstream.io import weights

M = TypeVar("M", bound="SavedModel")


def check_numbers(config: Any, name: str, **least: int) -> None:
    """Check the numbers of a configuration, a dataclass, and raise ConfigError in the name of its model.

    A field of the type int must be a whole number of at least 1, or of `least`; one of the type float must be above 0.
    """
    for field in dataclasses.fields(config):
        value, low = getattr(config, field.name), least.get(field.name, 1)
        if field.type in ("int", int) and (not isinstance(value, int) or value < low):
            raise ConfigError(f"{name}: {field.name} must be a whole number of at least {low}, got {value!r}")
        if field.type in ("float", float) and (not isinstance(value, int | float) or not 0 < value < float("inf")):
            raise ConfigError(f"{name}: {field.name} must be a number above 0, got {value!r}")


def check_frames(frames: Tensor, size: int, reset: Tensor | None, name: str = "model") -> None:
    """Raise ShapeError in the name of a model unless frames are [B, T >= 1, 3, size, size] and `reset` fits."""
    if frames.dim() != 5 or tuple(frames.shape[2:]) != (3, size, size) or frames.shape[1] < 1:
        raise ShapeError(f"{name}: expected frames [B, T >= 1, 3, {size}, {size}], got {list(frames.shape)}")
    check_reset(reset, frames.shape[:2], name)


def check_reset(reset: Tensor | None, shape: Sequence[int], name: str) -> None:
    """Raise ShapeError in the name of a model unless `reset` is None or bool of this shape."""
    if reset is not None and (list(reset.shape) != list(shape) or reset.dtype != torch.bool):
        raise ShapeError(f"{name}: expected reset bool {list(shape)}, got {reset.dtype} {list(reset.shape)}")


class SavedModel(nn.Module):
    """A model that is saved as a folder: config.json and model.safetensors.

    FORMAT: the name of the class in config.json. CONFIG: the dataclass of its options. USE: arguments of `tttstream`
    that run the model. LOAD: Python code that loads a model by name. SETTINGS: the options that can be changed with the
    same weights.
    config: the options of this model.
    """

    FORMAT: ClassVar[str]
    CONFIG: ClassVar[type]
    USE: ClassVar[str] = "watch VIDEO"
    LOAD: ClassVar[str] = 'tttstream.models.load("{}")'
    SETTINGS: ClassVar[tuple[str, ...]] = ()
    config: Any

    def description(self) -> dict[str, Any]:
        """The entries of config.json without the format, as values for JSON."""
        return dataclasses.asdict(self.config)

    @classmethod
    def described(cls: type[M], description: dict[str, Any]) -> M:
        """An untrained model with this description."""
        return cls(cls.CONFIG(**description))

    @classmethod
    def shape(cls, description: dict[str, Any]) -> dict[str, Any]:
        """The part of a description that must be equal for weights to fit."""
        return {name: value for name, value in description.items() if name not in cls.SETTINGS}

    @classmethod
    def resized(cls, description: dict[str, Any], size: int) -> dict[str, Any]:
        """The description of a model for another picture size, which the same weights fit."""
        return {**description, "size": size}

    def fingerprint(self) -> str:
        """A hash of the description and of all weights, with which a saved stream is checked."""
        return weights.fingerprint(self, self.description())

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors into a folder, each under a temporary name first.

        dtype: of the weights in the file, such as torch.float16 for half the bytes; by default their own.
        """
        weights.write(self, self.description(), self.FORMAT, folder, dtype)
