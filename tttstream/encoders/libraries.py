"""Encoders of torchvision, timm and Hugging Face transformers as pyramids of features."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from torch import Tensor

from tttstream.encoders.pyramid import DEVIATION, MEAN, Encoder
from tttstream.encoders.vision import build
from tttstream.errors import CheckpointError, ConfigError, DependencyError

SIDE = 224  # pixels, for which torchvision builds a model


class TimmEncoder(Encoder):
    """A model of timm made with `features_only`, which returns the list of its maps."""

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        yield from self.model(x)


class TransformersEncoder(Encoder):
    """A backbone of Hugging Face transformers."""

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        yield from self.model(x).feature_maps


def from_torchvision(name: str, strides: tuple[int, ...], weights: str) -> Encoder:
    """A convolutional network of torchvision, loaded by torchvision."""
    model, kind = build(name, SIDE, weights)
    if kind != "map":
        raise ConfigError(f"encoder {name} is a transformer, which has no pyramid here: take a convolutional network")
    return Encoder(model, strides)


def from_timm(name: str, strides: tuple[int, ...], weights: str) -> Encoder:
    """A network of timm, loaded by timm, with the normalisation of colours that its weights expect."""
    timm = _library("timm", name, weights)
    if name.partition(".")[0] not in timm.list_models():
        raise ConfigError(f"there is no encoder timm:{name}: timm.list_models() has the names")
    try:
        model: Any = timm.create_model(name, pretrained=weights == "default", features_only=True)
    except Exception as error:  # what a hub raises is its own affair
        raise _unfetched(f"timm:{name}", error) from error
    config = model.pretrained_cfg
    return TimmEncoder(model, strides, config.get("mean", MEAN), config.get("std", DEVIATION))


def from_transformers(name: str, strides: tuple[int, ...], weights: str) -> Encoder:
    """A backbone of Hugging Face transformers: a repository's name or a folder."""
    transformers = _library("transformers", name, weights)
    try:
        if weights == "default":
            model = transformers.AutoBackbone.from_pretrained(name, out_features=None)
        else:
            model = transformers.AutoBackbone.from_config(transformers.AutoConfig.from_pretrained(name))
        model.out_features = model.stage_names
    except Exception as error:  # what a hub raises is its own affair
        raise _unfetched(f"hf:{name}", error) from error
    return TransformersEncoder(model, strides)


LOADERS = {"": from_torchvision, "timm": from_timm, "hf": from_transformers}
"""The loaders by the prefix of an encoder's name, before the colon."""


def _library(library: str, name: str, weights: str) -> Any:
    if weights not in ("default", "none"):
        raise ConfigError(f"encoder {name}: weights is {weights!r}, expected default or none")
    try:
        return import_module(library)
    except ImportError as error:
        raise DependencyError(
            f"encoder {name} needs {library}, which is not installed: pip install {library}"
        ) from error


def _unfetched(name: str, error: Exception) -> CheckpointError:
    why = " ".join(str(error).split())[:200]
    return CheckpointError(f"encoder {name} cannot be had here ({why}): fetch it where there is a network")
