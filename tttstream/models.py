"""Models by name, in sizes that run on a CPU, and models from a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tttstream.backbone import ModelState
from tttstream.errors import CheckpointError, ShapeError
from tttstream.model import FrameModel, ModelConfig, Output, load_folder

__all__ = ["CONFIGS", "FrameModel", "ModelConfig", "ModelState", "Output", "build", "load"]

CONFIGS: dict[str, ModelConfig] = {
    "small": ModelConfig(dim=128, depth=4, heads=4),
    "base": ModelConfig(dim=256, depth=5, heads=8),
}
"""About 1 and 5 million parameters at 128 pixels."""


def build(name: str, *, seed: int = 0, **changes: Any) -> FrameModel:
    """A model of that size with weights drawn from `seed`: untrained outside, though its memory learns from frame one.

    changes: fields of ModelConfig to set otherwise, such as size=256 or memory="ttt_mlp".
    """
    if name not in CONFIGS:
        raise ShapeError(f"unknown model {name!r}: expected one of {', '.join(CONFIGS)}, or a folder with config.json")
    try:
        config = dataclasses.replace(CONFIGS[name], **changes)
    except TypeError as error:
        known = ", ".join(item.name for item in dataclasses.fields(ModelConfig))
        raise ShapeError(f"unknown model option: expected some of {known}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FrameModel(config).eval()


def load(name_or_folder: str, *, seed: int = 0, size: int | None = None) -> FrameModel:
    """A model by name (`build`) or from a folder that `FrameModel.save` wrote."""
    if name_or_folder in CONFIGS:
        return build(name_or_folder, seed=seed, **({} if size is None else {"size": size}))
    if not Path(name_or_folder).is_dir():
        raise CheckpointError(f"no model {name_or_folder!r}: expected one of {', '.join(CONFIGS)}, or a model's folder")
    return load_folder(name_or_folder, size=size)
