"""Frames of one episode of a LeRobot data set, with its numbers as poses."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.io.names import shown
from tttstream.sources.base import Source
from tttstream.sources.decoder import VideoDecoder
from tttstream.sources.robots.dataset import DataSet, Episode

Pixels = NDArray[np.uint8]
NEAR = 0.25  # share of a frame's duration: the largest time between a picture of the video and its row in the table


class LeRobot(Source):
    """One episode of a data set.

    folder: the data set. number: of the episode; by default the only one. camera: a feature with pictures, by default
    the only one. pose: a feature such as observation.state, or some of its numbers by name, FEATURE:x,y. on_error: for
    rows without a picture. "skip" skips and counts them, "raise" raises SourceError. first: the first row to read.

    The picture of a row is the one at its time in the video (in v3, relative to the start of the episode), within a
    quarter of a frame. Raises SourceError if the episode cannot be read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | DataSet,
        number: int | None = None,
        *,
        camera: str | None = None,
        pose: str | None = None,
        on_error: str = "skip",
        first: int = 0,
    ) -> None:
        data = folder if isinstance(folder, DataSet) else DataSet(Path(folder))
        if number is None:
            if len(data.episodes) > 1:
                last = data.episodes[-1].number
                raise SourceError(
                    f"{data.name} has {len(data.episodes)} episodes: give one, such as {data.name}#{last}"
                )
            number = data.episodes[0].number
        self._data, self.episode, self.camera = data, data.episode(number), data.camera(camera)
        self._strict = on_error == "raise"
        self.name = shown(f"{data.name}#{number}:{self.camera}")
        self.fps, self.frames = data.fps, self.episode.frames
        self._times = data.times(self.episode)
        self._pose = pose
        self._poses: NDArray[np.float64] | None = None
        if pose is not None:
            self.pose_form, feature, places = data.form(pose)
            raw = data.poses(self.episode, feature, places)
            self._poses = np.array([self.pose_form.encode(row) for row in raw])
            self.about = f"{feature}, one a frame: {self.pose_form.text}"
        self._index, self._place = 0, first
        self._why = ""

    def __iter__(self) -> Iterator[Frame]:
        for row, image in pictures(self._data, self.episode, self.camera, self._times, self._place):
            for missing in range(self._place, row):
                self._pass(missing, "the video has no picture at its time")
            self._place = row + 1
            if isinstance(image, str):
                self._pass(row, image)
                continue
            self._index += 1
            pose = None if self._poses is None else self._poses[row]
            yield Frame(image, self._index - 1, float(self._times[row] - self._times[0]), pose)
        for missing in range(self._place, self.episode.frames):
            self._place = missing + 1
            self._pass(missing, "the video ends before it")
            self.truncated = True
        if not self._index:
            raise SourceError(f"no frame of {self.name} can be read: {self._why}")

    def _pass(self, row: int, why: str) -> None:
        self.skipped += 1
        self._why = self._why or f"row {row} at {self._times[row]:.3f} s: {why}"
        if self._strict:
            raise SourceError(f"{self.name}, row {row} at {self._times[row]:.3f} s: {why}")

    def place(self, frame: Frame) -> int:
        return self._place - 1

    def remarks(self) -> list[str]:
        return [f"{self.skipped} rows skipped, the first: {self._why}"] if self.skipped else []

    def position(self) -> dict[str, Any]:
        """The numbers of the next frame and the next row."""
        counts = {"index": self._index, "place": self._place, "skipped": self.skipped}
        return {"source": self.name, **counts, "pose": self._pose}

    def seek(self, position: dict[str, Any]) -> None:
        """Continue with the row after the last one yielded."""
        self._check(position)
        if position.get("pose", self._pose) != self._pose:  # positions of older versions have none
            raise SourceError(
                f"{self.name}: the position was taken with the pose {position['pose']}, this source has {self._pose}"
            )
        if position["place"] > self.episode.frames:
            raise SourceError(f"{self.name} has changed: it has {self.episode.frames} rows")
        self._index, self._place, self.skipped = position["index"], position["place"], position["skipped"]


def pictures(
    data: DataSet, episode: Episode, camera: str, times: NDArray[np.float64], start: int = 0
) -> Iterator[tuple[int, Pixels | str]]:
    """(row, picture) of an episode from row `start` on, in increasing order. Rows without a picture are left out, or
    have the reason in place of the picture."""
    if data.features[camera]["dtype"] != "video":  # pictures are in the tables
        for row, encoded in enumerate(data.stored(episode, camera)):
            if row >= start:
                image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
                yield row, "its picture cannot be decoded" if image is None else np.ascontiguousarray(image[..., ::-1])
        return
    footage = data.footage(episode, camera)
    decoder = VideoDecoder(str(footage.video), footage.video.name, strict=False, timeout_s=10.0)
    try:
        wanted, near, row = footage.start_s + times, NEAR / data.fps, start
        if start < len(times):
            first = max(wanted[start] - near, 0.0)
            decoder.jump({"stamp": int(first / float(decoder.tick)), "longest": 0, "second": 0})
        for picture, stamp in decoder:
            moment = float(stamp * decoder.tick)
            while row < len(wanted) and wanted[row] + near < moment:
                row += 1
            if row == len(wanted):
                return
            if abs(wanted[row] - moment) <= near:
                yield row, decoder.display.show(picture)
                row += 1
    finally:
        decoder.close()
