"""The errors of the ops, and the root that all errors of tttstream share."""


class TTTStreamError(Exception):
    """Root of every error that tttstream raises on purpose; the command line prints it in one line and exits with 2."""


class ShapeError(TTTStreamError, ValueError):
    """A tensor has the wrong shape, type, device or values; the message names it."""


class ConfigError(TTTStreamError, ValueError):
    """A configuration names something that does not exist, or gives it a value that it cannot have."""


class BackendError(TTTStreamError, RuntimeError):
    """The backend that was asked for cannot run this call here; the message says why."""
