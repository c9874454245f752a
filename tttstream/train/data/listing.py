"""Readers of folders, text, csv, json and labels that report a fault in one line."""

import codecs
import csv
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tttstream.errors import DataError
from tttstream.io.names import expanded
from tttstream.sources.listing import VIDEOS, listed, natural, trees

logger = logging.getLogger(__name__)


class Labels:
    """The numbers of classes by their names; a number is its own label."""

    def __init__(self, classes: Sequence[str]) -> None:
        twice = [name for name, count in Counter(classes).items() if count > 1]
        if twice:
            raise DataError(f"two classes are called {twice[0]!r}; give each a name of its own")
        self._numbers = {name: number for number, name in enumerate(classes)}

    def number(self, name: str, where: str) -> int:
        """The number of a class. Raises DataError with the location for an unknown class."""
        if name in self._numbers:
            return self._numbers[name]
        if re.fullmatch("[0-9]+", name) and (not self._numbers or int(name) < len(self._numbers)):
            return int(name)
        some = f"one of {len(self._numbers)}, such as {next(iter(self._numbers))!r}" if self._numbers else "a number"
        raise DataError(f"{where}: unknown class {name!r}; expected {some}")


def place(text: str, what: str) -> Path:
    """A file or folder by its name; `~` is the home folder. Raises DataError if the name is empty."""
    return Path(expanded(text, what, DataError))


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, in natural order."""
    try:
        return sorted(folder.iterdir(), key=natural)
    except OSError as error:
        raise DataError(f"no folder {folder}, or it cannot be listed: {error.strerror}") from error


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones. A folder with several links to it has its own name, or
    that of the first link; cyclic links are left out. Raises DataError for a broken link.
    """
    visible = [path for path in entries(folder) if path.name[0] != "."]
    lost = next((path for path in visible if not path.suffix and path.is_symlink() and not path.exists()), None)
    if lost is not None:
        raise DataError(f"{lost} is a broken link (to {lost.readlink()}); repair or remove it")
    above = {folder.resolve(), *folder.resolve().parents}
    names: dict[Path, str] = {}
    for path in sorted((path for path in visible if path.is_dir()), key=Path.is_symlink):
        target = path.resolve()
        if target in names:
            warnings.warn(f"{path} is skipped: it is the folder {names[target]} under another name", stacklevel=2)
        elif target not in above:
            names[target] = path.name
    return [path.name for path in visible if path.name in names.values()]


def below(root: Path) -> list[str]:
    """The videos below a folder, including those behind links to folders."""
    entries(root)
    (tree,) = trees([root])
    for path in tree.lost:
        warnings.warn(f"{path} cannot be listed, or leads nowhere: what is in it counts as not there", stacklevel=2)
    return [path.as_posix() for here in tree.folders for path in listed(here, VIDEOS)]


def read_text(path: Path) -> str:
    """A text file as a whole."""
    try:
        data = path.read_bytes()
        wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some spreadsheets write
        text = data.decode("utf-16" if wide else "utf-8-sig")
        if "\0" in text or (wide and "\ufeff" in text):
            raise ValueError("it contains bytes that are no text")
        return text
    except FileNotFoundError as error:
        raise DataError(f"no file {path}; give the split or label file that lists the videos") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as text: {error}") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises DataError if there are none."""
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; expected one line for each video or class")
    return lines


def read_rows(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a csv by column names, with the numbers of their lines. The `needed` columns must exist and be
    filled.

    Raises DataError, which names the row, where one has too few columns or too many.
    """
    table = csv.DictReader(read_text(path).splitlines(), skipinitialspace=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for row in table:
            missing = next((name for name in columns if name not in row), None)
            if missing is not None:
                raise DataError(f"{path} has no column {missing!r}; it has {', '.join(table.fieldnames or ())}")
            where = f"{path} line {table.line_num}"
            more: Any = row.pop(None, [])
            if any(more):
                raise DataError(f"{where} has more columns than the first line; put quotes around a text with commas")
            empty = next((name for name in columns if not (row[name] or "").strip()), None)
            if empty is not None:
                raise DataError(f"{where} has no {empty}; expected {len(row)} columns: {', '.join(row)}")
            rows.append((table.line_num, row))
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as csv: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a line of column names and one for each video")
    return rows


def read_json(path: Path) -> Any:
    """The content of a json file."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} cannot be read as json: {error}") from error
