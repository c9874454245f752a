"""Mask propagation: masks that follow objects through a stream, carried by a memory that learns from every frame."""

from tttstream.masks.folder import load, save
from tttstream.masks.mixture import MixtureConfig, MixtureModel, MixtureState
from tttstream.masks.propagator import MaskOutput, Propagator
from tttstream.masks.stream import MaskResult, MaskStream

__all__ = [
    "MaskOutput",
    "MaskResult",
    "MaskStream",
    "MixtureConfig",
    "MixtureModel",
    "MixtureState",
    "Propagator",
    "load",
    "save",
]
