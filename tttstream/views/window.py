"""A window that shows pictures and returns the pressed keys. Checks the display before it opens a window."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ImageGrab

from tttstream.errors import OutputError

INSTEAD = "leave --show out and give --out DIR: the same picture is written to DIR/overlay.mp4"
KEYS = "q quit, f forget, l learning on/off, space pause"
PAINTED_S = 0.5  # a window shows its picture after this time
OPENINGS = 8
_PROBE = "import cv2; cv2.namedWindow('probe'); cv2.destroyAllWindows(); print('open', flush=True); input()"


@contextmanager
def reachable_display(instead: str = INSTEAD) -> Iterator[None]:
    """Raise OutputError with an alternative if no window can be opened; otherwise run the block.

    OpenCV aborts the whole process if it cannot reach a display, so another process tries it first. This process keeps
    the display open during the block: a display without a client may close or reset itself.
    """
    loaded = list(sys.modules)
    if "av" in loaded and loaded.index("av") < loaded.index("cv2"):
        raise OutputError("PyAV was imported before OpenCV, whose windows hang then: import cv2 first")
    backend = re.search(r"^\s*GUI:\s*(\S+)", cv2.getBuildInformation(), re.MULTILINE)
    if backend and backend.group(1) == "NONE":
        raise OutputError(f"this OpenCV has no windows (opencv-python-headless): install opencv-python, or {instead}")
    display = ""
    if sys.platform.startswith("linux"):
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or ""
        if not display:
            raise OutputError(f"no display to show a window on (DISPLAY is not set): {instead}")
    probe = subprocess.Popen(
        [sys.executable, "-c", _PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    limit = threading.Timer(60, probe.kill)
    limit.start()
    try:
        assert probe.stdout is not None
        if not probe.stdout.readline():
            raise OutputError(f"no window can be opened on the display {display!r}: {instead}")
        yield
    finally:
        limit.cancel()
        probe.kill()
        probe.communicate()


def _grabbable() -> bool:
    """Whether the pixels of the screen can be read: with X, but not with X on Wayland."""
    return (
        sys.platform.startswith("linux") and bool(os.environ.get("DISPLAY")) and not os.environ.get("WAYLAND_DISPLAY")
    )


class Viewer:
    """One window. `show` draws a picture and returns the pressed key ("q" after the window was closed).

    instead: the advice in the message on a machine without a display.
    """

    def __init__(self, title: str = "tttstream", instead: str = INSTEAD) -> None:
        self.title = title
        self._openings = 0
        with reachable_display(instead):
            self._open()

    def _open(self) -> None:
        cv2.namedWindow(self.title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._sized, self._painted = False, not _grabbable()
        self._openings += 1
        self._opened_s = time.monotonic()

    def show(self, picture: NDArray[np.uint8], wait_ms: int = 1) -> str:
        """Show a picture [H, W, 3] RGB for at least `wait_ms`; the key pressed, "" for none."""
        cv2.imshow(self.title, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        key = self.key(wait_ms)
        if not self._sized:  # not before it is on the screen, or it may be lost
            cv2.resizeWindow(self.title, picture.shape[1], picture.shape[0])
            self._sized = True
        elif not self._painted and picture.any() and key != "q" and time.monotonic() > self._opened_s + PAINTED_S:
            self._see()
        return key

    def _see(self) -> None:
        """Reopen the window if it is black, and stop checking after a few attempts.

        In about one of ten starts Qt loses the events of X for a new window, and never paints it.
        """
        left, top, width, height = cv2.getWindowImageRect(self.title)
        try:
            screen = np.asarray(ImageGrab.grab(xdisplay=os.environ["DISPLAY"]))
        except OSError:  # a display whose pixels cannot be read
            self._painted = True
            return
        seen = screen[max(top, 0) : top + height, max(left, 0) : left + width]
        self._painted = bool(seen.any()) or not seen.size or self._openings == OPENINGS
        if not self._painted:
            cv2.destroyWindow(self.title)
            self._open()

    def key(self, wait_ms: int = 30) -> str:
        """The key pressed within `wait_ms`, "" for none."""
        code = cv2.waitKey(wait_ms)
        if code < 0 and cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        return chr(code & 0xFF) if code >= 0 else ""

    def close(self) -> None:
        """Close the window. Safe to call twice."""
        if cv2.getWindowProperty(self.title, cv2.WND_PROP_VISIBLE) >= 1:
            cv2.destroyWindow(self.title)
            cv2.waitKey(1)

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
