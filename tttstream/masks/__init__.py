"""Mask propagation: masks that follow objects through a stream, carried by a memory that learns from every frame."""

from tttstream.masks.folder import load, save
from tttstream.masks.model import MaskConfig, MaskModel, MaskOutput, MaskState
from tttstream.masks.stream import MaskResult, MaskStream

__all__ = ["MaskConfig", "MaskModel", "MaskOutput", "MaskResult", "MaskState", "MaskStream", "load", "save"]
