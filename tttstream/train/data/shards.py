"""WebDataset shards: tar files; members with the same stem are one sample, such as 0007.mp4 and 0007.cls."""

import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tttstream.errors import DataError, SourceError
from tttstream.io.names import expanded
from tttstream.sources.listing import VIDEOS
from tttstream.train.data.clips import Clip, VideoClip
from tttstream.train.data.files import MEMBER, member, members
from tttstream.train.data.indices import Index
from tttstream.train.data.listing import Labels


@dataclass
class Shards(Index):
    """Videos in uncompressed tar files on disk.

    shards: a path with {000..099} or * in it, or a list of such paths. A sample is a video KEY.mp4 (or another suffix),
    with its label, if any, in KEY.cls (a number) or in KEY.json under "label" or "cls" (a number, or a name in
    `classes`). Only the tables of contents are read in advance, so samples are shuffled across all shards and a run can
    continue exactly.
    """

    shards: str | list[str]
    classes: Sequence[str] = field(default_factory=list)

    def clips(self) -> list[Clip]:
        patterns = [self.shards] if isinstance(self.shards, str) else self.shards
        clips: list[Clip] = []
        for shard in (path for pattern in patterns for path in _expanded(pattern)):
            try:
                names = members(shard)
            except SourceError as error:
                raise DataError(str(error)) from error
            videos = [name for name in names if PurePosixPath(name).suffix.lower() in VIDEOS]
            if not videos:
                raise DataError(f"{shard} holds no videos; expected members such as 0007.mp4 with 0007.cls")
            clips += [VideoClip(shard + MEMBER + name, self._label(shard, name)) for name in videos]
        return clips

    def _label(self, shard: str, name: str) -> int:
        stem = name[: name.index(".", name.rfind("/") + 1)]
        names = members(shard)
        for label in (f"{stem}.cls", f"{stem}.json"):
            if label not in names:
                continue
            text = member(shard, label).decode("utf-8", "replace").strip()
            try:
                value = json.loads(text) if label.endswith(".json") else text
            except ValueError as error:
                raise DataError(f"{shard}: {label} cannot be read as json: {error}") from error
            if isinstance(value, dict):
                value = value.get("label", value.get("cls"))
            if value is not None:
                return Labels(self.classes).number(str(value), f"{shard}: {label}")
        return -1


def _expanded(pattern: str) -> list[str]:
    """The files that match a pattern with {000..099} and *; every file of a brace must exist."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        first, last = found.groups()
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        return [path for n in numbers for path in _expanded(pattern[: found.start()] + n + pattern[found.end() :])]
    pattern = expanded(pattern, "shards", DataError)
    paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
    if not paths:
        raise DataError(f"no shard {pattern}; give a path, or a pattern with {{000..099}} or *")
    return paths
