"""Mask models in folders: config.json and model.safetensors; and the one that ships, by name."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from tttstream.errors import CheckpointError, ShapeError
from tttstream.masks.model import MaskConfig, MaskModel
from tttstream.outputs import saving

FORMAT = "tttstream.masks/1"
SHIPPED = Path(__file__).resolve().parent.parent / "weights"
NAMES = ("mask",)
"""Trained models that ship inside the package."""


def save(model: MaskModel, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
    """Write a model into a folder, each file under a temporary name first. dtype: of the file, such as float16."""
    from safetensors.torch import save_file

    path = Path(folder)
    weights = {name: weight.detach().cpu().to(dtype).contiguous() for name, weight in model.state_dict().items()}
    part, text = path / "model.safetensors.part", path / "config.json.part"
    config = {"format": FORMAT, **dataclasses.asdict(model.config)}
    with saving(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            save_file(weights, part, metadata={"format": FORMAT})
            text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path / "model.safetensors")
            os.replace(text, path / "config.json")
        finally:
            part.unlink(missing_ok=True)
            text.unlink(missing_ok=True)


def load(name_or_folder: str | os.PathLike[str] = "mask") -> MaskModel:
    """A mask model by name, with the weights that ship, or from a folder that `save` wrote.

    Raises CheckpointError where there is none, or where what is there does not fit together.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = os.fspath(name_or_folder)
    folder = SHIPPED / name if name in NAMES else Path(name)
    if not folder.is_dir():
        raise CheckpointError(f"no mask model {name!r}: expected one of {', '.join(NAMES)}, or a model's folder")
    model = MaskModel(_config(folder))
    try:
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict(weights)
    except FileNotFoundError as error:
        raise CheckpointError(f"no weights at {folder / 'model.safetensors'}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    except RuntimeError as error:  # other names or shapes
        raise CheckpointError(f"{folder / 'model.safetensors'} does not fit its config.json") from error
    return model.eval()


def is_masks(folder: str | os.PathLike[str]) -> bool:
    """Whether a name or folder is that of a mask model."""
    name = os.fspath(folder)
    return name in NAMES or (Path(name).is_dir() and _read(Path(name)).get("format") == FORMAT)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no model at {folder}: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not the configuration of a model")
    return values


def _config(folder: Path) -> MaskConfig:
    values = _read(folder)
    if values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{folder} holds no mask model: expected format {FORMAT!r} in its config.json")
    try:
        return MaskConfig(**values)
    except (TypeError, ShapeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not fit this version: {error}") from error
