"""Models by name: trained ones that are shipped, untrained ones by size; and models from a folder."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from tttstream.errors import CheckpointError, ShapeError
from tttstream.models import classifier
from tttstream.models import map as maps
from tttstream.models.backbone import ModelState
from tttstream.models.frame import FORMAT, FrameModel, ModelConfig, Output, load_folder
from tttstream.models.masks import folder as masks

__all__ = ["CONFIGS", "FrameModel", "ModelConfig", "ModelState", "Output", "build", "load", "shipped"]

CONFIGS: dict[str, ModelConfig] = {
    "small": ModelConfig(dim=128, depth=4, heads=4),
    "medium": ModelConfig(dim=256, depth=5, heads=8),
}
"""Untrained sizes: about 1 and 5 million parameters."""

WEIGHTS = Path(__file__).parent.parent / "weights"


def shipped() -> list[str]:
    """The names of the trained models that come with the package; each has a card.md beside its weights."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/config.json") if _is_frame_model(path))


def _is_frame_model(path: Path) -> bool:
    return json.loads(path.read_text(encoding="utf-8")).get("format") == FORMAT


def build(name: str, *, seed: int = 0, **changes: Any) -> FrameModel:
    """A model of that size with weights drawn from `seed`: untrained outside, though its memory learns from frame one.

    changes: fields of ModelConfig to set otherwise, such as size=256 or memory="ttt_mlp".
    """
    if name not in CONFIGS:
        raise ShapeError(f"there is no model size {name!r}: expected one of {', '.join(CONFIGS)}")
    try:
        config = dataclasses.replace(CONFIGS[name], **changes)
    except TypeError as error:
        known = ", ".join(item.name for item in dataclasses.fields(ModelConfig))
        raise ShapeError(f"unknown model option: expected some of {known}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrameModel(config).eval()


def load(name_or_folder: str, *, seed: int = 0, size: int | None = None) -> Any:
    """A model from a folder that its `save` wrote, a trained one by its name, or an untrained one by its size.

    It is a FrameModel, a MapModel ("map"), a MixtureModel of masks ("mask"), or a Classifier. size: side of the
    pictures, that of training unless given; maps have one size, and of masks the stream takes it. seed: of an untrained
    model's weights.
    """
    if masks.is_masks(name_or_folder):
        if size is not None:
            raise ShapeError(f"{name_or_folder} is a model of masks: give the size to MaskStream")
        return masks.load(name_or_folder)
    if classifier.is_classifier(name_or_folder):
        return classifier.load(name_or_folder, size=size)
    if maps.is_map(name_or_folder):
        model = maps.load(name_or_folder)
        if size not in (None, model.config.size):
            raise ShapeError(
                f"the map {name_or_folder} sees {model.config.size} pixels, not {size}: leave the size out"
            )
        return model
    if name_or_folder in CONFIGS:
        return build(name_or_folder, seed=seed, **({} if size is None else {"size": size}))
    trained = shipped()
    folder = WEIGHTS / name_or_folder if name_or_folder in trained else Path(name_or_folder)
    if not os.path.isdir(folder):
        known = f"{', '.join(trained) or 'none here'} (trained), {', '.join(CONFIGS)} (untrained), or a model's folder"
        raise CheckpointError(f"there is no model {name_or_folder!r}: expected one of {known}")
    return load_folder(folder, size=size)
