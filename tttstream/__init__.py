"""tttstream: models for endless streams of frames; a small model inside each layer learns from every frame.

Public names are imported when they are first used, so that `import tttstream` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from tttstream import encoders, errors, inner, interop, map, masks, memory, models, sources, state, streams, views
    from tttstream.errors import TTTStreamError
    from tttstream.frames import Frame, Result
    from tttstream.memory import TTTLayer
    from tttstream.models import insert
    from tttstream.sources import open_source
    from tttstream.state import State, pack, unpack
    from tttstream.streams import MapStream, MaskStream, Stream, TeachStream

__all__ = [
    "Frame",
    "MapStream",
    "MaskStream",
    "Result",
    "State",
    "Stream",
    "TTTLayer",
    "TTTStreamError",
    "TeachStream",
    "__version__",
    "encoders",
    "errors",
    "inner",
    "insert",
    "interop",
    "map",
    "masks",
    "memory",
    "models",
    "open_source",
    "pack",
    "sources",
    "state",
    "streams",
    "unpack",
    "views",
]

_MODULE_OF = {
    "Frame": "frames",
    "MapStream": "streams",
    "MaskStream": "streams",
    "Result": "frames",
    "State": "state",
    "Stream": "streams",
    "TTTLayer": "memory",
    "TTTStreamError": "errors",
    "TeachStream": "streams",
    "insert": "models",
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
