"""Memories by name. Every one is called as `y, state = memory(x, state, reset, lengths)`; see `Memory`."""

from __future__ import annotations

from tttstream.memory.attention import Attention, Window
from tttstream.memory.base import Memory
from tttstream.memory.catalogue import build, names
from tttstream.memory.matrix import Additive, Delta, GatedDelta
from tttstream.memory.recurrent import GRU, LSTM
from tttstream.memory.ttt import TTTLayer

__all__ = [
    "GRU",
    "LSTM",
    "Additive",
    "Attention",
    "Delta",
    "GatedDelta",
    "Memory",
    "TTTLayer",
    "Window",
    "build",
    "names",
]
