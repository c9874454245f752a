"""Companion: a second stream over the frames of a camera, in its own thread, that processes as many as it can."""

import json
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

from tttstream.errors import ConfigError
from tttstream.frames import Frame
from tttstream.live.boxes import Box
from tttstream.live.snapshots import Kept, about
from tttstream.streams import Session

NOTE = "companion"  # metadata key of the values for `restore`
PARTING_S = 2.0  # time limit at the end for the current frame


class Companion(ABC):
    """Processes the newest frame of a camera after it has finished the one before, if it has anything to find. The
    camera does not wait for it. Jobs run between two frames.

    KIND: in names of files. stream: see the subclass; only the thread of the companion uses it. trouble: of the last
    frame.
    """

    KIND: ClassVar[str]
    stream: Session

    def __init__(self, name: str) -> None:
        self.trouble = ""
        self._newest: Frame | None = None
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"tttstream {self.KIND} {name}", daemon=True)
        self._thread.start()

    @property
    @abstractmethod
    def wanted(self) -> bool:
        """Whether there is anything to find."""

    @abstractmethod
    def look(self, frame: Frame) -> None:
        """Process a frame."""

    def note(self) -> dict[str, Any]:
        """The values that `restore` needs in addition to the stream (JSON-able); none unless a kind has some."""
        return {}

    def restore(self, note: dict[str, Any]) -> None:  # noqa: B027
        """Restore the values of `note`; the stream is already loaded."""

    def put(self, frame: Frame) -> None:
        """Set the newest frame."""
        if self.wanted:
            with self._changed:
                self._newest = frame
                self._changed.notify()

    def do(self, job: Callable[[], Any]) -> Future[Any]:
        """Run a job between two frames."""
        future: Future[Any] = Future()
        with self._changed:
            if self._over:
                future.set_exception(ConfigError("this camera has ended"))
                return future
            self._jobs.append((job, future))
            self._changed.notify()
        return future

    def kept(self) -> Kept | None:
        """The values needed to resume, None if nothing is followed or taught."""
        if not self.wanted:
            return None
        return Kept(self.stream.state, {**self.stream.notes(), NOTE: json.dumps(self.note())})

    def load(self, path: Path) -> None:
        """Resume from a file. Raises CheckpointError."""

        def job() -> None:
            self.stream.load(path)
            self.restore(about(path, NOTE))

        self.do(job).result()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._jobs or self._over)
                jobs, self._jobs = self._jobs, deque()
                frame, self._newest = self._newest, None
                over = self._over
            for job, future in jobs:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(job())
                    except BaseException as error:
                        future.set_exception(error)
            if over:
                return
            if frame is not None and self.wanted:
                try:
                    self.look(frame)
                    self.trouble = ""
                except Exception as error:  # an error of one frame: the next may succeed
                    self.trouble = " ".join(str(error).split())[:300]

    def close(self) -> None:
        """End after the current frame."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(PARTING_S)


def in_pixels(box: Box, frame: Frame) -> Sequence[float]:
    """Left, top, width and height in pixels of a box (x0, y0, x1, y1) in 0..1 of a frame."""
    height, width = frame.image.shape[:2]
    x0, y0, x1, y1 = box
    return x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height
