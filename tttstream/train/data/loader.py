"""The loader of lanes: each worker reads the segments of its lanes, and the loader joins the rows."""

import gc
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tttstream.errors import DataError, TTTStreamError
from tttstream.train.data.batch import Batch
from tttstream.train.data.lanes import Piece, Schedule, within
from tttstream.train.data.reading import Footage, Lane, Troubles

logger = logging.getLogger(__name__)


LOST = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: (\w+)|exited unexpectedly)", re.DOTALL)
ALONE = "data.workers=0 reads in the main process"


class Rows(NamedTuple):
    """A worker's message: the rows of its lanes at one step, or the error; and the bad videos so far.

    batch: tensors in this process; arrays between processes. Arrays are sent through a pipe; tensors would need space
    in /dev/shm, which is small in containers, and a worker without space would block the run.
    """

    batch: Any
    error: TTTStreamError | None
    bad: dict[str, str]


class _LaneRows(IterableDataset[Rows]):
    """The rows of some lanes from one step to another; worker w of W has every W-th lane from the w-th on."""

    def __init__(
        self,
        footage: Footage,
        schedule: Schedule,
        lanes: range,
        length: int,
        start: int,
        stop: int | None,
        part: tuple[int, int],
    ) -> None:
        self._footage, self._schedule, self._lanes = footage, schedule, lanes
        self._length, self._start, self._stop = length, start, stop
        self._begin, self._end = part

    def __iter__(self) -> Iterator[Rows]:
        worker = get_worker_info()
        lanes = self._lanes if worker is None else self._lanes[worker.id :: worker.num_workers]
        troubles = Troubles()
        readers = [Lane(self._footage, troubles) for _ in lanes]
        plans = [self._schedule.segments(lane, self._length, self._start) for lane in lanes]
        try:
            for _ in count() if self._stop is None else range(self._start, self._stop):
                rows = [self._read(lane, next(plan)) for lane, plan in zip(readers, plans, strict=True)]
                yield Rows(Batch.woven(rows), None, dict(troubles.listed))
        except TTTStreamError as error:  # sent, not raised: raising here would add a traceback to its message
            yield Rows(None, error, dict(troubles.listed))
        finally:
            for reader in readers:
                reader.close()

    def _read(self, lane: Lane, pieces: list[Piece]) -> Batch:
        """The part of a segment for this process, and the next frame if there is one."""
        more = min(self._end + 1, self._length)
        row = lane.segment(within(pieces, self._begin, more), more - self._begin)
        return row.part(0, self._end - self._begin)


class LaneLoader:
    """Yields batches of segments; row b is lane b. Its step can be saved and restored.

    lanes: those of this process. length: frames in a segment. part: the frames [begin, end) of each segment that this
    process reads, all unless given. steps: batches of one pass (`iter`). workers: processes, 0 for none; the result
    does not depend on them. endless: each pass continues from the one before,
    and workers read ahead between passes; otherwise each pass starts from the beginning. bad: videos that could not be
    read completely, with reasons.
    """

    def __init__(
        self,
        footage: Footage,
        schedule: Schedule,
        lanes: range,
        *,
        length: int,
        steps: int,
        part: tuple[int, int] | None = None,
        workers: int = 0,
        endless: bool = True,
        pin: bool = False,
    ) -> None:
        self._make = lambda start: _LaneRows(
            footage, schedule, lanes, length, start, None if endless else steps, part or (0, length)
        )
        self.lanes, self.steps, self.workers, self.endless = lanes, steps, min(workers, len(lanes)), endless
        self._pin = pin
        self._step = 0
        self._parts: Iterator[Rows] | None = None
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        if not self.endless:
            self.close()
            self._step = 0
        for _ in range(self.steps):
            batch = self._next()
            self._step += 1
            yield batch

    def _next(self) -> Batch:
        if self._parts is None:
            self._parts = self._start()
        parts = []
        for _ in range(max(1, self.workers)):
            try:
                rows = next(self._parts)
            except RuntimeError as error:
                if (found := lost(error)) is None:
                    raise
                self.close()
                raise found from error
            self.bad |= rows.bad
            if rows.error is not None:
                self.close()
                raise rows.error
            assert rows.batch is not None
            parts.append(rows.batch if self.workers == 0 else rows.batch.map(torch.from_numpy))
        batch = Batch.woven(parts)
        return batch.map(Tensor.pin_memory) if self._pin else batch

    def _start(self) -> Iterator[Rows]:
        loader = DataLoader(
            self._make(self._step),
            batch_size=None,
            num_workers=self.workers,
            collate_fn=_sent if self.workers else _kept,
            worker_init_fn=_start_worker,
        )
        # A forked worker that collected a decoder of this process would wait for its threads, which it has not.
        gc.collect()
        gc.freeze()
        try:
            return iter(loader)
        except OSError as error:
            raise DataError(f"the {self.workers} workers that read data cannot be started: {error}; {ALONE}") from error
        finally:
            gc.unfreeze()

    def state_dict(self) -> dict[str, Any]:
        """The number of batches so far, which is sufficient to continue."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after this number of batches."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """End the workers."""
        parts, self._parts = self._parts, None
        end = getattr(parts, "_shutdown_workers", None)
        if end is not None:  # here and not when torch's iterator is collected, where an error could not be caught
            try:
                end()
            except RuntimeError as error:
                if "killed by signal" not in str(error):
                    raise
                logger.warning("a worker that had nothing more to do died while it ended: %s", error)
            for worker in getattr(parts, "_workers", ()):  # one that torch could not end, as it heeds no SIGTERM
                if worker.is_alive():
                    worker.kill()

    def __del__(self) -> None:
        self.close()


def lost(error: BaseException) -> DataError | None:
    """The message for an error by which torch reports a worker that has ended; None for other errors."""
    found = LOST.search(str(error))
    if found is None:
        return None
    how = f"was killed ({found[1]})" if found[1] else "ended"
    return DataError(f"a worker that reads data {how}: out of memory, a broken decoder, or a signal; {ALONE}")


def _kept(rows: Any) -> Any:
    return rows


def _sent(rows: Any) -> Any:
    return rows if rows.batch is None else rows._replace(batch=rows.batch.map(Tensor.numpy))


def _start_worker(_: int) -> None:
    """Ignore signals to the process group, which the main process handles; end when the main process ends."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    cv2.setNumThreads(0)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, even if it is blocked, for example by a full pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
