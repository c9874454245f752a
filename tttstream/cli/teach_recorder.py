"""The output of `tttstream teach` for one source: the overlay, and a line with the found things for each frame."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tttstream.cli.recorder import Record, number
from tttstream.frames import Frame
from tttstream.sources.base import Source
from tttstream.streams.teach import TeachResult, TeachStream
from tttstream.views.overlay import Picture
from tttstream.views.teach import TeachOverlay


class TeachRecorder(Record):
    """Writes the frames and results of one source to its folder; without a folder it only counts.

    video: write overlay.mp4. keys: names that the keys 1, 2 … teach.
    """

    def __init__(self, folder: Path | None, source: Source, *, video: bool, keys: Sequence[str]) -> None:
        super().__init__(folder, source, video=video)
        self.overlay = TeachOverlay(keys=keys)
        self._in_view: Counter[str] = Counter()
        self._taught: dict[str, int] = {}

    def add(self, frame: Frame, result: TeachResult, stream: TeachStream, told: list[str]) -> Picture:
        """Record one frame and its result; returns the picture. told: the labels that were taught with this frame."""
        self._count(result.latency_ms)
        self._in_view.update(thing.label for thing in result.found)
        self._taught = {label: stream.examples(label) for label in stream.labels}
        note = "" if stream.learn else "not learning"
        picture = self.overlay.draw(frame.image, result, self._taught, " ".join([*told, note]).strip())
        found = [
            {
                "label": thing.label,
                "probability": number(thing.probability),
                "box": [round(side, 1) for side in thing.box],  # left, top, width, height
            }
            for thing in result.found
        ]
        self._write(frame, result, picture, found=found, unknown=number(result.unknown), taught=told)
        return picture

    def summary(self) -> dict[str, Any]:
        """See Record; `in_view` is the number of frames in which each taught thing was found."""
        in_view = {label: self._in_view[label] for label in self._taught}
        return {**super().summary(), "taught": self._taught, "in_view": in_view}
