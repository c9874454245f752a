"""What can go wrong between an agent and its environment, by kind; all are errors of tttstream."""

from __future__ import annotations

from tttstream.errors import TTTStreamError

__all__ = ["EnvError", "ObservationError", "SpaceError", "TrainingError"]


class SpaceError(TTTStreamError, ValueError):
    """A gymnasium space that a policy cannot see or act in."""


class ObservationError(TTTStreamError, ValueError):
    """An observation, action or reward that does not fit its space, or is not finite. row: which of a batch, if one."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class EnvError(TTTStreamError, RuntimeError):
    """An environment is unknown, failed, or was closed."""


class TrainingError(TTTStreamError, RuntimeError):
    """Training cannot begin, go on, or be taken up again."""
