"""The map: a memory of places, which predicts the picture at a pose before the frame is processed."""

from tttstream.models.map import MapConfig, MapModel, MapOutput
from tttstream.streams.map import MapStream

__all__ = ["MapConfig", "MapModel", "MapOutput", "MapStream"]
