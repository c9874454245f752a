"""Tells a person how a run goes: a bar on a terminal, a line every ten seconds elsewhere; and how it is interrupted."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from tqdm import tqdm

from tttstream.names import shortened


class Progress:
    """Progress of one source on standard error. total: how many frames will come, None where unknown."""

    EVERY_S = 10.0

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.frames = shortened(name, 40), total, 0
        self._next_line = time.monotonic() + self.EVERY_S
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=self.name, unit=" frames", dynamic_ncols=True, smoothing=0.1)

    def update(self, fps: float, surprise: float | None, state: str) -> None:
        """One more frame is done. surprise: None for a model that knows none."""
        said = "" if surprise is None else f"surprise {surprise:+.1f}, "
        self.frames += 1
        if self._bar is not None:
            self._bar.set_postfix_str(f"{said}state {state}", refresh=False)
            self._bar.update()
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.EVERY_S
            done = f"{self.frames}" if self.total is None else f"{self.frames}/{self.total}"
            text = f"{self.name}: {done} frames, {fps:.0f} fps, {said}state {state}"
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        if self._bar is not None:
            self._bar.close()


class Interrupt:
    """Ctrl-C (or SIGTERM) sets `asked`, so that the frame in hand is finished; a second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this frame (once more: at once)", file=sys.stderr, flush=True)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
