"""Agents with a memory that learns: policies, wrappers and adapters for gymnasium environments.

Public names are imported at their first use, so that `--help` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tttstream import __version__

if TYPE_CHECKING:
    from tttstream_agents.checkpoint import load_policy
    from tttstream_agents.config import Config
    from tttstream_agents.places import MapObservation, PoseObservation
    from tttstream_agents.policy import MemoryPolicy
    from tttstream_agents.reader import MemoryReader, pretrain
    from tttstream_agents.settings import ResetOptions, SampledTimeLimit, SomeActions
    from tttstream_agents.trunk import PolicyState
    from tttstream_agents.wrappers import (
        ActionMaskObservation,
        SurpriseReward,
        SurpriseVectorReward,
        TTTMemoryObservation,
        TTTMemoryVectorObservation,
    )

_MODULE_OF = {
    "ActionMaskObservation": "wrappers",
    "Config": "config",
    "MapObservation": "places",
    "MemoryPolicy": "policy",
    "MemoryReader": "reader",
    "PolicyState": "trunk",
    "PoseObservation": "places",
    "ResetOptions": "settings",
    "SampledTimeLimit": "settings",
    "SomeActions": "settings",
    "SurpriseReward": "wrappers",
    "SurpriseVectorReward": "wrappers",
    "TTTMemoryObservation": "wrappers",
    "TTTMemoryVectorObservation": "wrappers",
    "load_policy": "checkpoint",
    "pretrain": "reader",
}

__all__ = [
    "ActionMaskObservation",
    "Config",
    "MapObservation",
    "MemoryPolicy",
    "MemoryReader",
    "PolicyState",
    "PoseObservation",
    "ResetOptions",
    "SampledTimeLimit",
    "SomeActions",
    "SurpriseReward",
    "SurpriseVectorReward",
    "TTTMemoryObservation",
    "TTTMemoryVectorObservation",
    "__version__",
    "load_policy",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'tttstream_agents' has no attribute {name!r}")
    value = getattr(import_module(f"tttstream_agents.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
