"""LeRobot data sets on disk (formats v2.0, v2.1, v3.0): their episodes, and the pictures and numbers of each."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.poses import Form, Number

try:
    import pyarrow as arrow
    from pyarrow import parquet
except ImportError as error:
    raise DependencyError("reading LeRobot data sets needs pyarrow: pip install 'tttstream[robots]'") from error

Floats = NDArray[np.float64]
VERSIONS = ("v2.0", "v2.1", "v3.0")
FAILURES = (OSError, ValueError, KeyError, arrow.ArrowException)


@dataclass(frozen=True)
class Episode:
    """number: of the episode. frames: the number of rows. data: the parquet file with its rows, possibly with
    others."""

    number: int
    frames: int
    data: Path


@dataclass(frozen=True)
class Footage:
    """A video and the time in it at which an episode begins."""

    video: Path
    start_s: float


class DataSet:
    """fps: the rate of its frames. cameras: the features that are pictures. Raises SourceError if the folder is no data
    set, for an unsupported version, and for damaged metadata."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        try:
            self._info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8"))
            self.version, self.fps = str(self._info["codebase_version"]), float(self._info["fps"])
            self.features: dict[str, dict[str, Any]] = dict(self._info["features"])
        except (*FAILURES, TypeError) as error:
            raise SourceError(
                f"{folder}/meta/info.json cannot be read as that of a LeRobot data set: {error}"
            ) from error
        if self.version not in VERSIONS or not self.fps > 0:
            raise SourceError(
                f"{self.name} is a LeRobot data set of version {self.version} at {self.fps:g} frames a second: "
                f"expected one of {', '.join(VERSIONS)}"
            )
        self.cameras = [name for name, kind in self.features.items() if kind.get("dtype") in ("video", "image")]
        self._rows: dict[int, dict[str, Any]] = {}
        try:
            self.episodes = self._list()
        except (*FAILURES, TypeError) as error:
            raise SourceError(f"the episodes of {self.name} cannot be read: {error}") from error
        if not self.episodes:
            raise SourceError(f"{self.name} contains no episodes")

    def _list(self) -> list[Episode]:
        meta = self.folder / "meta"
        if self.version == "v3.0":
            files = sorted((meta / "episodes").glob("chunk-*/file-*.parquet"))
            rows = [row for file in files for row in _table(file, None, "stats/").to_pylist()]
        else:
            lines = (meta / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
        self._rows = {int(row["episode_index"]): row for row in rows}
        return [
            Episode(number, int(row["length"]), self._path("data_path", number, row, "data"))
            for number, row in sorted(self._rows.items())
        ]

    def _path(self, what: str, number: int, row: dict[str, Any], prefix: str, key: str = "") -> Path:
        """A file of an episode, by the pattern in info.json. prefix: of the columns that number its file (v3)."""
        values: dict[str, Any] = {
            "episode_index": number,
            "episode_chunk": number // int(self._info.get("chunks_size", 1000)),
            "video_key": key,
        }
        if self.version == "v3.0":
            values |= {"chunk_index": int(row[f"{prefix}/chunk_index"]), "file_index": int(row[f"{prefix}/file_index"])}
        path = self.folder / str(self._info[what]).format(**values)
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{what} leads out of the folder: {path}")
        return path

    def episode(self, number: int) -> Episode:
        """The episode of that number. Raises SourceError if there is none."""
        found = next((episode for episode in self.episodes if episode.number == number), None)
        if found is None:
            first, last = self.episodes[0].number, self.episodes[-1].number
            raise SourceError(f"{self.name} has no episode {number}; it has {len(self.episodes)}, {first} to {last}")
        return found

    def camera(self, name: str | None) -> str:
        """The feature with this name, or the only one with pictures. Raises SourceError if it is ambiguous."""
        known = ", ".join(self.cameras) or "none"
        if name is None and len(self.cameras) == 1:
            name = self.cameras[0]
        if name is None or name not in self.cameras:
            which = "which camera? Give --topic NAME" if name is None else f"there is no camera {name}"
            raise SourceError(f"{self.name}: {which}; it has {known}")
        info = self.features[name].get("info") or {}
        if info.get("video.is_depth_map") or info.get("is_depth_map"):
            raise SourceError(f"{name} of {self.name} is depth, packed into colours: give a camera with pictures")
        return name

    def footage(self, episode: Episode, camera: str) -> Footage:
        """The video of an episode. Raises SourceError if it does not exist."""
        row = self._rows[episode.number]
        try:
            path = self._path("video_path", episode.number, row, f"videos/{camera}", camera)
            start = float(row[f"videos/{camera}/from_timestamp"]) if self.version == "v3.0" else 0.0
        except FAILURES as error:
            raise SourceError(f"episode {episode.number} of {self.name} has no video of {camera}: {error}") from error
        if not os.path.isfile(path):
            raise SourceError(f"episode {episode.number} of {self.name}: there is no {path.relative_to(self.folder)}")
        return Footage(path, start)

    def column(self, episode: Episode, name: str) -> Any:
        """A column of an episode, in the order of its frames, as an arrow array of `frames` values.

        Raises SourceError if it does not exist, or if its length differs from the metadata.
        """
        try:
            table = _table(episode.data, ["episode_index", "frame_index", name])
            here = np.flatnonzero(np.asarray(table["episode_index"]) == episode.number)
            mine = table.take(here[np.argsort(np.asarray(table["frame_index"])[here], kind="stable")])
        except FAILURES as error:
            raise SourceError(f"{name} of episode {episode.number} of {self.name} cannot be read: {error}") from error
        if len(mine) != episode.frames:
            raise SourceError(
                f"episode {episode.number} of {self.name} has {len(mine)} rows in {episode.data.name}, and "
                f"{episode.frames} by its description"
            )
        return mine[name]

    def times(self, episode: Episode) -> Floats:
        """The time of each frame in seconds, from the episode's start."""
        times = np.asarray(self.column(episode, "timestamp"), np.float64)
        if len(times) > 1 and not (np.diff(times) > 0).all():
            raise SourceError(f"the times of episode {episode.number} of {self.name} do not increase")
        return times

    def form(self, spec: str) -> tuple[Form, str, list[int]]:
        """The values of `--pose FEATURE` or `FEATURE:NAME,NAME`: the poses, the feature, and the places in it."""
        feature, colon, chosen = spec.partition(":")
        kind = self.features.get(feature)
        fitting = [n for n, k in self.features.items() if str(k.get("dtype", "")).startswith(("float", "int"))]
        if kind is None or feature not in fitting or len(kind.get("shape", ())) != 1:
            raise SourceError(f"{self.name} has no vector {feature!r} for a pose; it has {', '.join(fitting)}")
        names = _names(kind.get("names"), int(kind["shape"][0]))
        wanted = chosen.split(",") if colon else names
        unknown = next((name for name in wanted if name not in names), None)
        if unknown is not None:
            raise SourceError(f"{feature} of {self.name} has no {unknown!r}; it has {', '.join(names)}")
        return Form([Number(name) for name in wanted]), feature, [names.index(name) for name in wanted]

    def poses(self, episode: Episode, feature: str, places: list[int]) -> Floats:
        """The numbers of each frame, [frames, P]. Raises SourceError for those that are not finite."""
        column = self.column(episode, feature).to_pylist()
        found = np.array([np.atleast_1d(np.asarray(row, np.float64))[places] for row in column])
        bad = np.flatnonzero(~np.isfinite(found).all(1))
        if len(bad):
            raise SourceError(f"{feature} of frame {bad[0]} of episode {episode.number} of {self.name} is not finite")
        return found

    def stored(self, episode: Episode, camera: str) -> Iterator[bytes]:
        """The encoded pictures of an episode in its table."""
        for row in self.column(episode, camera):
            value = row.as_py() or {}
            if value.get("bytes"):
                yield value["bytes"]
            else:
                yield (self.folder / str(value.get("path"))).read_bytes()


def _names(given: Any, count: int) -> list[str]:
    """The names of the numbers of a vector: from a list, from lists with titles, or their indices."""
    if isinstance(given, dict):
        given = [name for part in given.values() for name in (part if isinstance(part, list) else [part])]
    names = [str(name) for name in given or []]
    return names if len(names) == count == len(set(names)) else [str(place) for place in range(count)]


def _table(file: Path, columns: list[str] | None, without: str | None = None) -> Any:
    """Reads a parquet file. columns: those to read. without: leave out columns with this prefix."""
    with parquet.ParquetFile(file) as opened:
        names = opened.schema_arrow.names
        missing = [name for name in columns or () if name not in names]
        if missing:
            raise ValueError(f"{file.name} has no column {missing[0]}; it has {', '.join(names)}")
        if without is not None:
            columns = [name for name in names if not name.startswith(without)]
        return opened.read(columns)
