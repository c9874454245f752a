"""tttstream: frames go in one at a time, for ever; a small model inside each layer learns from every one of them.

Public names are imported when they are first used, so that `import tttstream` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tttstream import errors, inner, interop, memory, models, sources, state, views
    from tttstream.errors import TTTStreamError
    from tttstream.frames import Frame, Result
    from tttstream.mapstream import MapStream
    from tttstream.memory import TTTLayer
    from tttstream.sources import open_source
    from tttstream.state import State, pack, unpack
    from tttstream.stream import Stream

__all__ = [
    "Frame",
    "MapStream",
    "Result",
    "State",
    "Stream",
    "TTTLayer",
    "TTTStreamError",
    "__version__",
    "errors",
    "inner",
    "interop",
    "memory",
    "models",
    "open_source",
    "pack",
    "sources",
    "state",
    "unpack",
    "views",
]

_MODULE_OF = {
    "Frame": "frames",
    "MapStream": "mapstream",
    "Result": "frames",
    "State": "state",
    "Stream": "stream",
    "TTTLayer": "memory",
    "TTTStreamError": "errors",
    "open_source": "sources",
    "pack": "state",
    "unpack": "state",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(f"tttstream.{_MODULE_OF[name]}"), name)
    elif name in __all__:
        value = import_module(f"tttstream.{name}")
    else:
        raise AttributeError(f"module 'tttstream' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
