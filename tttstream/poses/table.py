"""Text files of numbers: rows with their line numbers, and names if the file has a header."""

import csv
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError

COMMENTS = ("#", "%", "//")


@dataclass(frozen=True)
class Table:
    """names: one for each column, None without a header. cells: [rows, columns], NaN if there is no number. lines: of
    each row, counted from 1. odd: the text of cells that are no numbers, by row and column; and by row only, the fault
    of a row with another length (its cells are NaN)."""

    names: list[str] | None
    cells: NDArray[np.float64]
    lines: list[int]
    odd: dict[tuple[int, int], str]
    uneven: dict[int, str]

    def words(self, column: int) -> bool:
        """Whether a column contains words: no cell is a number, and at least one is not empty."""
        texts = [self.odd.get((row, column)) for row in range(len(self.lines)) if row not in self.uneven]
        return None not in texts and any(texts)


def number(text: str) -> float | None:
    """The number in a text, in Python's notation without underscores; None for other texts."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def splitter(line: str) -> Callable[[str], list[str]]:
    """A function that splits lines like this one into cells: at commas, semicolons, tabs, or else at white space."""
    mark = next((mark for mark in (",", ";", "\t") if mark in line), None)
    if mark is None:
        return str.split

    def cells(line: str) -> list[str]:
        found = next(csv.reader([line], delimiter=mark, skipinitialspace=True), []) if '"' in line else line.split(mark)
        return [cell.strip() for cell in found]

    return cells


def read(path: Path, has_header: Callable[[list[str]], bool]) -> Table:
    """Read a file. has_header: whether a comment with one word for each column is their header.

    Raises SourceError for a file that is no text, and for a file without a row.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise SourceError(f"there is no file of poses {os.fspath(path)}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{path.name} is no text (UTF-8): expected csv with a header, TUM or KITTI poses") from error
    except OSError as error:
        raise SourceError(f"{path.name} cannot be read: {error.strerror}") from error
    rows = [(at, line.strip()) for at, line in enumerate(lines, 1)]
    comments = [line.lstrip("#%/ ") for _, line in rows if line.startswith(COMMENTS)]
    rows = [(at, line) for at, line in rows if line and not line.startswith(COMMENTS)]
    if not rows:
        raise SourceError(f"{path.name} has no rows: expected csv with a header, TUM or KITTI poses")
    split = splitter(rows[0][1])
    names: list[str] | None = split(rows[0][1])
    assert names is not None
    if any(number(cell) is not None for cell in names) or not any(names):
        count = len(names)
        heads = [words for words in (splitter(line)(line) for line in comments) if len(words) == count]
        labels = [number(cell) for cell in names]
        first = names
        names = next((words for words in reversed(heads) if has_header(words)), None)
        # pandas numbers columns without names, and writes row numbers without a name
        if names is None and labels in ([*range(count)], [None, *range(count - 1)]) and count > 1:
            names, rows = None if first[0] else first, rows[1:]
            if not rows:
                raise SourceError(f"{path.name} has a header and no rows")
    else:
        rows = rows[1:]
        while not names[-1]:  # a separator at the end
            names.pop()
        count = len(names)
        if not rows:
            raise SourceError(f"{path.name} has a header and no rows")
    return _fill(names, count, rows, split)


def _fill(names: list[str] | None, count: int, rows: list[tuple[int, str]], split: Callable[[str], list[str]]) -> Table:
    cells = np.full((len(rows), count), np.nan)
    odd: dict[tuple[int, int], str] = {}
    uneven: dict[int, str] = {}
    for row, (_, line) in enumerate(rows):
        texts = split(line)
        while len(texts) > count and not texts[-1]:  # a separator at the end
            texts.pop()
        if len(texts) != count:
            uneven[row] = f"it has {len(texts)} values, expected {count}"
            continue
        for column, text in enumerate(texts):
            value = number(text)
            if value is None:
                odd[row, column] = text
            cells[row, column] = math.nan if value is None else value
    return Table(names, cells, [at for at, _ in rows], odd, uneven)
