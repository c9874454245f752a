"""Progress of a run: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm

from tttstream.io.names import shortened


class Progress:
    """Progress of one source on standard error. total: the number of frames, None if unknown."""

    EVERY_S = 10.0

    def __init__(self, name: str, total: int | None) -> None:
        self.name, self.total, self.frames = shortened(name, 40), total, 0
        self._next_line = time.monotonic() + self.EVERY_S
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=self.name, unit=" frames", dynamic_ncols=True, smoothing=0.1)

    def update(self, fps: float, surprise: float | None, state: str) -> None:
        """Count one frame. surprise: None for a model without surprise."""
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
        """Restore the terminal."""
        if self._bar is not None:
            self._bar.close()
