"""Taught things: windows of frames as keys, and a memory that binds them to labels."""

from tttstream.models.teach.model import CELL, TeachConfig, TeachModel
from tttstream.models.teach.windows import everywhere, means, seen, windows

__all__ = ["CELL", "TeachConfig", "TeachModel", "everywhere", "means", "seen", "windows"]
