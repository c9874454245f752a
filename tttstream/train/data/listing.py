"""What lies on disk, read in a way that says in one line what is wrong with it: folders, text, csv, json, labels."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tttstream.errors import DataError
from tttstream.sources.folder import VIDEOS, natural

logger = logging.getLogger(__name__)


class Labels:
    """The numbers of classes by their names; a number stands for itself."""

    def __init__(self, classes: Sequence[str]) -> None:
        twice = [name for name, count in Counter(classes).items() if count > 1]
        if twice:
            raise DataError(f"two classes are called {twice[0]!r}; give each a name of its own")
        self._numbers = {name: number for number, name in enumerate(classes)}

    def number(self, name: str, where: str) -> int:
        """The number of a class. Raises DataError, which says where, for one that is not known."""
        if name in self._numbers:
            return self._numbers[name]
        if re.fullmatch("[0-9]+", name) and (not self._numbers or int(name) < len(self._numbers)):
            return int(name)
        some = f"one of {len(self._numbers)}, such as {next(iter(self._numbers))!r}" if self._numbers else "a number"
        raise DataError(f"{where}: unknown class {name!r}; expected {some}")


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in natural order."""
    try:
        return sorted(folder.iterdir(), key=natural)
    except OSError as error:
        raise DataError(f"no folder {folder}, or it cannot be listed: {error.strerror}") from error


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out."""
    return [path.name for path in entries(folder) if path.name[0] != "." and path.is_dir()]


def below(root: Path) -> list[str]:
    """The videos below a folder."""
    found = (path for path in entries(root) for path in (path, *sorted(path.rglob("*"))))
    return [path.as_posix() for path in found if path.suffix.lower() in VIDEOS]


def read_text(path: Path) -> str:
    """A text file as a whole."""
    try:
        data = path.read_bytes()
        wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some spreadsheets write
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text or (wide and "\ufeff" in text):
            raise ValueError("it holds bytes that are no text")
        return text
    except FileNotFoundError as error:
        raise DataError(f"no file {path}; give the split or label file that lists the videos") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty, of which there must be one."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; expected one line for each video or class")
    return lines


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a csv by their column names, some of which must be there."""
    try:
        rows = list(csv.DictReader(read_text(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as csv: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a line of column names and one for each video")
    missing = [name for name in columns if rows[0].get(name) is None]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}; it has {', '.join(map(str, rows[0]))}")
    return rows


def read_json(path: Path) -> Any:
    """What a json file holds."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as json: {error}") from error
