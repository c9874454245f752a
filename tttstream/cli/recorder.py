"""The results of `tttstream watch` for one source: every file appears complete at the end, or not at all."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from tttstream.evaluation.detection import Comparison, EventDetector
from tttstream.evaluation.measures import Latencies, Rate, Usage
from tttstream.frames import Frame, Label, Result
from tttstream.io.outputs import ArrayFile, OutputFile, OutputFolder, TextFile, saving, text_of
from tttstream.sources.base import Event, Source
from tttstream.views.chart import ChartFile
from tttstream.views.overlay import Overlay, Picture, to_uint8
from tttstream.views.trace import Trace
from tttstream.views.writer import VideoWriter

F = TypeVar("F", bound=OutputFile)


def number(value: float) -> float:
    """A float with six significant digits, as in frames.jsonl."""
    return float(f"{value:.6g}")


def place(frame: Frame) -> dict[str, list[float]]:
    """The pose of a frame, as in frames.jsonl."""
    return {} if frame.pose is None else {"pose": frame.pose.tolist()}


def told(labels: tuple[Label, ...]) -> list[dict[str, Any]]:
    """Labels, as in frames.jsonl and summary.json."""
    return [{"label": label.name, "probability": number(label.probability)} for label in labels]


class Record:
    """The files of one source and the counters of all kinds of results. Without a folder it only counts.

    video: write overlay.mp4. OPTIONAL: names of files that not every run writes. Those of an earlier run are removed.
    """

    OPTIONAL: ClassVar[tuple[str, ...]] = ("overlay.mp4",)

    def __init__(self, folder: Path | None, source: Source, *, video: bool) -> None:
        self.source = source
        self.rejected = 0  # frames that the stream refused
        self.latencies, self.rate, self.usage = Latencies(), Rate(), Usage()
        self._folder = None if folder is None else OutputFolder(folder)
        self._films = video and folder is not None
        self._files: list[OutputFile] = []
        self._lines: TextFile | None = None
        self._video: VideoWriter | None = None

    def open(self, *, endless: bool) -> None:
        """Open the files that are written frame by frame. endless: the number of frames is unknown."""
        if self._folder is not None:
            self._lines = self._own(TextFile(self._folder.path / "frames.jsonl"))
            if self._films:
                path = self._folder.path / "overlay.mp4"
                self._video = self._own(VideoWriter(path, self.source.fps or 25.0, endless=endless))

    def _write(self, frame: Frame, result: Any, picture: Picture | None, **values: Any) -> None:
        """Write a line of frames.jsonl with these values, and a picture of overlay.mp4."""
        if self._lines is not None:
            line = {"index": result.index, "time_s": round(result.time_s, 6), **place(frame), **values}
            self._lines.write_json({**line, "latency_ms": round(result.latency_ms, 3)})
        if self._video is not None and picture is not None:
            self._video.write(picture, result.time_s)

    def _own(self, file: F) -> F:
        self._files.append(file)
        return file

    @property
    def frames(self) -> int:
        """The number of frames so far."""
        return self.rate.frames

    def _count(self, latency_ms: float) -> None:
        self.latencies.add(latency_ms)
        self.rate.tick()
        self.usage.sample(self.frames)

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, without the names of source and model."""
        return {
            "frames": self.frames,
            "skipped": self.source.skipped + self.rejected,
            "truncated": self.source.truncated,
            **self._poses(),
            "seconds": round(self.rate.seconds, 3),
            "fps": round(self.rate.overall, 2),
            "latency_ms": {f"p{p}": round(self.latencies.percentile(p), 3) for p in (50, 95, 99)},
            "rss_mb": self.usage.summary(),
        }

    def _poses(self) -> dict[str, Any]:
        form = self.source.pose_form
        if form is None and not self.source.unposed:
            return {}
        names = [] if form is None else list(form.names)
        return {"poses": {"from": self.source.about, "numbers": names, "missing": self.source.unposed}}

    def finish(self, summary: dict[str, Any], title: str) -> None:
        """Write the summary, and complete all files under their temporary names. title: of a chart."""
        if self._folder is None:
            return
        self._own(TextFile(self._folder.path / "summary.json")).write(text_of(summary, indent=2) + "\n")
        for file in self._files:
            file.finish()

    def publish(self) -> None:
        """Rename the finished files, and remove optional files of earlier runs."""
        for file in self._files:
            file.publish()
        if self._folder is not None:
            for name in set(self.OPTIONAL) - set(self.written):
                with saving(self._folder.path / name):
                    (self._folder.path / name).unlink(missing_ok=True)
            self._folder.release()

    @property
    def written(self) -> list[str]:
        """The names of the files."""
        return [file.path.name for file in self._files]

    def discard(self) -> None:
        """Remove unpublished files and their new folders. After `publish` it does nothing."""
        for file in self._files:
            file.discard()
        if self._folder is not None:
            self._folder.discard()


