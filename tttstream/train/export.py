"""From a checkpoint to the model in it, without Lightning."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from tttstream.errors import CheckpointError, TTTStreamError
from tttstream.models.classifier import Classifier, Encoder
from tttstream.models.frame import FrameModel, ModelConfig
from tttstream.models.map import MapConfig, MapModel
from tttstream.models.masks import MixtureConfig, MixtureModel

PREFIX = "model."


def read(path: Path) -> FrameModel | MapModel | MixtureModel | Classifier:
    """The model in a checkpoint of `tttstream fit`. Raises CheckpointError where there is none."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint of `tttstream fit`; is it complete?") from error
    saved = checkpoint.get("tttstream") if isinstance(checkpoint, dict) else None
    if saved is None or not {"model", "network"} & set(saved):
        raise CheckpointError(
            f"{path} was not written by `tttstream fit` for a model of frames, classes, places or masks"
        )
    weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    try:
        model: FrameModel | MapModel | MixtureModel | Classifier
        if "network" in saved:
            model = MixtureModel(MixtureConfig(**saved["network"]))
        elif "classes" in saved["model"]:
            model = _classifier(saved)
        elif saved["task"] == "Map":
            model = MapModel(MapConfig(**saved["model"]))
        else:
            model = FrameModel(ModelConfig(**saved["model"]))
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, TypeError, TTTStreamError) as error:
        raise CheckpointError(f"{path} holds a model that this version cannot build") from error
    return model.eval()


def _classifier(saved: dict[str, Any]) -> Classifier:
    """The classifier of a checkpoint, without its weights; one that says no names has numbers."""
    shape = dict(saved["model"])
    classes, encoder = shape.pop("classes"), shape.pop("encoder")
    fitting = saved.get("fitting", "crop")
    return Classifier(
        ModelConfig(**shape), classes, encoder and Encoder(encoder), names=saved.get("names", ()), fitting=fitting
    )
