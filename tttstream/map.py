"""The map: a memory of what was seen where, which predicts what is to be seen at a pose before the frame is taken."""

from __future__ import annotations

from tttstream.models.map import MapConfig, MapModel, MapOutput
from tttstream.streams.map import MapStream

__all__ = ["MapConfig", "MapModel", "MapOutput", "MapStream"]
