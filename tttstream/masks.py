"""Mask propagation: masks that follow objects through a stream, carried by a memory that learns from every frame."""

from tttstream.io.mask_files import VOID, read_mask
from tttstream.models.masks import MaskOutput, MixtureConfig, MixtureModel, MixtureState, Propagator, load, save
from tttstream.streams.masks import MaskResult, MaskStream

__all__ = [
    "VOID",
    "MaskOutput",
    "MaskResult",
    "MaskStream",
    "MixtureConfig",
    "MixtureModel",
    "MixtureState",
    "Propagator",
    "load",
    "read_mask",
    "save",
]

__path__: list[str] = []  # so that Python asks `tttstream._moved` for the modules that were here