class Recorder(Record):
    """Writes the frames and results of one source to its folder. Without a folder it only counts.

    video: write overlay.mp4. pictures: draw the overlay for a window, with the speed in it. embeddings: write
    embeddings.npy. overlay: draws the pictures; by default those of surprise. surprises: whether there is a surprise to
    write.
    """

    OPTIONAL = ("overlay.mp4", "embeddings.npy")

    def __init__(
        self,
        folder: Path | None,
        source: Source,
        *,
        video: bool,
        pictures: bool,
        embeddings: bool,
        overlay: Overlay | None,
        surprises: bool,
    ) -> None:
        super().__init__(folder, source, video=video)
        self._surprises = surprises
        self._so_far: tuple[Label, ...] = ()
        self.detector, self.trace = EventDetector(), Trace()
        self.comparison = None if source.events(0) is None else Comparison()
        self.overlay = overlay or Overlay(self.detector.threshold) if pictures or self._films else None
        self._shown = pictures
        self._embeddings = embeddings
        self._array: ArrayFile | None = None

    def add(self, frame: Frame, result: Result, state_bytes: int, note: str = "") -> Picture | None:
        """Record one frame and its result; returns the picture drawn of it, if one is needed."""
        begins = self.detector.update(result)
        self._so_far = result.so_far
        self.trace.add(frame.image, result)
        if self.comparison:
            self.comparison.add(to_uint8(frame.image), result)
        self._count(result.latency_ms)
        picture = None
        if self.overlay:
            fps = self.rate.late if self._shown else None
            picture = self.overlay.draw(frame.image, result, event=begins, fps=fps, state_bytes=state_bytes, note=note)
        values: dict[str, Any] = {"surprise": None, "learned": None}
        if self._surprises:
            values = {"surprise": number(result.surprise), "learned": number(result.learned)}
        if result.familiar is not None:
            values["familiar"] = number(result.familiar)
        if result.labels:
            values |= {"labels": told(result.labels), "so_far": told(result.so_far)}
        self._write(frame, result, picture, **values)
        if self._embeddings and self._folder is not None:
            if self._array is None:
                width = result.embedding.shape[0]
                self._array = self._own(ArrayFile(self._folder.path / "embeddings.npy", width))
            self._array.write(result.embedding)
        return picture

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, without the names of source and model."""
        events = [
            {"index": e.index, "time_s": round(e.time_s, 6), "surprise": number(e.surprise)}
            for e in self.detector.events
        ]
        summary: dict[str, Any] = {
            **super().summary(),
            "threshold": self.detector.threshold,
            "events_total": self.detector.total,
            "events": events,
        }
        if self._so_far:
            summary["labels"] = told(self._so_far)
        if self.comparison:
            planted = self.planted()
            summary["planted"] = [asdict(event) for event in planted]
            summary["detection"] = self.comparison.report(planted)
        return summary

    def planted(self) -> list[Event]:
        """The events of a generated source in these frames."""
        last = self.trace.first_index + self.frames
        return [event for event in self.source.events(last) or [] if event.stop > self.trace.first_index]

    def finish(self, summary: dict[str, Any], title: str) -> None:
        """Complete the files, and draw the chart."""
        if self._folder is not None:
            chart = self._own(ChartFile(self._folder.path / "surprise.png"))
            detected = [event.index for event in self.detector.events]
            chart.draw(self.trace, title, planted=self.planted(), detected=detected, threshold=self.detector.threshold)
        super().finish(summary, title)
