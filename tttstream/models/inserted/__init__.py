"""Memories inside existing networks of frames."""

from tttstream.models.inserted.insert import insert
from tttstream.models.inserted.layouts import Shape
from tttstream.models.inserted.model import Inserted, InsertedConfig, InsertedState, load
from tttstream.models.inserted.place import Place

__all__ = ["Inserted", "InsertedConfig", "InsertedState", "Place", "Shape", "insert", "load"]
