"""One stream over several ranks: each rank has a part in time and passes the states of memories to the next."""

from tttstream.ranks.line import Line
from tttstream.ranks.relay import Relay

__all__ = ["Line", "Relay"]
