"""Errors for users, by kind: each message says what was given, what was expected and what to do."""

from tttstream_kernels.errors import BackendError, ConfigError, ShapeError, TTTStreamError

__all__ = [
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "FrameError",
    "OutputError",
    "RankError",
    "ShapeError",
    "SourceError",
    "StateError",
    "TTTStreamError",
]


class StateError(TTTStreamError, ValueError):
    """A state does not belong to this memory or model, or cannot be packed."""


class CheckpointError(TTTStreamError, ValueError):
    """A file of weights or of a saved stream is missing, damaged, or belongs to another model."""


class SourceError(TTTStreamError, OSError):
    """A source of frames cannot be opened, or ended early."""


class DataError(TTTStreamError, ValueError):
    """A data set cannot be used: a file or folder is missing, empty, or has unexpected content."""


class FrameError(TTTStreamError, ValueError):
    """A frame cannot be used: wrong shape, wrong type, or pixels that are not finite."""


class OutputError(TTTStreamError, OSError):
    """A result cannot be written: no permission, no space, not a folder."""


class DependencyError(TTTStreamError, ImportError):
    """An optional package is not installed; the message names the extra that contains it."""


class RankError(TTTStreamError, RuntimeError):
    """Another process of a run over several ranks has ended, or does not answer."""
