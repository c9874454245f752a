"""Reads the clips of one lane, piece by piece, including damaged ones."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tttstream.errors import DataError, SourceError
from tttstream.train.data.batch import Batch
from tttstream.train.data.clips import Clip, Decoder, Reader, Shot
from tttstream.train.data.lanes import FOREVER, Piece, Visit, Window
from tttstream.train.data.transforms import transformed


@dataclass
class Footage:
    """Clips, and the options of reading them.

    size: side of the resulting frames. strict: a bad video is an error. fill: repeat a clip from its start if it is
    shorter than its visit or damaged, and use another clip if it cannot be read; otherwise the rest of the visit is not
    valid.
    """

    clips: list[Clip]
    window: Window
    decoder: Decoder
    transform: nn.Module
    size: int
    strict: bool = False
    fill: bool = True

    @property
    def masked(self) -> bool:
        """Whether any clip has object masks; the masks of the others are then background."""
        return any(clip.masked for clip in self.clips)

    @property
    def pose(self) -> int:
        """The number of values of a pose, 0 if no clip has poses."""
        return max(clip.pose for clip in self.clips)


class Troubles:
    """The bad clips of a worker. listed: reasons by name. dead: clips that cannot be read."""

    def __init__(self) -> None:
        self.listed: dict[str, str] = {}
        self.dead: set[int] = set()


class _Shown(NamedTuple):
    """Frames of a visit, their masks and poses, and the position of the first one."""

    frames: Tensor
    masks: Tensor | None
    poses: Tensor | None
    first: int


class Lane:
    """Reads the segments of one lane; the clip of the current visit stays open."""

    def __init__(self, footage: Footage, troubles: Troubles) -> None:
        self._footage, self._troubles = footage, troubles
        self._masked, self._pose = footage.masked, footage.pose
        self._visit: Visit | None = None
        self._reader: Reader | None = None
        self._clip = self._first = self._has = 0

    def segment(self, pieces: list[Piece], length: int) -> Batch:
        """The rows of these pieces, [1, T, …]; positions without a frame are zeros and not valid."""
        size = self._footage.size
        frames = torch.zeros(length, 3, size, size, dtype=torch.uint8)
        mask = torch.zeros(length, size, size, dtype=torch.int64) if self._masked else None
        pose = torch.zeros(length, self._pose, dtype=torch.float64) if self._pose else None
        position, frame, clip, label = torch.tensor([0, -1, -1, -1]).repeat(length, 1).unbind(1)
        valid = torch.zeros(length, dtype=torch.bool)
        at = 0
        for piece in pieces:
            done = piece.start
            while done < piece.stop and (shown := self._read(piece.visit, done, piece.stop)) is not None:
                begin = at + done - piece.start
                here = slice(begin, begin + len(shown.frames))
                frames[here], valid[here] = shown.frames, True
                if mask is not None and shown.masks is not None:
                    mask[here] = shown.masks
                if pose is not None and shown.poses is not None:
                    pose[here] = shown.poses
                position[here] = shown.first + torch.arange(len(shown.frames))
                frame[here] = self._first + self._footage.window.stride * position[here]
                clip[here], label[here] = self._clip, self._footage.clips[self._clip].label
                done += len(shown.frames)
            at += piece.stop - piece.start
        row = Batch(frames, position == 0, position, frame, clip, label, valid, mask, pose)
        return row.map(lambda item: item[None])

    def _read(self, visit: Visit, start: int, stop: int) -> _Shown | None:
        """Some frames of a visit from `start` on, at least one; None at its end."""
        if visit != self._visit:
            self._open(visit, visit.clip)
        footage = self._footage
        while self._reader is not None and (footage.fill or start < self._has):
            at = start % self._has
            wanted = range(at, min(at + stop - start, self._has))
            shot, why = self._shot(self._reader, wanted)
            got = len(shot.frames)
            if got < len(wanted):
                self._note(self._clip, why)
                self._has = at + got if got else self._readable(self._reader, at)
                if self._has == 0:
                    self._troubles.dead.add(self._clip)
                    self._open(visit, self._clip)
            if got:
                poses = None if shot.poses is None else torch.from_numpy(shot.poses)
                return _Shown(*transformed(shot, footage.transform, footage.size, visit.seed), poses, at)
        return None

    def _shot(self, reader: Reader, wanted: range) -> tuple[Shot, str]:
        """These frames of the visit, or as many as can be read, and why there are no more."""
        try:
            shot = reader.read(self._first + self._footage.window.stride * np.arange(wanted.start, wanted.stop))
        except SourceError as error:
            return Shot(np.zeros((0, 0, 0, 3), np.uint8)), str(error)
        if reader.damage:
            self._note(self._clip, reader.damage)
        return shot, f"breaks off after {wanted.start + len(shot.frames)} of {self._has} frames"

    def _readable(self, reader: Reader, limit: int) -> int:
        """The number of frames of the visit, at most `limit`, that can be read from its start."""
        at = 0
        while at < limit:
            wanted = range(at, min(at + 16, limit))
            got = len(self._shot(reader, wanted)[0].frames)
            at += got
            if got < len(wanted):
                break
        return at

    def _open(self, visit: Visit, clip: int) -> None:
        """Open a clip for a visit, or, if visits are filled, the next clip in the list that can be read."""
        self.close()
        self._visit = visit
        count, dead, window = len(self._footage.clips), self._troubles.dead, self._footage.window
        for number in ((clip + more) % count for more in range(count if self._footage.fill else 1)):
            if number in dead:
                continue
            try:
                reader = self._footage.clips[number].open(self._footage.decoder)
            except SourceError as error:
                self._note(number, str(error))
                dead.add(number)
                continue
            self._first = window.first(reader.frames, visit.seed)
            self._has = FOREVER if reader.frames is None else -(-(reader.frames - self._first) // window.stride)
            if self._has > 0:
                self._reader, self._clip = reader, number
                return
            self._note(number, "contains no frames in the requested part")
            dead.add(number)
        if len(dead) == count:
            raise DataError(f"not one of {count} videos can be read: {named(self._troubles.listed)}")

    def _note(self, clip: int, why: str) -> None:
        name = self._footage.clips[clip].name
        if self._footage.strict:
            raise DataError(f"{name}: {why}; bad_video=skip skips such videos")
        self._troubles.listed[name] = why

    def close(self) -> None:
        """Close the clip of the current visit."""
        if self._reader is not None:
            self._reader.close()
        self._reader = self._visit = None


def named(bad: dict[str, str], most: int = 5) -> str:
    """Bad videos in one line."""
    last = {name: name.replace("\\", "/").rsplit("/", 1)[-1] for name in sorted(bad)[:most]}
    some = "; ".join(why if short in (why := bad[name]) else f"{short}: {why}" for name, short in last.items())
    return some + (f"; and {len(bad) - most} more" if len(bad) > most else "")
