"""Reads lists of videos and labels in common formats, with spaces or separators, quotes, header, comments. The
interpretation is described in one line, and an ambiguous row is refused.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tttstream.errors import DataError
from tttstream.train.data.columns import (
    ADVICE,
    ROLES,
    Line,
    Row,
    by_content,
    by_header,
    footage,
    is_header,
    is_number,
    refused,
    to_row,
)
from tttstream.train.data.listing import read_text

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}
MARKED = re.compile(r"[^\d\s.][,;|]|[,;|][^\d\s.]")  # a word with a comma or the like in it that is no number
WORD = re.compile(r"""(?:"([^"]*)"|'([^']*)'|(\S+))(?=\s|$)""")


class Listing(NamedTuple):
    """The rows of a list, and a description of its format."""

    rows: list[Row]
    read: str


class _Word(NamedTuple):
    text: str
    quoted: bool
    start: int
    stop: int


class _Way(NamedTuple):
    """A way to read a line of words. side: the position of its path: "first", "last", or "alone"."""

    path: str
    rest: list[_Word]
    side: str


class _Table(NamedTuple):
    """The cells of all rows, the same number in each. header: that of the file, if it has one."""

    manner: str
    lines: list[Line]
    cells: list[list[str]]
    path: int
    header: list[str]


def read_list(file: Path, place: Callable[[str], Path], columns: Sequence[str] = ()) -> Listing:
    """Read a list. place: returns the location of a path of the list. columns: their roles, see ROLES.

    Raises DataError, which names the row, if it can be read in two ways.
    """
    if columns and (not {*columns} <= {*ROLES} or any(columns.count(role) > 1 for role in ROLES[:-1])):
        raise DataError(f"{file}: columns are {list(columns)}: expected some of {', '.join(ROLES)}, each once")
    if columns and "path" not in columns:
        raise DataError(f"{file}: columns are {list(columns)}: expected one of them to be path")
    return _Reader(file, place, list(columns)).listing()


