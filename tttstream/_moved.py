"""Old names of modules from 0.1. They warn, and will be removed in 0.3."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType

PLACES = {
    "backbone": "models.backbone",
    "claims": "io.claims",
    "classifier": "models.classifier",
    "detection": "evaluation.detection",
    "folders": "io.weights",
    "heads": "models.heads",
    "map.codes": "models.map.codes",
    "map.memory": "models.map.place_memory",
    "map.model": "models.map.model",
    "map.poses": "models.map.points",
    "mapstream": "streams.map",
    "masks.baselines": "evaluation.mask_baselines",
    "masks.folder": "masks",
    "masks.labels": "io.mask_files",
    "masks.metrics": "evaluation.davis",
    "masks.mixture": "models.masks.mixture",
    "masks.networks": "models.masks.networks",
    "masks.propagator": "models.masks.propagator",
    "masks.stream": "streams.masks",
    "model": "models.frame",
    "models.encoders": "encoders",
    "motion": "models.motion",
    "names": "io.names",
    "outputs": "io.outputs",
    "presets": "io.presets",
    "stream": "streams",
    "surprise": "streams.normaliser",
    "tokens": "models.tokens",
    "train.spliced": "evaluation.spliced",
    "views.video": "views.writer",
}
"""Old name of a module under `tttstream`: its new name."""


def moved(old: str, stacklevel: int) -> ModuleType:
    """The module with the old name `tttstream.<old>`, with a DeprecationWarning."""
    text = f"tttstream.{old} is now tttstream.{PLACES[old]}; the old name will be removed in 0.3"
    warnings.warn(text, DeprecationWarning, stacklevel + 1)
    return import_module(f"tttstream.{PLACES[old]}")


class Finder(MetaPathFinder, Loader):
    """Finds modules under their old names."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for any other."""
        package, _, name = fullname.partition(".")
        return spec_from_loader(fullname, self) if package == "tttstream" and name in PLACES else None

    def exec_module(self, module: ModuleType) -> None:
        """Register the module under its old name."""
        sys.modules[module.__name__] = moved(module.__name__.partition(".")[2], 2)


def install() -> None:
    """Install the finder before the search in folders, which would load a module a second time."""
    sys.meta_path.insert(0, Finder())
