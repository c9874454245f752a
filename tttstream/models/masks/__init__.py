"""Mask models: a memory of objects that is asked about each frame and then learns it."""

from tttstream.models.masks.mixture import MixtureConfig, MixtureModel, MixtureState
from tttstream.models.masks.propagator import MaskOutput, Propagator
from tttstream.models.masks.target import TargetConfig, TargetModel, TargetState

__all__ = [
    "MaskOutput",
    "MixtureConfig",
    "MixtureModel",
    "MixtureState",
    "Propagator",
    "TargetConfig",
    "TargetModel",
    "TargetState",
]
