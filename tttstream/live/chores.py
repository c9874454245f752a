"""Chores: write files and send messages in another thread, so that the worker does not wait."""

import queue
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress

from tttstream.errors import TTTStreamError

MOST = 256  # chores that may wait


class Chores:
    """Runs jobs one after another. trouble: the last failure in one line, None after a later job succeeded.

    If MOST jobs wait, a new job is left out and counted in `left_out`, so memory is bounded with a slow disk.
    """

    def __init__(self, name: str, most: int = MOST) -> None:
        self.trouble: str | None = None
        self.left_out = 0
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(most)
        self._thread = threading.Thread(target=self._run, name=f"tttstream {name}", daemon=True)
        self._thread.start()

    def add(self, job: Callable[[], None]) -> bool:
        """Queue a job; False if the queue is full."""
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.left_out += 1
            return False
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
                self.trouble = None
            except (TTTStreamError, OSError) as error:
                self.trouble = " ".join(str(error).split())
            except Exception as error:
                self.trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
                traceback.print_exc(file=sys.stderr)

    def close(self, timeout_s: float = 10.0) -> bool:
        """Run the queued jobs and end. False if this exceeds the time limit; the waiting jobs are then dropped."""
        with suppress(queue.Full):
            self._jobs.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)
        return False
