"""One stream over several ranks: each holds a part of it in time, and the states of memories are handed along."""

from tttstream.ranks.line import Line
from tttstream.ranks.relay import Relay

__all__ = ["Line", "Relay"]
