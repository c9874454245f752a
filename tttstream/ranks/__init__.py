"""One stream over several ranks: each holds a part in time, and the states of memories pass from rank to rank."""

from tttstream.ranks.line import Line
from tttstream.ranks.relay import Relay

__all__ = ["Line", "Relay"]
