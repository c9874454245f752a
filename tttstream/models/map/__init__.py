"""The map: a memory of what was seen where, which predicts what is to be seen at a pose before the frame is taken."""

from tttstream.models.map.model import MapConfig, MapModel, MapOutput

__all__ = ["MapConfig", "MapModel", "MapOutput"]
