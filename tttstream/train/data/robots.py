"""Recordings of robots as training data: ROS 2 bags, and the episodes of LeRobot data sets, with their poses."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tttstream.errors import DataError, SourceError
from tttstream.frames import Frame
from tttstream.sources.base import Source
from tttstream.sources.listing import natural
from tttstream.sources.robots.paths import BAG, is_bag, is_dataset
from tttstream.train.data.clips import Clip, Decoder, Numbers, Reader, Shot
from tttstream.train.data.indices import Index
from tttstream.train.data.listing import place

if TYPE_CHECKING:
    from tttstream.poses import Form, Track
    from tttstream.sources.robots.bag import Bag
    from tttstream.sources.robots.dataset import DataSet
    from tttstream.sources.robots.recording import Recording

T = TypeVar("T")


@dataclass
class RosBags(Index):
    """The bags of a folder, each a clip: `.mcap` files, and folders that rosbag2 wrote, subfolders included.

    root: the folder, or one bag. topic, clock: of the images, as in `open_source`. pose: a topic of poses, and its
    values: "/odom", "/odom:x,y,yaw", "/tf@base_link"; they are in Batch.pose. pose_tolerance: the largest time in
    seconds between a frame and the nearest pose.
    """

    root: str
    topic: str | None = None
    pose: str | None = None
    clock: str = "header"
    pose_tolerance: float | None = None

    def clips(self) -> list[Clip]:
        root = place(self.root, "root")
        found = [root] if is_bag(root) else _below(root)
        if not found:
            raise DataError(f"{self.root} holds no ROS 2 bags: expected .mcap files, or folders that rosbag2 wrote")
        numbers = 0 if self.pose is None else _said(lambda: len(_form(str(self.pose)).names))
        options = (self.topic, self.pose, self.clock, self.pose_tolerance)
        return [BagClip(str(path), -1, False, numbers, *options) for path in found]


@dataclass
class LeRobotEpisodes(Index):
    """The episodes of a LeRobot data set (v2.0, v2.1, v3.0), each a clip.

    root: its folder. camera: a feature with pictures, by default the only one. pose: a feature such as
    "observation.state", or some of its numbers by name, "observation.state:x,y"; they are in Batch.pose. episodes: a
    range [first, last) such as "0:40"; by default all.
    """

    root: str
    camera: str | None = None
    pose: str | None = None
    episodes: str | None = None

    def clips(self) -> list[Clip]:
        root = place(self.root, "root")
        if not is_dataset(root):
            raise DataError(f"{self.root} is no LeRobot data set: it has no meta/info.json, or no data")
        data = _said(lambda: _dataset(str(root)))
        camera = _said(lambda: data.camera(self.camera))
        numbers = 0 if self.pose is None else _said(lambda: len(data.form(str(self.pose))[0].names))
        taken = [episode.number for episode in data.episodes if episode.number in self._range(len(data.episodes))]
        if not taken:
            raise DataError(f"{self.root} has no episodes {self.episodes}; it has {len(data.episodes)}")
        return [EpisodeClip(f"{root}#{n}", -1, False, numbers, str(root), n, camera, self.pose) for n in taken]

    def _range(self, count: int) -> range:
        if self.episodes is None:
            return range(1 << 62)
        first, colon, last = self.episodes.partition(":")
        if not colon or not all(part.isdecimal() or not part for part in (first, last)):
            raise DataError(f"episodes are {self.episodes!r}, expected FIRST:LAST, such as 0:{count}")
        return range(int(first or 0), int(last or 1 << 62))


@dataclass(frozen=True)
class RecordingClip(Clip):
    """A robot's recording."""

    @abstractmethod
    def source(self, first: int) -> Source:
        """The frames from number `first` on. Raises SourceError if the recording cannot be read."""

    def open(self, decoder: Decoder) -> Reader:
        frames = self.count(decoder)
        assert frames is not None
        return _RecordingReader(self, frames)


@dataclass(frozen=True)
class BagClip(RecordingClip):
    """A bag. topic, keys, clock, tolerance: as in RosBags."""

    topic: str | None = None
    keys: str | None = None
    clock: str = "header"
    tolerance: float | None = None

    @property
    def form(self) -> Form | None:
        return None if self.keys is None else _form(self.keys)

    def _bag(self, first: int = 0) -> Bag:
        from tttstream.sources.robots.bag import Bag

        return Bag(_recording(self.name), topic=self.topic, clock=self.clock, first=first)

    def count(self, decoder: Decoder) -> int | None:
        return self._bag().frames

    def source(self, first: int) -> Source:
        from tttstream.sources.robots.bag import posed

        bag = self._bag(first)
        return bag if self.keys is None else posed(bag, _track(self.name, self.keys, bag.clock, self.tolerance))


