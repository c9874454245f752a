"""Mask propagation: masks that follow objects through a stream, carried by a memory that learns from every frame."""

from __future__ import annotations

import os
import warnings

import torch

from tttstream.io.mask_files import VOID, read_mask
from tttstream.models import load_as
from tttstream.models.masks import (
    MaskOutput,
    MixtureConfig,
    MixtureModel,
    MixtureState,
    Propagator,
    TargetConfig,
    TargetModel,
    TargetState,
)
from tttstream.streams.masks import MaskResult, MaskStream

__all__ = [
    "VOID",
    "MaskOutput",
    "MaskResult",
    "MaskStream",
    "MixtureConfig",
    "MixtureModel",
    "MixtureState",
    "Propagator",
    "TargetConfig",
    "TargetModel",
    "TargetState",
    "load",
    "read_mask",
    "save",
]

__path__: list[str] = []  # so that Python asks `tttstream._moved` for the modules that were here


def load(name_or_folder: str | os.PathLike[str] = "mask") -> MixtureModel:
    """The old name of `tttstream.models.load` for mask models."""
    warnings.warn("tttstream.masks.load is now tttstream.models.load; it goes in 0.3", DeprecationWarning, stacklevel=2)
    return load_as(MixtureModel, name_or_folder)


def save(model: MixtureModel, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """The old name of `model.save(folder, dtype)`."""
    warnings.warn("tttstream.masks.save is now model.save; it goes in 0.3", DeprecationWarning, stacklevel=2)
    model.save(folder, dtype)
