"""Errors of agents and environments; all are errors of tttstream."""

from __future__ import annotations

from tttstream.errors import TTTStreamError

__all__ = ["EnvError", "ObservationError", "SpaceError", "TrainingError", "one_line"]


class SpaceError(TTTStreamError, ValueError):
    """A policy does not support a gymnasium space."""


class ObservationError(TTTStreamError, ValueError):
    """An observation, action or reward does not fit its space or is not finite. row: its index in the batch."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class EnvError(TTTStreamError, RuntimeError):
    """An environment is unknown, failed or is closed."""


class TrainingError(TTTStreamError, RuntimeError):
    """Training cannot start, continue or resume."""


def one_line(error: BaseException) -> str:
    """The type and the message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