@dataclass(frozen=True)
class EpisodeClip(RecordingClip):
    """An episode of a data set. folder, number, camera, keys: as in LeRobotEpisodes."""

    folder: str = ""
    number: int = 0
    camera: str | None = None
    keys: str | None = None

    def count(self, decoder: Decoder) -> int | None:
        return _dataset(self.folder).episode(self.number).frames

    def source(self, first: int) -> Source:
        from tttstream.sources.robots.lerobot import LeRobot

        return LeRobot(_dataset(self.folder), self.number, camera=self.camera, pose=self.keys, first=first)


class _RecordingReader(Reader):
    """Reads frames by number. A frame that cannot be read or has no pose is replaced by the next one."""

    def __init__(self, clip: RecordingClip, frames: int) -> None:
        self._clip, self.frames = clip, frames
        self._source: Source | None = None
        self._frames: Iterator[Frame] = iter(())
        self._shown: tuple[int, Frame] | None = None
        self._before = 0  # the requested number, and the numbers up to that of the returned frame

    def read(self, indices: Numbers) -> Shot:
        found: list[Frame] = []
        for index in (int(index) for index in indices):
            frame = self._at(index, after=bool(found))
            if frame is None:
                break
            found.append(frame)
        if not found:
            return Shot(np.zeros((0, 0, 0, 3), np.uint8))
        poses = np.stack([frame.pose for frame in found if frame.pose is not None]) if self._clip.pose else None
        return Shot(np.stack([frame.image for frame in found]).astype(np.uint8, copy=False), poses=poses)

    def _at(self, index: int, after: bool) -> Frame | None:
        """The frame with this number, or the next one; None after the last. after: whether others were read before."""
        try:
            if self._source is None or self._shown is None or self._before > index or index > self._shown[0] + 1000:
                self.close()
                self._source = self._clip.source(index)
                self._frames, self._before = iter(self._source), index
                self._shown = self._next(self._source)
            while self._shown is not None and self._shown[0] < index:
                self._before = self._shown[0] + 1
                self._shown = self._next(self._source)
        except SourceError as error:
            if not after:
                raise
            self.damage = str(error)  # the frames before it are good
            return None
        return None if self._shown is None else self._shown[1]

    def _next(self, source: Source) -> tuple[int, Frame] | None:
        frame = next(self._frames, None)
        self.damage = "; ".join(source.remarks()) or None
        number = None if frame is None else source.place(frame)
        return None if frame is None or number is None else (number, frame)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = self._shown = None
        self._before = 0


def _below(root: Path) -> list[Path]:
    """The bags below a folder: folders of rosbag2, and single .mcap files."""
    if not root.is_dir():
        raise DataError(f"no folder of bags {root}")
    found: list[Path] = []
    for here, names, files in os.walk(root, followlinks=True):
        folder = Path(here)
        if is_bag(folder):
            found.append(folder)
            names.clear()
            continue
        found += [folder / name for name in files if Path(name).suffix.lower() in BAG and name[0] != "."]
    return sorted(found, key=natural)


def _said(ask: Callable[[], T]) -> T:
    """Convert the SourceError of a recording to a DataError."""
    try:
        return ask()
    except SourceError as error:
        raise DataError(str(error)) from error


# Imported in functions, because they need the extra `robots`
def _form(keys: str) -> Form:
    from tttstream.sources.robots.poses import form, wanted

    return form(wanted(keys).keys)


@lru_cache(maxsize=64)
def _recording(path: str) -> Recording:
    from tttstream.sources.robots.recording import Recording

    return Recording(Path(path))


@lru_cache(maxsize=64)
def _track(path: str, keys: str, clock: str, tolerance: float | None) -> Track:
    from tttstream.sources.robots.poses import track

    return track(_recording(path), keys, clock=clock, tolerance=tolerance, on_error="skip")


@lru_cache(maxsize=16)
def _dataset(folder: str) -> DataSet:
    from tttstream.sources.robots.dataset import DataSet

    return DataSet(Path(folder))
