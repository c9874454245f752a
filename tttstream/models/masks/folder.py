"""Mask models in folders: config.json and model.safetensors; and the one that ships, by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tttstream.errors import CheckpointError, ShapeError
from tttstream.io import weights
from tttstream.models.masks.mixture import FORMAT, MixtureConfig, MixtureModel

SHIPPED = Path(__file__).resolve().parents[2] / "weights"
NAMES = ("mask",)
"""Trained models that ship inside the package."""


def save(model: MixtureModel, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """`model.save(folder, dtype)`, beside `load`."""
    model.save(folder, dtype)


def load(name_or_folder: str | os.PathLike[str] = "mask") -> MixtureModel:
    """A mask model by name, with the weights that ship, or from a folder that `MixtureModel.save` wrote.

    Raises CheckpointError where there is none, or where what is there does not fit together.
    """
    name = os.fspath(name_or_folder)
    folder = SHIPPED / name if name in NAMES else Path(name)
    if not os.path.isdir(folder):
        raise CheckpointError(f"no mask model {name!r}: expected one of {', '.join(NAMES)}, or a model's folder")
    model = _model(folder)
    weights.fill(model, folder)
    return model.eval()


def is_masks(folder: str | os.PathLike[str]) -> bool:
    """Whether a name or folder is that of a mask model."""
    name = os.fspath(folder)
    return name in NAMES or (os.path.isdir(name) and weights.read(Path(name)).get("format") == FORMAT)


def _model(folder: Path) -> MixtureModel:
    values = weights.read(folder)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder} holds no mask model: expected format {FORMAT!r} in its config.json")
    try:
        return MixtureModel(MixtureConfig(**values))
    except (TypeError, ShapeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not fit this version: {error}") from error
