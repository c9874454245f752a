"""A camera, read with OpenCV in a thread that keeps only the newest frame."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.frames import Frame
from tttstream.io.names import shown
from tttstream.sources.live import Asked, Live

try:
    import cv2
except ImportError as error:
    raise DependencyError("reading a camera needs OpenCV: pip install opencv-python") from error

PATIENCE_S = 5.0  # without a new frame for so long, a camera counts as lost
TRIES = 10  # a camera may sometimes fail to return a frame


class Camera(Live):
    """A live camera. A reader that is slower than the camera gets the newest frame, never an old one.

    device: its number, or a device such as /dev/video0. The path of a video file simulates a camera: the file plays at
    its own rate, independent of the reader, once or, with `loop`, repeatedly, with the frames of `Video`. on_error: the
    reaction if the camera is lost (unplugged, or without a frame for five seconds). "skip" ends the stream and sets
    `truncated`; "raise" raises SourceError. Frames are numbered in the order in which they are read, `time_s` counts
    from the first one read. `missed` is the number of frames that were not read. pose: a callable that returns the pose
    of the camera, or None if it is unknown. It is called at each capture, in the thread of the camera, with the capture
    time (`time.monotonic()`). Or a `tttstream.poses.Feed`. A frame without a pose counts in `unposed`; with "raise" it
    raises SourceError.

    Raises SourceError if there is no such camera or it returns no picture.
    """

    def __init__(
        self,
        device: int | str,
        *,
        loop: bool = False,
        on_error: str = "skip",
        pose: Callable[[float], ArrayLike | None] | None = None,
    ) -> None:
        if isinstance(device, str) and (number := re.fullmatch(r"/dev/video(\d+)", os.path.realpath(device))):
            device = int(number[1])
        self.name = f"camera {device}" if isinstance(device, int) else shown(os.path.basename(device))
        self._device, self._loop, self._strict = device, loop, on_error == "raise"
        self._is_file = isinstance(device, str)
        self._asked = None if pose is None else Asked(pose, self.name, strict=self._strict)
        self.about = "" if self._asked is None else self._asked.text
        # OpenCV ends the process at a negative number, and writes to stderr about a missing file.
        if device < 0 if isinstance(device, int) else not os.path.isfile(device):
            raise SourceError(
                f"there is no {self.name}; give a number (0 is the first camera), or the path of a video file"
            )
        self._capture = self._opened()
        ok, first = self._capture.read()
        if not ok:
            self._capture.release()
            hint = "try another number (0 is the first), and check that no other program uses it"
            raise SourceError(f"{self.name} cannot be opened or gives no picture; {hint}")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(rate) if 0 < rate < 1000 else None
        self.missed = 0
        self._changed = threading.Condition()
        self._newest: tuple[NDArray[np.uint8], float, Any] | None = self._captured(first)
        self._over = self._stop = False
        self._thread = threading.Thread(target=self._follow, name=f"tttstream {self.name}", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._take()) is not None:
            yield frame

    def _take(self) -> Frame | None:
        """Wait for a frame that was not read yet; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._over, timeout=PATIENCE_S)
            newest, self._newest = self._newest, None
            ended = self._over and (self._stop or self._is_file)
        if newest is None:
            if not ended:
                self._lost()
            return None
        image, moment, pose = newest
        frame = self._numbered(image if self._is_file else cv2.cvtColor(image, cv2.COLOR_BGR2RGB), moment)
        return frame if self._asked is None else self._asked.put(frame, pose)

    def _opened(self) -> Any:
        return _Film(self._device) if isinstance(self._device, str) else _open(self._device)

    def _lost(self) -> None:
        self.truncated = True
        if self._strict:
            raise SourceError(f"{self.name} sends no more frames; check that it is plugged in, and start again")

    def _captured(self, image: Any) -> tuple[NDArray[np.uint8], float, Any]:
        """A picture with the time of its capture, and the answer to the request for the pose at that time."""
        moment = time.monotonic()
        return np.asarray(image, np.uint8), moment, None if self._asked is None else self._asked.ask(moment)

    def _follow(self) -> None:
        """Read every frame in a separate thread, and keep the newest."""
        step = 1 / (self.fps or 30.0)
        due = time.monotonic()
        failures = 0
        while not self._stop and failures < TRIES:
            if self._is_file:  # a file does not wait for its time by itself
                due = max(due + step, time.monotonic() - 1)
                time.sleep(max(0.0, due - time.monotonic()))
            ok, image = self._capture.read()
            if not ok and self._is_file:
                if not self._loop:
                    break
                self._capture.release()
                self._capture = self._opened()
            if not ok:
                failures += 1
                if not self._is_file:
                    time.sleep(0.05)
                continue
            failures = 0
            captured = self._captured(image)
            with self._changed:
                self.missed += self._newest is not None
                self._newest = captured
                self._changed.notify_all()
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the thread and release the device."""
        self._stop = True
        self._thread.join(PATIENCE_S)
        if not self._thread.is_alive():  # otherwise the thread blocks in the driver, and a release would block too
            self._capture.release()


class _Film:
    """A video file with the interface of an OpenCV camera, but in RGB."""

    def __init__(self, path: str) -> None:
        from tttstream.sources.video import Video

        self._video = Video(path)
        self._frames = iter(self._video)

    def get(self, _: int) -> float:
        """The frame rate, 0 if it is unknown."""
        return self._video.fps or 0.0

    def read(self) -> tuple[bool, Any]:
        """(whether there is another frame, the frame)."""
        frame = next(self._frames, None)
        return frame is not None, None if frame is None else frame.image

    def release(self) -> None:
        self._video.close()


def _open(device: int) -> cv2.VideoCapture:
    with _silence():
        return cv2.VideoCapture(device)


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the warnings of OpenCV on stderr: it reports each of the back ends that fails."""
    logging = cv2.utils.logging
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
