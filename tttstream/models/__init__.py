"""Models by name: trained ones that are shipped, untrained ones by size; and models from a folder."""

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import torch

from tttstream.errors import CheckpointError, ConfigError
from tttstream.io import weights
from tttstream.models.backbone import ModelState
from tttstream.models.base import SavedModel
from tttstream.models.classifier import Classifier
from tttstream.models.features import FeatureModel
from tttstream.models.frame import FrameModel, ModelConfig, Output
from tttstream.models.hub import fetched, is_remote, push
from tttstream.models.inserted import Inserted, insert
from tttstream.models.map import MapModel
from tttstream.models.masks import MixtureModel, TargetModel
from tttstream.models.steps import export
from tttstream.models.teach import TeachModel

__all__ = [
    "CONFIGS",
    "FeatureModel",
    "FrameModel",
    "ModelConfig",
    "ModelState",
    "Output",
    "build",
    "export",
    "insert",
    "load",
    "load_as",
    "push",
    "shipped",
]

M = TypeVar("M", bound=SavedModel)

KINDS: dict[str, type[SavedModel]] = {
    kind.FORMAT: kind
    for kind in (FrameModel, FeatureModel, Classifier, MapModel, MixtureModel, TargetModel, Inserted, TeachModel)
}
"""Every kind of model, by the format in its config.json."""

CONFIGS: dict[str, ModelConfig] = {
    "small": ModelConfig(dim=128, depth=4, heads=4),
    "medium": ModelConfig(dim=256, depth=5, heads=8),
}
"""Untrained sizes: about 1 and 5 million parameters."""

WEIGHTS = Path(__file__).parent.parent / "weights"


def shipped() -> list[str]:
    """The names of the trained models in the package; each has a card.md in the folder of its weights."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))


def build(name: str, *, seed: int = 0, **changes: Any) -> FrameModel:
    """An untrained model of this size with random weights from `seed`; its memory learns from the first frame on.

    changes: other values of fields of ModelConfig, such as size=256 or memory="ttt_mlp".
    """
    if name not in CONFIGS:
        raise ConfigError(f"there is no model size {name!r}: expected one of {', '.join(CONFIGS)}")
    try:
        config = dataclasses.replace(CONFIGS[name], **changes)
    except TypeError as error:
        known = ", ".join(item.name for item in dataclasses.fields(ModelConfig))
        raise ConfigError(f"unknown model option: expected some of {known}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrameModel(config).eval()


def load(name_or_folder: str | os.PathLike[str], *, seed: int = 0, size: int | None = None) -> Any:
    """Load a model: from a folder of `save`, a trained one by its name, an untrained one by its size, or one of a hub
    by hf:OWNER/NAME or hf:OWNER/NAME@REVISION (the extra `hub`).

    It is a FrameModel, a FeatureModel ("features"), a MapModel ("map"), a TargetModel or MixtureModel of masks
    ("track", "mask"), a TeachModel of things ("teach"), or a Classifier. size: side of the pictures (for masks and
    things, the short side), by default that of training; a map has one size. seed: of the weights of an untrained
    model.

    Raises CheckpointError if there is no such model, or if its files do not fit together; ConfigError for an invalid
    size.
    """
    name = os.fspath(name_or_folder)
    if name in CONFIGS:
        return build(name, seed=seed, **({} if size is None else {"size": size}))
    folder, kind, description = _found(name)
    try:
        model = kind.described(description if size is None else kind.resized(description, size))
    except (KeyError, TypeError, ConfigError) as error:
        if size is not None and isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"{folder / 'config.json'} does not fit this version: {error}") from error
    weights.fill(model, folder)
    return model.eval()


def folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """The folder of a trained model. Raises CheckpointError as `load` does."""
    return _found(os.fspath(name_or_folder))[0]


def _found(name: str) -> tuple[Path, type[SavedModel], dict[str, Any]]:
    """The folder of a trained model, its class and its description."""
    folder = fetched(name) if is_remote(name) else WEIGHTS / name if name in shipped() else Path(name)
    if not os.path.isdir(folder):
        known = (
            f"{', '.join(shipped())} (trained), {', '.join(CONFIGS)} (untrained), hf:OWNER/NAME, or a model's folder"
        )
        raise CheckpointError(f"there is no model {name!r}: expected one of {known}")
    description = weights.read(folder)
    return folder, kind_of(description.pop("format", None), folder), description


def load_as(kind: type[M], name_or_folder: str | os.PathLike[str], *, size: int | None = None) -> M:
    """Load a model of one kind, see `load`. Raises CheckpointError for a model of another kind."""
    model = load(name_or_folder, size=size)
    if not isinstance(model, kind):
        fitting = [name for name in shipped() if issubclass(_found(name)[1], kind)]
        such = f" such as {' or '.join(fitting)}" if fitting else ""
        raise CheckpointError(f"{name_or_folder} is a {type(model).__name__}, expected a {kind.__name__}{such}")
    return model


def kind_of(format: Any, where: object) -> type[SavedModel]:
    """The class of models with this format. Raises CheckpointError, with the location, for an unknown format."""
    if format not in KINDS:
        raise CheckpointError(f"{where} holds no known model: format is {format!r}, expected {', '.join(KINDS)}")
    return KINDS[format]
