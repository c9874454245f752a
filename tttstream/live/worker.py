"""Worker: pushes ready frames to their streams in batches, and runs jobs in between."""

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tttstream.errors import ConfigError, FrameError
from tttstream.frames import Frame, Result
from tttstream.live.policy import Taken
from tttstream.live.row import Row
from tttstream.streams import Session, Stream

Keep = Callable[[Any, "dict[str, Any] | None"], None]


class Worker:
    """A thread that processes the rows in a loop.

    rows: returns the current rows. keep: is called with a row and the position of its source, if it was requested.
    tick: is called after every round. workers: threads that share a batch; by default two, or one on a machine with one
    core.
    """

    def __init__(
        self, rows: Callable[[], Sequence[Row]], keep: Keep, tick: Callable[[], None], workers: int | None = None
    ) -> None:
        self._rows, self._keep, self._tick = rows, keep, tick
        self._workers = min(2, os.cpu_count() or 1) if workers is None else workers
        if self._workers < 1:
            raise ConfigError(f"workers is {workers}, expected 1 or more")
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Condition()
        self._awake = self._ending = False
        self.busy = False
        self._thread = threading.Thread(target=self._run, name="tttstream engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End when no frame waits."""
        self._ending = True
        self.notify()
        self._thread.join()
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def notify(self) -> None:
        """Wake the thread after a frame or job was added."""
        with self._wake:
            self._awake = True
            self._wake.notify_all()

    def do(self, job: Callable[[], Any]) -> Future[Any]:
        """Run a job between two frames."""
        future: Future[Any] = Future()
        if not self.alive:
            future.set_exception(ConfigError("the engine does not run"))
            return future
        self._jobs.append((job, future))
        self.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._awake or self._ending, timeout=0.5)
                self._awake = False
            self._obey()
            self.busy = True  # before a frame leaves its inbox, so that the row does not appear idle
            batch = []
            for row in self._rows():
                taken = None if row.broken else row.feed.inbox.take()
                if taken is not None:
                    batch.append((row, taken))
            if batch:
                self.look(batch)
                self.notify()  # further frames may be waiting
            self.busy = False
            if self._ending and not batch:
                break
            self._tick()

    def _obey(self) -> None:
        while self._jobs:
            job, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

    def look(self, batch: Sequence[tuple[Row, Taken]]) -> None:
        """Push one frame of each of these rows. An error in one row ends only that row."""
        seen: list[tuple[Row, Taken, Frame]] = []
        for row, taken in batch:
            try:
                seen.append((row, taken, row.masked(taken)))
            except Exception as error:
                row.fail(error)
        answers = self._push([row.stream for row, _, _ in seen], [frame for _, _, frame in seen])
        for (row, taken, _), answer in zip(seen, answers, strict=True):
            try:
                if isinstance(answer, Result):
                    row.took(taken, answer)
                elif isinstance(answer, FrameError):
                    row.refuse(answer)
                else:
                    raise answer
                if taken.position is not None:
                    self._keep(row, taken.position)
            except Exception as error:
                row.fail(error)

    def _push(self, streams: list[Session], frames: list[Frame]) -> list[Result | Exception]:
        """The results of all streams, computed in several threads."""
        shares = min(self._workers, len(streams))
        if shares < 2:
            return push_rows(streams, frames)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "tttstream worker")
        first = range(0, len(streams), -(-len(streams) // shares))
        found = self._pool.map(push_rows, *([part[i : i + first.step] for i in first] for part in (streams, frames)))
        return [answer for part in found for answer in part]


def push_rows(streams: Sequence[Session], frames: Sequence[Frame]) -> list[Result | Exception]:
    """Push frames in one batch if the streams support it, otherwise (or after a failure) one by one."""
    before = [stream.frames for stream in streams]
    if len(streams) > 1 and all(isinstance(stream, Stream) for stream in streams):
        try:
            return list(Stream.push_rows(streams, frames))  # type: ignore[arg-type]
        except Exception as error:  # an error of one of them, which is found below
            if [stream.frames for stream in streams] != before:
                return [error] * len(streams)
    answers: list[Result | Exception] = []
    for stream, frame in zip(streams, frames, strict=True):
        try:
            answers.append(stream.push(frame))  # type: ignore[attr-defined]
        except Exception as error:
            answers.append(error)
    return answers
