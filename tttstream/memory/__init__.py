"""Memories by name. Every one is called as `y, state = memory(x, state, reset, lengths)`; see `Memory`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from tttstream.errors import ShapeError
from tttstream.memory.attention import Attention, Window
from tttstream.memory.base import Memory
from tttstream.memory.recurrent import GRU, LSTM
from tttstream.memory.ttt import TTTLayer

__all__ = ["GRU", "LSTM", "Attention", "Memory", "TTTLayer", "Window", "build", "names"]


_MEMORIES: dict[str, Callable[..., Memory]] = {
    "ttt_linear": partial(TTTLayer, inner="linear"),
    "ttt_mlp": partial(TTTLayer, inner="mlp"),
    "ttt_conv": partial(TTTLayer, inner="conv", causal="frame"),
    "ttt_swiglu": partial(TTTLayer, inner="swiglu", causal="frame"),
    "attention": Attention,
    "window": Window,
    "lstm": LSTM,
    "gru": GRU,
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(_MEMORIES)


def build(name: str, *, dim: int, heads: int = 1, **options: Any) -> Memory:
    """A new memory by name.

    name: one of `names()`.
    dim: width of a token.
    heads: number of heads; memories without heads (lstm, gru) do not look at it.
    options: what the class takes besides: `TTTLayer` for ttt_*, `Window` (window) and so on.

    Raises ShapeError for an unknown name, an unknown option, or sizes that do not fit.
    """
    if name not in _MEMORIES:
        raise ShapeError(f"there is no memory {name!r}: expected one of {', '.join(_MEMORIES)}")
    factory = _MEMORIES[name]
    known = inspect.signature(factory).parameters
    taken = [option for option in known if option not in ("dim", "heads", "inner")]
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise ShapeError(f"memory {name!r} has no option {', '.join(unknown)}: it takes {', '.join(taken) or 'none'}")
    return factory(dim=dim, **({"heads": heads} if "heads" in known else {}), **options)