class _Reader:
    def __init__(self, file: Path, place: Callable[[str], Path], columns: list[str]) -> None:
        self._file, self._place, self._columns = file, place, columns
        texts = enumerate(re.split(r"\r\n|\r|\n", read_text(file)), start=1)
        lines = [Line(number, text.lstrip("\ufeff").strip(" ")) for number, text in texts if text.strip("\ufeff \t")]
        self._comments = [line for line in lines if line.text.lstrip().startswith("#")]
        for line in self._comments:
            if any(self._there(way.path) for way in self._ways(line.text)):
                raise refused(file, line, "it begins with # as a comment, and there is a file of that name; write ./#")
        self._lines = [line for line in lines if line not in self._comments]
        if self._lines and re.fullmatch("(?i)sep=.?", self._lines[0].text):  # a note for Excel
            del self._lines[0]
        if self._lines and re.match(r"\[?\s*\{", self._lines[0].text):
            raise DataError(f"{file} is JSON; expected a list with one video per line, or a csv")
        if not self._lines:
            raise DataError(f"{file} is empty; expected one line for each video")

    def listing(self) -> Listing:
        """Read the whole list."""
        table = self._separated() or self._spaced()
        if not table.cells:
            raise DataError(f"{self._file} names its columns and no video")
        roles = self._roles(table)
        rows = [to_row(self._file, line, row, roles) for line, row in zip(table.lines, table.cells, strict=True)]
        said = f"{table.manner}, columns {', '.join(roles)}" if len(roles) > 1 else table.manner
        if table.header:
            unused = [name for name, role in zip(table.header, roles, strict=True) if role == "-" and name]
            said += f", header on line {self._lines[0].number}"
            said += f" ({', '.join(unused)} not used)" if unused else ""
        if self._comments:
            said += f", {len(self._comments)} line{'s' * (len(self._comments) > 1)} of comments"
        return Listing(rows, said)

    def _roles(self, table: _Table) -> list[str]:
        if self._columns:
            if len(self._columns) != len(table.cells[0]):
                came = ", ".join(table.cells[0])
                raise refused(
                    self._file, table.lines[0], f"{len(table.cells[0])} columns ({came}), not {self._columns}"
                )
            return self._columns
        if table.header:
            return by_header(self._file, self._lines[0], table.header, table.cells)
        folders = [self._place(row[table.path]) for row in table.cells] if len(table.cells[0]) == 3 else []
        return by_content(self._file, table.lines[0], table.cells, table.path, folders)

    def _there(self, path: str) -> bool:
        try:
            return bool(path) and self._place(path).exists()
        except (OSError, ValueError):  # too long, or no name at all
            return False

    # Cells between separators.

    def _separated(self) -> _Table | None:
        """The list as cells between tabs, semicolons, commas or bars, if it has such separators."""
        found = [table for mark in SEPARATORS if (table := self._cut(mark)) is not None]
        found = [table for table in found if table.header] or found
        if len(found) > 1:
            ways = " or ".join(table.manner for table in found)
            raise refused(self._file, self._lines[0], f"it may be {ways}; put quotes around the cells")
        return found[0] if found else None

    def _cut(self, mark: str) -> _Table | None:
        rows = [_cells(line.text, mark) for line in self._lines]
        width = Counter(map(len, rows)).most_common(1)[0][0]
        if width < 2 or 2 * sum(len(row) == width for row in rows) <= len(rows):
            return None
        header: list[str] = []
        lines = self._lines
        if self._names_columns(rows[0], any(map(self._there, rows[0])), [cell for row in rows[1:] for cell in row]):
            header, rows, lines = rows[0], rows[1:], lines[1:]
        path = self._columns.index("path") if self._columns else self._path_column(rows, width)
        if header and path is None:
            path = 0
        if path is None:
            return None
        if self._columns and not header and len(rows) > 1:
            first, *rest = (len(row) > path and self._is_path(row[path]) for row in rows)
            if not first and all(rest):
                header, rows, lines = rows[0], rows[1:], lines[1:]
        for line, row in zip(self._lines, [header, *rows] if header else rows, strict=True):
            if len(row) != width:
                raise refused(
                    self._file, line, f"it has {len(row)} columns, other lines {width}; put quotes around a cell"
                )
        if any(footage(row[path]) for row in rows):
            for line, row in zip(lines, rows, strict=True):
                if row[path] and not self._is_path(row[path]):
                    raise refused(self._file, line, f"{row[path]!r} is no video; if this line names columns, {ADVICE}")
        if not self._columns:  # a separator at the end of every line is no additional column
            kept = [i for i in range(width) if i == path or any(row[i] for row in [header or [""] * width, *rows])]
            rows, header = [[row[i] for i in kept] for row in rows], [header[i] for i in kept if header]
            path = kept.index(path)
        return _Table(f"separated by {SEPARATORS[mark]}", lines, rows, path, header)

    def _is_path(self, cell: str) -> bool:
        return footage(cell) or self._there(cell)

    def _path_column(self, rows: list[list[str]], width: int) -> int | None:
        """The column of paths: by the suffixes of its cells, else by existing files."""
        for test in (footage, self._there):
            counts = [sum(len(row) > i and test(row[i]) for row in rows) for i in range(width)]
            if max(counts) * 2 >= max(1, len(rows) - 1):
                different = [len({row[i] for row in rows if len(row) > i}) for i in range(width)]
                best = sorted((i for i in range(width) if counts[i] == max(counts)), key=lambda i: -different[i])
                if len(best) > 1 and different[best[0]] == different[best[1]]:
                    raise refused(self._file, self._lines[0], f"two columns may be paths; {ADVICE}")
                return best[0]
        return None

    def _names_columns(self, cells: list[str], there: bool, others: list[str]) -> bool:
        """Whether the first line names columns. there: a cell of it is the name of a file."""
        if not is_header(cells):
            return False
        if there and len(cells) > 1 and not any(map(footage, others)):
            raise refused(
                self._file, self._lines[0], f"does it name columns, or is it a folder that is there? {ADVICE}"
            )
        return not there or any(map(footage, others))

    # Words between spaces.

    def _ways(self, text: str) -> list[_Way]:
        """All ways to read a line as a path and words: by suffixes of paths, else by existing files."""
        words = _words(text)
        if not words:
            return []
        if words[0].quoted:
            tail = text[words[-1].start if words[-1].quoted else words[min(1, len(words) - 1)].start :]
            if len(words) > 1 and footage(tail.strip("\"'")) and not self._is_path(words[0].text):
                return [_Way(tail.strip("\"'"), words[:1], "last")]
            return [_Way(words[0].text, words[1:], "first" if words[1:] else "alone")]
        if words[-1].quoted and footage(words[-1].text):
            return [_Way(words[-1].text, words[:-1], "last")]
        ways = [
            _Way(text[words[0].start : word.stop], words[i + 1 :], "first" if words[i + 1 :] else "alone")
            for i, word in enumerate(words)
            if not any(word.quoted for word in words[: i + 1])
        ]
        if not words[-1].quoted:
            ways += [
                _Way(text[word.start : words[-1].stop], words[: i + 1], "last") for i, word in enumerate(words[1:])
            ]
        for test in (footage, self._there):
            good = [way for way in ways if test(way.path)]
            if good:
                return good
        return []

    def _spaced(self) -> _Table:
        """The list as paths and words, separated by spaces; paths and labels may contain spaces too."""
        names = [word.text for word in _words(self._lines[0].text)]
        ways = [self._ways(line.text) for line in self._lines]
        others = [way.path for found in ways[1:] for way in found]
        header = names if self._names_columns(names, bool(ways[0]), others) else []
        if self._columns and not ways[0] and len(ways) > 1 and all(ways[1:]):
            header = names
        lines, ways = (self._lines[1:], ways[1:]) if header else (self._lines, ways)
        sure = [self._only(found) for found in ways]
        sides = {way.side for way in sure if way is not None}
        side = "last" if sides - {"alone"} == {"last"} else "first"
        endings = any(footage(way.path) for found in ways for way in found)
        cells: list[list[str]] = []
        for line, found, way in zip(lines, ways, sure, strict=True):
            way = way or self._unsure(line, found, sides, endings)
            if way.side not in (side, "alone"):
                raise refused(self._file, line, f"its path is {way.side}, that of other lines is {side}")
            rest = self._merged(line, way.rest, header)
            cells.append([way.path, *rest] if side == "first" else [*rest, way.path])
        widths = Counter(len(row) for row in cells if len(row) > 1).most_common(1)
        width = len(header or self._columns) or (widths[0][0] if widths else 1)
        for line, row in zip(lines, cells, strict=True):
            if len(row) not in (1, width) or (len(row) == 1 and width > 2):
                raise refused(self._file, line, f"it has {len(row)} columns, other lines {width}")
            if len(row) < width:
                row.insert(1 if side == "first" else 0, "")
        manner = "separated by spaces" if width > 1 else "one path a line"
        return _Table(manner, lines, cells, 0 if side == "first" else width - 1, header)

    def _only(self, ways: list[_Way]) -> _Way | None:
        """The only way, or the only one whose path exists."""
        ways = [way for way in ways if self._there(way.path)] if len(ways) > 1 else ways
        return ways[0] if len(ways) == 1 else None

    def _unsure(self, line: Line, ways: list[_Way], sides: set[str], endings: bool) -> _Way:
        """Read a line that is ambiguous by suffixes and files like the others. sides: the positions of their paths; if
        there is none, the root is wrong, which is reported later."""
        words = _words(line.text)
        if not ways and endings:
            raise refused(self._file, line, f"no video is named in it; if it names the columns, {ADVICE}")
        fits = [way for way in ways if way.side in sides] or ways
        if sides and (len(fits) > 1 or (not ways and len(words) > 2)):
            raise refused(
                self._file, line, "the end of its path is not clear, because the path does not exist; quote it"
            )
        return fits[0] if fits else _Way(words[0].text, words[1:], "first")

    def _merged(self, line: Line, words: list[_Word], header: list[str]) -> list[str]:
        """The words after or before a path as cells: a label may have several words."""
        names = self._columns or header
        texts = [word.text for word in words]
        marked = next((i for i, word in enumerate(words) if word.text[:1] == "#" and not word.quoted), None)
        if marked is not None:
            if marked != 1 or not is_number(texts[0]):
                raise refused(self._file, line, "a comment, or a part of the label? put quotes around the label")
            words, texts = words[:1], texts[:1]
        room = max(1, len(names) - 1)
        if not names and len(words) == 1 and not words[0].quoted and MARKED.search(texts[0]):
            raise refused(self._file, line, f"{texts[0]!r}: several labels, or one? put one in quotes")
        if len(texts) <= room:
            return texts
        surplus = words[room - 1 :]
        plain = not any(word.quoted or (is_number(word.text) and not names) for word in surplus)
        if plain and (not names or (self._columns or header)[-1] not in ("frames", "start", "stop")):
            return [*texts[: room - 1], " ".join(word.text for word in surplus)]
        return texts


def _cells(text: str, mark: str) -> list[str]:
    """A line split at a separator, without quotes; None if a quote is not closed."""
    try:
        (row,) = csv.reader([text], delimiter=mark, skipinitialspace=mark != "\t", strict=True)
    except (csv.Error, ValueError):
        return []
    cells = [cell.strip() for cell in row]
    return [cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == "'" else cell for cell in cells]


def _words(text: str) -> list[_Word]:
    """The words of a line; a quoted part is one word."""
    found = []
    for word in WORD.finditer(text):
        quoted, single, plain = word.groups()
        value = next(group for group in (quoted, single, plain) if group is not None)
        found.append(_Word(value, plain is None, word.start(), word.end()))
    return found
