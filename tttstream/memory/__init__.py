"""Memories by name. Every one is called as `y, state = memory(x, state, reset, lengths)`; see `Memory`."""

from tttstream.memory.attention import Attention, Window
from tttstream.memory.base import Memory
from tttstream.memory.catalogue import build, names, takes
from tttstream.memory.heads import MixedHeads
from tttstream.memory.mamba2 import Mamba2
from tttstream.memory.matrix import Additive, Delta, GatedDelta, KernelDelta
from tttstream.memory.mesa import Mesa
from tttstream.memory.mixed import Mixed
from tttstream.memory.nested import Nested
from tttstream.memory.recurrent import GRU, LSTM
from tttstream.memory.rwkv7 import RWKV7
from tttstream.memory.slots import Slots
from tttstream.memory.ttt import TTTLayer

__all__ = [
    "GRU",
    "LSTM",
    "RWKV7",
    "Additive",
    "Attention",
    "Delta",
    "GatedDelta",
    "KernelDelta",
    "Mamba2",
    "Memory",
    "Mesa",
    "Mixed",
    "MixedHeads",
    "Nested",
    "Slots",
    "TTTLayer",
    "Window",
    "build",
    "names",
    "takes",
]
