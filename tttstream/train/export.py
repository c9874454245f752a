"""The model in a checkpoint, without Lightning."""

import pickle
from pathlib import Path
from typing import Any

import torch

from tttstream.errors import CheckpointError, TTTStreamError
from tttstream.models import kind_of
from tttstream.models.base import SavedModel
from tttstream.models.classifier import Classifier
from tttstream.models.frame import FrameModel
from tttstream.models.map import MapModel
from tttstream.models.masks import MixtureModel

PREFIX = "model."


def read(path: Path) -> SavedModel:
    """Read the model in a checkpoint of `tttstream fit`. Raises CheckpointError if there is none."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint of `tttstream fit`; is it complete?") from error
    saved = checkpoint.get("tttstream") if isinstance(checkpoint, dict) else None
    if saved is None or not {"model", "network", "format"} & set(saved):
        raise CheckpointError(f"{path} was not written by `tttstream fit` for a model that this version knows")
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    try:
        format, description = described(saved)
        model = kind_of(format, path).described(description)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, TTTStreamError) as error:
        raise CheckpointError(f"{path} holds a model that this version cannot build") from error
    return model.eval()


def described(saved: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Format and description of the model in the data of a task; version 0.1 has another layout."""
    if "format" in saved:
        return saved["format"], saved["description"]
    if "network" in saved:
        return MixtureModel.FORMAT, saved["network"]
    shape = dict(saved["model"])
    if "classes" not in shape:
        return MapModel.FORMAT if saved["task"] == "Map" else FrameModel.FORMAT, shape
    names = saved.get("names") or [str(number) for number in range(shape["classes"])]
    description = {"names": names, "encoder": shape["encoder"], "fitting": saved.get("fitting", "crop")}
    model = {name: value for name, value in shape.items() if name not in ("classes", "encoder")}
    return Classifier.FORMAT, {**description, "model": model}
