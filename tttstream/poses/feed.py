"""The current pose: the last line of a file that grows."""

import itertools
import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.frames import MOST_NUMBERS
from tttstream.poses import table
from tttstream.poses.columns import understand
from tttstream.poses.form import Form, Number

TOLERANCE_S = 1.0
KNOWN = (8, 12, 13)  # the numbers in rows of TUM and KITTI files
TAIL = 8192  # bytes from the end in which the last line is searched


class Feed:
    """Returns the pose in the last complete line of a file, as long as the file grows.

    path: numbers separated by spaces or commas, one pose per line. A header (as in a csv of poses, or the last comment
    before the first pose, if it has a word for each number) names columns, and columns of time are ignored. Without a
    header, rows of TUM and KITTI files are recognised. A line is complete when its line end is written. keys: the
    columns, as in `--pose`. tolerance: seconds after which a file that was not written to is stale.

    A call takes the capture time (not used) and returns the pose [P], or None with the cause in `reason`. Raises
    SourceError if there is no such file, or its header cannot be understood.
    """

    def __init__(
        self, path: str | os.PathLike[str], keys: str | None = None, *, tolerance: float = TOLERANCE_S
    ) -> None:
        self._path, self._keys, self.tolerance = Path(path), keys, tolerance
        self.name = self._path.name
        if not tolerance > 0:
            raise SourceError(f"the tolerance for {self.name} is {tolerance}: expected seconds above 0")
        if not self._path.is_file():
            raise SourceError(f"there is no file of poses {self._path}: start what writes it first")
        self.form: Form | None = None
        self._places: list[int] = []
        self._count, self._header = 0, ""
        self.reason = ""
        self._understand()

    @property
    def text(self) -> str:
        """The format that was recognised, in one line."""
        what = "the numbers of a line" if self.form is None else self.form.text
        return f"{self.name}: its last line as it grows, stale after {self.tolerance:g} s: {what}"

    def __call__(self, moment: float = 0.0) -> NDArray[np.float64] | None:
        """The current pose [P], None if it is unknown."""
        try:
            age = time.time() - self._path.stat().st_mtime
            line = self._last_line()
        except OSError as error:
            return self._unknown(f"{self.name} cannot be read: {error.strerror}")
        if age > self.tolerance:
            return self._unknown(f"{self.name} stopped growing: its last line is older than {self.tolerance:g} s")
        if self.form is None:
            self._understand()
        if line is None or line == self._header:
            return self._unknown(f"{self.name} has no complete line")
        values = [table.number(cell) for cell in table.splitter(line)(line)]
        if self.form is None:  # no header: the first line determines the number of values
            if not 1 <= len(values) <= MOST_NUMBERS or None in values:
                return self._unknown(f"{self.name}: {line!r:.60} is no pose of 1 to {MOST_NUMBERS} numbers")
            self.form = self._numbered(np.array(values, np.float64))
        if len(values) != self._count:
            return self._unknown(f"{self.name}: {line!r:.60} has {len(values)} values, expected {self._count}")
        raw = np.array([np.nan if values[place] is None else values[place] for place in self._places], np.float64)
        fault = self.form.fault(raw) if np.isfinite(raw).all() else "expected finite numbers"
        if fault is not None:
            return self._unknown(f"{self.name}: {line!r:.60}: {fault}")
        self.reason = ""
        return self.form.encode(raw)

    def _unknown(self, reason: str) -> NDArray[np.float64] | None:
        self.reason = reason
        return None

    def _numbered(self, values: NDArray[np.float64]) -> Form:
        """The form of lines without a header, as this one: that of TUM or KITTI rows, or plain numbers."""
        self._count, self._places = len(values), list(range(len(values)))
        if self._count in KNOWN and np.isfinite(values).all():
            columns = understand(table.Table(None, values[None], [1], {}, {}), self.name, None)
            if columns.form.fault(values[columns.places]) is None:
                self._places = columns.places
                return columns.form
        return Form([Number(str(place)) for place in self._places])

    def _understand(self) -> None:
        """Look for a header: the first line that is no comment, or the last comment before the first pose."""
        try:
            with open(self._path, encoding="utf-8-sig", errors="replace") as file:
                heads = list(itertools.takewhile(lambda line: not line.strip() or _comment(line), file))
                file.seek(0)
                head = next(itertools.islice(file, len(heads), None), "")
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror}") from error
        if not head.endswith("\n"):
            return
        words = table.splitter(head.strip())(head.strip())
        if any(table.number(word) is not None for word in words):
            found = [line.lstrip("#%/ ").strip() for line in heads]
            named = [names for line in found if len(names := table.splitter(line)(line)) == len(words)]
            words = named[-1] if named else []
        else:
            self._header = head.strip()
        if words:
            rows = table.Table(words, np.zeros((1, len(words))), [2], {}, {})
            columns = understand(rows, self.name, self._keys)
            self.form, self._places, self._count = columns.form, columns.places, len(words)
        elif self._keys is not None:
            raise SourceError(f"{self.name} has no header: columns cannot be chosen by name ({self._keys})")

    def _last_line(self) -> str | None:
        """The last complete line that is no comment and not the header, None if there is none."""
        with open(self._path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read().decode("utf-8", errors="replace").lstrip("\ufeff")
        whole = text[: text.rfind("\n") + 1].splitlines()
        if size > TAIL:
            whole = whole[1:]
        rows = (line.strip() for line in reversed(whole))
        return next((line for line in rows if line and not _comment(line) and line != self._header), None)


def _comment(line: str) -> bool:
    return line.lstrip().startswith(table.COMMENTS)
