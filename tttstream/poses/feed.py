"""The current pose: the last line of a file that grows."""

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
TAIL = 8192  # bytes from the end in which the last line is searched


class Feed:
    """Returns the pose in the last complete line of a file, as long as the file grows.

    path: numbers separated by spaces or commas, one pose per line; a header (as in a csv of poses) names columns, and
    columns of time are ignored. A line is complete when its line end is written. keys: the columns, as in `--pose`.
    tolerance: seconds after which a file that was not written to is stale.

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
        self._count, self._header = 0, False
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
        if line is None:
            return self._unknown(f"{self.name} has no complete line")
        if self.form is None:
            self._understand()
        values = [table.number(cell) for cell in table.splitter(line)(line)]
        if self.form is None:  # no header: the first line determines the number of values
            if not 1 <= len(values) <= MOST_NUMBERS or None in values:
                return self._unknown(f"{self.name}: {line!r:.60} is no pose of 1 to {MOST_NUMBERS} numbers")
            self._count, self._places = len(values), list(range(len(values)))
            self.form = Form([Number(str(place)) for place in self._places])
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

    def _understand(self) -> None:
        """Look for a header in the first line, when it is complete."""
        try:
            with open(self._path, encoding="utf-8-sig", errors="replace") as file:
                head = file.readline()
        except OSError as error:
            raise SourceError(f"{self.name} cannot be read: {error.strerror}") from error
        words = table.splitter(head)(head.lstrip("#% ")) if head.endswith("\n") else []
        header = any(words) and not any(table.number(word) is not None for word in words)
        if header:
            rows = table.Table(words, np.zeros((1, len(words))), [2], {}, {})
            columns = understand(rows, self.name, self._keys)
            self.form, self._places, self._count, self._header = columns.form, columns.places, len(words), True
        elif self._keys is not None and head:
            raise SourceError(f"{self.name} has no header: columns cannot be chosen by name ({self._keys})")

    def _last_line(self) -> str | None:
        """The last complete line that is no comment, None if there is none."""
        with open(self._path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
        whole = text[: text.rfind("\n") + 1].splitlines()
        if size > TAIL:
            whole = whole[1:]
        if self._header and size <= TAIL:
            whole = whole[1:]
        return next((line for line in reversed(whole) if line.strip() and not line.startswith("#")), None)
