"""The memories by name: how they are found and built. `tttstream.memory.catalogue` lists them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tttstream.errors import ConfigError
from tttstream.memory.base import Memory


@dataclass(frozen=True)
class Entry:
    """One memory. make: called with dim, heads (where it has heads) and its options. about: what it is, one line."""

    make: Callable[..., Memory]
    about: str


CATALOGUE: dict[str, Entry] = {}
"""Every memory; `tttstream.memory.catalogue` fills it."""


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(CATALOGUE)


def takes(name: str) -> list[str]:
    """The options that `build` takes for a memory besides dim and heads. Raises ConfigError for an unknown name."""
    if name not in CATALOGUE:
        raise ConfigError(f"there is no memory {name!r}: expected one of {', '.join(CATALOGUE)}")
    known = inspect.signature(CATALOGUE[name].make).parameters
    return [option for option in known if option not in ("dim", "heads", "inner")]


def build(name: str, *, dim: int, heads: int = 1, **options: Any) -> Memory:
    """A new memory by name.

    name: one of `names()`.
    dim: width of a token.
    heads: number of heads; memories without heads (lstm, gru) do not look at it.
    options: what the class takes besides: `TTTLayer` for ttt_*, `Window` (window) and so on.

    Raises ConfigError for an unknown name, an unknown option, or sizes that do not fit.
    """
    taken, make = takes(name), CATALOGUE[name].make
    unknown = sorted(set(options) - set(taken))
    if unknown:
        raise ConfigError(f"memory {name!r} has no option {', '.join(unknown)}: it takes {', '.join(taken) or 'none'}")
    return make(dim=dim, **({"heads": heads} if "heads" in inspect.signature(make).parameters else {}), **options)
