"""The loader of lanes: workers read the segments of their own lanes, and the loader puts the rows together."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tttstream.errors import DataError, SourceError, TTTStreamError
from tttstream.train.data.batch import Batch
from tttstream.train.data.clips import Clip, Decoder, Reader
from tttstream.train.data.lanes import FOREVER, Piece, Schedule, Visit, Window
from tttstream.train.data.transforms import transformed


@dataclass
class Footage:
    """Clips and how to show them. size: side of the frames that come out. strict: a bad video is an error."""

    clips: list[Clip]
    window: Window
    decoder: Decoder
    transform: nn.Module
    size: int
    strict: bool = False

    @property
    def masked(self) -> bool:
        """Whether any clip has object masks; the rows of the others then hold background only."""
        return any(clip.masked for clip in self.clips)


class Rows(NamedTuple):
    """What a worker sends: the rows of its lanes at one step, or what went wrong; and the bad videos met so far."""

    batch: Batch | None
    error: TTTStreamError | None
    bad: dict[str, str]


class _Lane:
    """Reads the segments of one lane; holds the clip of the current visit open."""

    def __init__(self, footage: Footage, bad: dict[str, str], dead: set[int]) -> None:
        self._footage, self._bad, self._dead = footage, bad, dead
        self._visit: Visit | None = None
        self._reader: Reader | None = None
        self._clip = self._first = self._has = 0

    def segment(self, pieces: list[Piece], length: int) -> Batch:
        """The rows of these pieces, [1, T, …], with zeros that are not valid where they are shorter than `length`."""
        size, masked = self._footage.size, self._footage.masked
        frames = torch.zeros(length, 3, size, size, dtype=torch.uint8)
        mask = torch.zeros(length, size, size, dtype=torch.int64) if masked else None
        position, frame, clip, label = torch.tensor([0, -1, -1, -1]).repeat(length, 1).unbind(1)
        at = 0
        for piece in pieces:
            done = piece.start
            while done < piece.stop:
                shown, masks, first = self._read(piece.visit, done, piece.stop)
                here = slice(at, at + len(shown))
                frames[here] = shown
                if mask is not None and masks is not None:
                    mask[here] = masks
                position[here] = first + torch.arange(len(shown))
                frame[here] = self._first + self._footage.window.stride * position[here]
                clip[here], label[here] = self._clip, self._footage.clips[self._clip].label
                done, at = done + len(shown), at + len(shown)
        valid = torch.arange(length) < at
        row = Batch(frames, position == 0, position, frame, clip, label, valid, mask)
        return row.map(lambda item: item[None])

    def _read(self, visit: Visit, start: int, stop: int) -> tuple[Tensor, Tensor | None, int]:
        """Some frames of a visit from `start` on, at least one, with their masks and the first one's position."""
        if visit != self._visit:
            self._open(visit, visit.clip)
        footage = self._footage
        while True:
            assert self._reader is not None
            at = start % self._has
            wanted = np.arange(at, min(at + stop - start, self._has))
            try:
                shot = self._reader.read(self._first + footage.window.stride * wanted)
                broken = f"breaks off after {at + len(shot.frames)} of {self._has} frames"
            except SourceError as error:
                shot, broken = None, str(error)
            if self._reader.damage:
                self._note(footage.clips[self._clip], self._reader.damage)
            got = 0 if shot is None else len(shot.frames)
            if got < len(wanted):
                self._note(footage.clips[self._clip], broken)
                self._has = at + got if got else self._readable(at)
                if self._has == 0:
                    self._dead.add(self._clip)
                    self._open(visit, self._clip)
            if shot is not None and got:
                return *transformed(shot, footage.transform, footage.size, visit.seed), at

    def _readable(self, limit: int) -> int:
        """How many frames of the visit, at most `limit`, can be read from its start."""
        assert self._reader is not None
        at = 0
        while at < limit:
            wanted = np.arange(at, min(at + 16, limit))
            try:
                got = len(self._reader.read(self._first + self._footage.window.stride * wanted).frames)
            except SourceError:
                got = 0
            at += got
            if got < len(wanted):
                break
        return at

    def _open(self, visit: Visit, clip: int) -> None:
        """Open a clip for a visit, or the next one in the list that can be opened and has frames."""
        self.close()
        footage = self._footage
        for number in ((clip + more) % len(footage.clips) for more in range(len(footage.clips))):
            if number in self._dead:
                continue
            try:
                reader = footage.clips[number].open(footage.decoder)
            except SourceError as error:
                self._note(footage.clips[number], str(error))
                self._dead.add(number)
                continue
            first = footage.window.first(reader.frames, visit.seed)
            has = FOREVER if reader.frames is None else -(-(reader.frames - first) // footage.window.stride)
            if has > 0:
                self._reader, self._visit, self._clip, self._first, self._has = reader, visit, number, first, has
                return
            self._note(footage.clips[number], "holds no frames in the part asked for")
            self._dead.add(number)
        raise DataError(f"not one of {len(footage.clips)} videos can be read: {named(self._bad)}")

    def _note(self, clip: Clip, reason: str) -> None:
        if self._footage.strict:
            raise DataError(f"{clip.name}: {reason}; bad_video=skip passes over such videos")
        self._bad.setdefault(clip.name, reason)

    def close(self) -> None:
        """Close the clip of the current visit."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._visit = None


class _LaneRows(IterableDataset[Rows]):
    """The rows of some lanes from one step to another; worker w of W has every W-th lane from the w-th on."""

    def __init__(
        self, footage: Footage, schedule: Schedule, lanes: range, length: int, start: int, stop: int | None
    ) -> None:
        self._footage, self._schedule, self._lanes = footage, schedule, lanes
        self._length, self._start, self._stop = length, start, stop

    def __iter__(self) -> Iterator[Rows]:
        worker = get_worker_info()
        lanes = self._lanes if worker is None else self._lanes[worker.id :: worker.num_workers]
        bad: dict[str, str] = {}
        dead: set[int] = set()
        readers = [_Lane(self._footage, bad, dead) for _ in lanes]
        plans = [self._schedule.segments(lane, self._length, self._start) for lane in lanes]
        try:
            for _ in count() if self._stop is None else range(self._start, self._stop):
                rows = [lane.segment(next(plan), self._length) for lane, plan in zip(readers, plans, strict=True)]
                yield Rows(Batch.woven(rows), None, dict(bad))
        except TTTStreamError as error:  # sent, not raised: raising here would add a traceback to its message
            yield Rows(None, error, dict(bad))
        finally:
            for reader in readers:
                reader.close()


class LaneLoader:
    """Batches of segments, row b going on with lane b; knows at which step it stands, and goes on there when told.

    lanes: those of this process. length: frames in a segment. steps: batches of one pass (`iter`).
    workers: processes, 0 for none; they change nothing in the result. prefetch: batches that each reads ahead.
    endless: passes go on where the last one stopped, and workers read ahead meanwhile; else each pass begins anew.
    bad: videos that could not be read to their end, and why.
    """

    def __init__(
        self,
        footage: Footage,
        schedule: Schedule,
        lanes: range,
        *,
        length: int,
        steps: int,
        workers: int = 0,
        prefetch: int = 2,
        endless: bool = True,
        pin: bool = False,
    ) -> None:
        self._make = lambda start: _LaneRows(footage, schedule, lanes, length, start, None if endless else steps)
        self.lanes, self.steps, self.workers, self.endless = lanes, steps, min(workers, len(lanes)), endless
        self._prefetch, self._pin = prefetch, pin
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
            rows = next(self._parts)
            self.bad |= rows.bad
            if rows.error is not None:
                self.close()
                raise rows.error
            assert rows.batch is not None
            parts.append(rows.batch)
        batch = Batch.woven(parts)
        return batch.map(Tensor.pin_memory) if self._pin else batch

    def _start(self) -> Iterator[Rows]:
        loader = DataLoader(
            self._make(self._step),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self._prefetch if self.workers else None,
            worker_init_fn=_start_worker,
        )
        # A forked worker that collected a decoder of this process would wait for its threads, which it has not.
        gc.collect()
        gc.freeze()
        try:
            return iter(loader)
        finally:
            gc.unfreeze()

    def state_dict(self) -> dict[str, Any]:
        """How many batches were taken: all that is needed to go on."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after so many batches."""
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """End the workers."""
        self._parts = None


def _start_worker(_: int) -> None:
    cv2.setNumThreads(0)


def named(bad: dict[str, str], most: int = 5) -> str:
    """Bad videos in one line."""
    some = "; ".join(f"{name.rsplit('/', 1)[-1]} ({reason})" for name, reason in sorted(bad.items())[:most])
    return some + (f" and {len(bad) - most} more" if len(bad) > most else "")
