"""The map: a memory of what was seen where, which predicts what is to be seen at a pose before the frame is taken."""

from __future__ import annotations

import os
import warnings

from tttstream.models import load_as
from tttstream.models.map import MapConfig, MapModel, MapOutput
from tttstream.streams.map import MapStream

__all__ = ["MapConfig", "MapModel", "MapOutput", "MapStream", "load"]

__path__: list[str] = []  # so that Python asks `tttstream._moved` for the modules that were here


def load(name_or_folder: str | os.PathLike[str] = "map") -> MapModel:
    """The old name of `tttstream.models.load` for maps."""
    warnings.warn("tttstream.map.load is now tttstream.models.load; it goes in 0.3", DeprecationWarning, stacklevel=2)
    return load_as(MapModel, name_or_folder)
