"""Snapshots: the memory of every camera in a folder, one file each; a file is complete or absent."""

import json
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tttstream import state as states
from tttstream.errors import CheckpointError
from tttstream.io.outputs import OutputFolder, saving
from tttstream.live.chores import Chores

SUFFIX = ".safetensors"
KEY = "live"  # metadata key of the notes of a camera


class Kept(NamedTuple):
    """The content of a file: the state of a memory (never changed in place) and its metadata."""

    state: states.State
    texts: dict[str, str]


class Snapshots:
    """The files ID.safetensors of a folder, ID+KIND.safetensors of companions, and ID.NAME.safetensors of memories
    saved under a name.

    At most one snapshot of each camera waits to be written, the newest. Raises OutputError if the folder cannot be
    written or another run writes there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = OutputFolder(folder)
        self._chores = Chores("snapshots")
        self._lock = threading.Lock()
        self._waiting: dict[Path, Kept] = {}

    @property
    def trouble(self) -> str | None:
        """Why the last file was not written, None if it was."""
        return self._chores.trouble

    def path(self, camera: str, name: str = "") -> Path:
        """The file of a camera, or of a save of a camera."""
        return self._folder.path / f"{camera}{'.' if name else ''}{name}{SUFFIX}"

    def write(self, path: Path, kept: Kept) -> None:
        """Queue a file for writing; it replaces an earlier file with this path."""
        with self._lock:
            new = path not in self._waiting
            self._waiting[path] = kept
        if new and not self._chores.add(lambda: self._write(path)):
            with self._lock:
                self._waiting.pop(path, None)

    def _write(self, path: Path) -> None:
        with self._lock:
            kept = self._waiting.pop(path)
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        states.save(kept.state, path, **kept.texts)

    def remove(self, path: Path) -> None:
        """Queue the removal of a file, if it exists."""
        if path.exists():
            self._chores.add(lambda: path.unlink(missing_ok=True))

    def names(self, camera: str) -> list[str]:
        """The memories of a camera that users saved."""
        found = (re.fullmatch(re.escape(camera) + r"\.([A-Za-z0-9_-]+)" + re.escape(SUFFIX), path.name)
                 for path in self._folder.path.iterdir())  # fmt: skip
        return sorted(match[1] for match in found if match)

    def close(self) -> None:
        """Write the queued files."""
        self._chores.close(30.0)
        self._folder.release()


def about(path: Path, key: str = KEY) -> dict[str, Any]:
    """The notes of a camera, or of its companion, in its file. Raises CheckpointError if there are none."""
    text = states.metadata(path).get(key)
    if text is None:
        raise CheckpointError(f"{path} is no snapshot of `tttstream live`")
    return dict(json.loads(text))
