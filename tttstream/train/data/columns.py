"""Determines the meaning of the columns of a list of videos, by their names or their values."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tttstream.errors import DataError
from tttstream.sources.folder import IMAGES, VIDEOS, listed

ROLES = ("path", "label", "name", "frames", "start", "stop", "part", "-")
"""label: a class, by name or number. name: the name beside a number. frames: how many the video has. start, stop: the
frames [start, stop) of it, from 0. part: train, val or test. -: nothing that is used."""

KNOWN = {
    "path": "path file filename file_name filepath file_path frame_dir video video_path video_name video_file videos "
    "clip clip_path clip_name name id video_id",
    "label": "label labels class classes category target y action activity tag label_id labelid class_id classid "
    "class_idx class_index label_idx label_index category_id target_id action_id",
    "name": "label_name labelname class_name classname category_name action_name action_label",
    "frames": "frames num_frames n_frames nframes frame_count total_frames number_of_frames",
    "start": "start_frame first_frame frame_start",
    "stop": "stop_frame end_frame frame_stop frame_end",
    "part": "part split subset set partition phase usage",
}
HEADINGS = {name: role for role, names in KNOWN.items() for name in names.split()}
UNCLEAR = re.compile(
    r"(start|stop|end|begin|from|to|offset)(_?(time|s|sec|seconds|idx|index))?|(time|t)_(start|stop|end)"
)
"""Headings that may mean frames or seconds; such ambiguous columns are refused."""

PARTS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "testing": "test"}
ADVICE = f"give the columns, such as columns: [path, label] (known: {', '.join(ROLES)}; - for one not used)"
NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")


class Line(NamedTuple):
    """A line of a file; the first line has number 1."""

    number: int
    text: str


class Row(NamedTuple):
    """One video of a list. line: of the file. label: None if it has none. name: the class name of a numeric label.
    start, stop: the frames of the video, stop None for all. part: train, val, test or another word."""

    line: int
    path: str
    label: str | None = None
    name: str | None = None
    start: int = 0
    stop: int | None = None
    part: str | None = None


def refused(file: Path, line: Line, why: str) -> DataError:
    """A DataError that names the row."""
    text = line.text if len(line.text) < 90 else line.text[:88] + " …"
    return DataError(f"{file} line {line.number} ({text.strip()}): {why}")


def footage(cell: str) -> bool:
    """Whether a cell has the suffix of a video or an image."""
    return Path(cell).suffix.lower() in VIDEOS | IMAGES


def is_number(cell: str) -> bool:
    """Whether a cell is a number in any form."""
    return NUMBER.fullmatch(cell) is not None


def heading(cell: str) -> str:
    """The name of a column in the form of HEADINGS."""
    return re.sub(r"[\s-]+", "_", cell.strip().lstrip("#").strip().casefold())


def is_header(cells: Sequence[str]) -> bool:
    """Whether cells name columns, one of them that of the paths."""
    names = [heading(cell) for cell in cells]
    return any(HEADINGS.get(name) == "path" for name in names) and not any(footage(c) or is_number(c) for c in cells)


def by_header(file: Path, line: Line, header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The role of each column by its name. Raises DataError if two columns may have the same role."""
    names = [heading(cell) for cell in header]
    roles = [HEADINGS.get(name, "-") for name in names]
    unclear = [cell for cell, name in zip(header, names, strict=True) if UNCLEAR.fullmatch(name)]
    if unclear:
        raise refused(file, line, f"{unclear[0]!r} may count frames or seconds; {ADVICE}")
    columns = list(zip(*cells, strict=True)) or [()] * len(roles)
    paths = [i for i, role in enumerate(roles) if role == "path"]
    if len(paths) > 1:  # a name or number beside the path
        full = [i for i in paths if columns[i] and all(map(footage, columns[i]))]
        full = full or [i for i in paths if names[i] == "path"]
        paths = full if len(full) == 1 else paths
        roles = ["-" if role == "path" and i not in paths else role for i, role in enumerate(roles)]
    labels = [i for i, role in enumerate(roles) if role == "label"]
    if len(labels) == 2 and "name" not in roles:  # such as label and label_id
        texts = [i for i in labels if not any(map(is_number, columns[i]))]
        numbers = [i for i in labels if all(map(is_number, columns[i]))]
        if len(texts) == len(numbers) == 1:
            roles[texts[0]] = "name"
    if "name" in roles and "label" not in roles:
        roles = ["label" if role == "name" else role for role in roles]
    for role in ROLES[:-1]:
        twice = [cell for cell, other in zip(header, roles, strict=True) if other == role]
        if len(twice) > 1:
            raise refused(file, line, f"{' and '.join(map(repr, twice))} may both be the {role}; {ADVICE}")
    return roles


def by_content(file: Path, line: Line, cells: list[list[str]], path: int, folders: Sequence[Path]) -> list[str]:
    """The role of each column without names: a path, and a label. Raises DataError if there are more columns.

    A whole number between a path and its label is the number of frames if every existing path is a folder with this
    number of images.
    """
    width = len(cells[0])
    rest = [i for i in range(width) if i != path]
    roles = ["path" if i == path else "label" for i in range(width)]
    if len(rest) == 2:
        counts = [len(listed(folder, IMAGES)) if folder.is_dir() else None for folder in folders]
        pairs = [(row[rest[0]], str(count)) for row, count in zip(cells, counts, strict=True) if count is not None]
        if pairs and all(said == count for said, count in pairs):
            roles[rest[0]] = "frames"
            return roles
    if len(rest) > 1:
        came = ", ".join(cells[0])
        raise refused(file, line, f"{width} columns ({came}) without names may mean several things; {ADVICE}")
    if rest and any(footage(row[rest[0]]) for row in cells):
        raise refused(file, line, f"two columns may be paths; {ADVICE}")
    return roles


def to_row(file: Path, line: Line, cells: Sequence[str], roles: Sequence[str]) -> Row:
    """The Row of these cells."""
    said = {role: cell for role, cell in zip(roles, cells, strict=True) if role != "-" and cell}
    if "path" not in said:
        raise refused(file, line, "it has no path")
    numbers: dict[str, int] = {}
    for role in ("start", "stop", "frames"):
        if role in said:
            if not re.fullmatch("[0-9]+", said[role]):
                raise refused(file, line, f"{role} is a number of frames, got {said[role]!r}")
            numbers[role] = int(said[role])
    start, stop = numbers.get("start", 0), numbers.get("stop")
    if "start" in numbers and stop is None and "frames" in numbers:
        stop = start + numbers["frames"]
    if stop is not None and stop <= start:
        raise refused(file, line, f"the frames [{start}, {stop}) are none")
    part = said.get("part", "").casefold()
    return Row(
        line.number, said["path"], said.get("label"), said.get("name"), start, stop, PARTS.get(part, part) or None
    )
