"""Gallery: the events of all cameras with their pictures, in memory or in a folder."""

import json
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tttstream.errors import OutputError
from tttstream.io.outputs import ByteFile, OutputFolder, saving, write_report
from tttstream.live.chores import Chores
from tttstream.live.film import Clip

KEPT = 1000  # events in the folder; older ones are removed
IN_MEMORY = 200  # events whose pictures are kept without a folder
PICTURES = ("frame", "expected", "surprise")
NAME = re.compile(r"(\d{6})-[A-Za-z0-9_-]+")


def moment(frame: int, time_s: float) -> dict[str, Any]:
    """The number and time of a frame in its source, and the current time of day."""
    return {
        "frame": frame,
        "time_s": round(time_s, 3),
        "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }


class Gallery:
    """Events by number, the newest KEPT of them.

    folder: in which each event has a folder NUMBER-CAMERA with event.json, frame.jpg, surprise.jpg, expected.jpg and
    clip.mp4; None keeps the pictures of the last IN_MEMORY events in memory, and no clips. told: is called with "begin"
    or "end" and the event. Raises OutputError if the folder cannot be written or another run writes there.
    """

    def __init__(self, folder: Path | None = None, told: Callable[[str, dict[str, Any]], None] | None = None) -> None:
        self._told = told or (lambda kind, event: None)
        self._lock = threading.Lock()
        self._events: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._pictures: OrderedDict[int, dict[str, bytes]] = OrderedDict()
        self._folder = None if folder is None else OutputFolder(folder)
        self._chores = Chores("events")
        if folder is not None:
            self._read(folder)

    @property
    def trouble(self) -> str | None:
        """Why the last file was not written, None if it was."""
        return self._chores.trouble

    @property
    def clips(self) -> bool:
        """Whether clips are kept."""
        return self._folder is not None

    def _read(self, folder: Path) -> None:
        """Read the events of an earlier run."""
        for path in sorted(folder.iterdir()):
            found = NAME.fullmatch(path.name)
            if found and path.is_dir():
                with suppress(OSError, ValueError):  # an incomplete event is ignored
                    event = json.loads((path / "event.json").read_text(encoding="utf-8"))
                    self._events[int(found[1])] = event | {"number": int(found[1])}

    def begin(self, camera: str, label: str, begins: dict[str, Any], peak: float, pictures: dict[str, bytes]) -> int:
        """Add an event with its pictures as JPEG; returns its number."""
        with self._lock:
            number = 1 + max(self._events, default=0)
            event: dict[str, Any] = {
                "number": number, "camera": camera, "label": label, "begins": begins, "ends": None,
                "duration_s": None, "peak": round(peak, 3), "has": sorted(pictures),
            }  # fmt: skip
            self._events[number] = event
            if self._folder is None:
                self._pictures[number] = pictures
                while len(self._pictures) > IN_MEMORY:
                    old, _ = self._pictures.popitem(last=False)
                    self._events[old] = self._events[old] | {"has": []}
            gone = []
            while len(self._events) > KEPT:
                gone.append(self._events.popitem(last=False)[1])
        if self._folder is not None:
            self._chores.add(lambda: self._write(event, pictures, gone))
        self._told("begin", event)
        return number

    def end(self, number: int, ends: dict[str, Any], peak: float) -> None:
        """Set the end of an event."""
        duration = ends["time_s"] - self._events[number]["begins"]["time_s"] if number in self._events else 0.0
        event = self._change(number, ends=ends, peak=round(peak, 3), duration_s=round(max(duration, 0.0), 3))
        if event is not None:
            self._told("end", event)

    def add_clip(self, clip: Clip, fps: float) -> None:
        """Write the clip of an event."""

        def write() -> None:
            event = self.get(clip.number)
            if event is not None:
                path = self._place(event)
                with saving(path):
                    path.mkdir(exist_ok=True)
                clip.write(path / "clip.mp4", fps)
                self._change(clip.number, has=sorted({*event["has"], "clip"}))

        if self._folder is not None and self.get(clip.number) is not None:
            self._chores.add(write)

    def _change(self, number: int, **news: Any) -> dict[str, Any] | None:
        with self._lock:
            if number not in self._events:
                return None
            event = self._events[number] = self._events[number] | news
        if self._folder is not None:
            self._chores.add(lambda: self._note(number))
        return event

    def _place(self, event: dict[str, Any]) -> Path:
        assert self._folder is not None
        return self._folder.path / f"{event['number']:06d}-{event['camera']}"

    def _write(self, event: dict[str, Any], pictures: dict[str, bytes], gone: list[dict[str, Any]]) -> None:
        for old in gone:
            shutil.rmtree(self._place(old), ignore_errors=True)
        path = self._place(event)
        with saving(path):
            path.mkdir(exist_ok=True)
            for name, data in pictures.items():
                with ByteFile(path / f"{name}.jpg", claim=False) as file:
                    file.append(data)
        self._note(event["number"])

    def _note(self, number: int) -> None:
        event = self.get(number)
        if event is not None:
            path = self._place(event)
            with saving(path):
                path.mkdir(exist_ok=True)
            write_report(path / "event.json", event)

    def get(self, number: int) -> dict[str, Any] | None:
        """An event by its number, None if there is none."""
        with self._lock:
            event = self._events.get(number)
            return None if event is None else dict(event)

    def list(self, after: int = -1, limit: int = 100, camera: str | None = None) -> list[dict[str, Any]]:
        """The newest events with a number above `after`, of one camera or all, the newest last."""
        with self._lock:
            events = [
                dict(event)
                for number, event in self._events.items()
                if number > after and camera in (None, event["camera"])
            ]
        return events[-limit:] if limit > 0 else []

    def content(self, number: int, what: str) -> bytes | Path | None:
        """A picture of an event as JPEG, or the path of its clip; None if there is none yet."""
        event = self.get(number)
        if event is None or what not in event["has"]:
            return None
        if self._folder is None:
            with self._lock:
                return self._pictures.get(number, {}).get(what)
        path = self._place(event) / (f"{what}.mp4" if what == "clip" else f"{what}.jpg")
        if what == "clip":
            return path if path.is_file() else None
        try:
            return path.read_bytes()
        except OSError:
            return None  # it is still being written

    def close(self) -> None:
        """Write the queued files."""
        self._chores.close()
        if self._folder is not None:
            with suppress(OutputError):
                self._folder.release()
