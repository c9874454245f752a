"""Mask propagation: a memory that learns from every frame predicts the masks of objects in a stream."""

from tttstream.io.mask_files import VOID, read_mask
from tttstream.models.masks import (
    MaskOutput,
    MixtureConfig,
    MixtureModel,
    MixtureState,
    Propagator,
    TargetConfig,
    TargetModel,
    TargetState,
)
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
    "TargetConfig",
    "TargetModel",
    "TargetState",
    "read_mask",
]
