"""The poses of a recording: read from a file, and found for each frame by its time or its number."""

from __future__ import annotations

import bisect
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.poses import table
from tttstream.poses.columns import Columns, has_names, understand
from tttstream.poses.form import Form

Floats = NDArray[np.float64]
LEAST_TOLERANCE_S = 0.05
CLOCK_S = 1e8  # a time of this size is absolute (since 1970), not relative to a recording


class PoseMissing(SourceError):
    """A frame has no pose; the message names the row that is missing or invalid."""


class Track:
    """The poses in a file.

    path: csv with a header, a TUM trajectory or KITTI rows; see docs/poses.md. keys: the columns and their units, as in
    `--pose x,y,yaw:deg`; by default all except the clock. start: the clock of the file at the first frame (seconds, or
    the number of a frame); 0 unless given. tolerance: the largest time in seconds between a frame and the nearest row;
    by default the median interval of the rows, at least 0.05. Between two rows positions are interpolated linearly,
    angles and quaternions along the shorter way. on_error: "raise" raises SourceError at a row that cannot be used,
    "skip" leaves it out and adds it to `faults`, by its line.

    name: of the file. form: of the poses. text: the interpretation of the file, in one line.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keys: str | None = None,
        *,
        start: float | None = None,
        tolerance: float | None = None,
        on_error: str = "raise",
    ) -> None:
        file = Path(path)
        if (tolerance is not None and not tolerance >= 0) or (start is not None and not np.isfinite(start)):
            raise SourceError(
                f"poses: start is {start}, tolerance is {tolerance}: expected seconds, tolerance 0 or more"
            )
        rows = table.read(file, has_names)
        self._set(file.name, rows, understand(rows, file.name, keys), start, tolerance, on_error)

    def _set(
        self,
        name: str,
        rows: table.Table,
        columns: Columns,
        start: float | None,
        tolerance: float | None,
        on_error: str,
    ) -> None:
        self.name, self.form, self.clock, self._given = name, columns.form, columns.clock, start
        self._start = 0.0 if start is None else float(start)
        self.faults: dict[int, str] = {}
        self._of: dict[float, str] = {}
        self._read(rows, columns, strict=on_error == "raise")
        self._judge_the_clock(columns)
        steps = np.diff(self._at)
        usual = float(np.median(steps)) if self.clock == "time" and len(steps) else 0.0
        self.tolerance = max(usual, LEAST_TOLERANCE_S) if tolerance is None else float(tolerance)
        self._kind, self._left_out, self._rows = columns.kind, columns.left_out, len(rows.lines)

    @classmethod
    def timed(
        cls,
        name: str,
        at: NDArray[np.float64],
        raw: NDArray[np.float64],
        form: Form,
        *,
        kind: str = "poses",
        tolerance: float | None = None,
        on_error: str = "raise",
    ) -> Track:
        """Poses from other sources than a file. at: [n] seconds. raw: [n, P] values for `form`. name, kind: for
        messages. Rows are sorted by time; of rows with equal times the first is used. tolerance, on_error: as above;
        rows count from 1."""
        columns = Columns(kind, "time", 0, 1.0, form, list(range(1, raw.shape[1] + 1)))
        order = np.argsort(at, kind="stable")
        order = order[np.append(True, np.diff(at[order]) > 0)]
        cells = np.column_stack([at[order], raw[order]])
        track = cls.__new__(cls)
        track._set(name, table.Table(None, cells, (order + 1).tolist(), {}, {}), columns, None, tolerance, on_error)
        return track

    def _read(self, rows: table.Table, columns: Columns, *, strict: bool) -> None:
        """Read the usable rows."""
        at = np.arange(len(rows.lines), dtype=float) if columns.at is None else rows.cells[:, columns.at] * columns.unit
        used: list[int] = []
        for row, line in enumerate(rows.lines):
            before = at[used[-1]] if used else -np.inf
            fault = rows.uneven.get(row) or self._fault(rows, columns, row, float(at[row]), float(before))
            if fault is None:
                used.append(row)
                continue
            said = f"{self.name} line {line}: {fault}"
            if strict:
                raise SourceError(said)
            self.faults[line] = fault
            self._of[float(at[row])] = said
        if not used:
            first, fault = next(iter(self.faults.items()))
            raise SourceError(f"{self.name} has no row that can be used; line {first}: {fault}")
        self._at, self._raw = at[used], np.ascontiguousarray(rows.cells[used][:, columns.places])
        self._lines = [rows.lines[row] for row in used]

    def _fault(self, rows: table.Table, columns: Columns, row: int, at: float, before: float) -> str | None:
        for place in [*columns.places, *([] if columns.at is None else [columns.at])]:
            if not np.isfinite(rows.cells[row, place]):
                text = rows.odd.get((row, place), str(rows.cells[row, place]))
                column = f"column {place + 1}" if rows.names is None else rows.names[place]
                return f"{column} is {text!r}, expected a finite number" if text else f"{column} is empty"
        if self.clock == "frame" and (at < 0 or at != round(at)):
            return f"its frame is {at:g}, expected a whole number from 0"
        if at <= before:
            what = "time" if self.clock == "time" else "frame"
            return f"its {what} is {at:.10g}, not after that of the row before it, {before:.10g}"
        return self.form.fault(rows.cells[row, columns.places])

    def _judge_the_clock(self, columns: Columns) -> None:
        first = float(self._at[0])
        if self.clock == "time" and abs(first) > 1e11:
            raise SourceError(
                f"{self.name} line {self._lines[0]}: a time of {first:.6g} is not one in seconds; name the column "
                "by its unit, such as timestamp_ns"
            )
        if self.clock == "frame" and self._given is None and first == 1:
            raise SourceError(
                f"{self.name} begins with frame 1, and frames count from 0 here: say which number the first frame has "
                "in it, --pose-start 1 or --pose-start 0"
            )
        if self.clock == "row" and self._given is not None and (self._start < 0 or self._start != round(self._start)):
            raise SourceError(f"the first frame's row is {self._start:g}: expected a whole number from 0")

    @property
    def text(self) -> str:
        """The format that was recognised, in one line."""
        last = float(self._at[-1])
        match self.clock:
            case "time":
                by = f"by time, {self._at[0]:.10g} to {last:.10g} s, within {self.tolerance:.3g} s of a row"
            case "frame":
                by = f"by number of the frame, {self._at[0]:.0f} to {last:.0f}"
            case _:
                by = "one a frame"
        begins = f", the first frame at {self._start:.15g}" if self._start else ""
        faults = "".join(
            f"; {len(self.faults)} of {self._rows} rows left out, first line {line}: {fault}"
            for line, fault in list(self.faults.items())[:1]
        )
        left = f"; not used: {', '.join(self._left_out)}" if self._left_out else ""
        return f"{self.name}: {self._kind}, {self._rows} rows {by}{begins}: {self.form.text}{left}{faults}"

    def begin(self, origin: float | None, length_s: float | None) -> None:
        """Align the clock with that of a source, before its first frame.

        origin: the clock time at the source's time 0, if known: it is the start, unless one was given. length_s: the
        duration of the source. Raises SourceError if rows and frames have no time in common.
        """
        if self.clock != "time":
            return
        if self._given is None and origin is not None:
            self._start = origin
        early, late = float(self._at[0]) - self.tolerance, float(self._at[-1]) + self.tolerance
        beyond = self._start + length_s < early if length_s is not None else early - self._start > CLOCK_S
        if beyond or late < self._start:
            raise SourceError(
                f"{self.name} tells of {self._at[0]:.15g} to {self._at[-1]:.15g} s, and the frames begin at "
                f"{self._start:.15g} s: say what its clock was at the first frame, such as --pose-start "
                f"{self._at[0]:.15g}"
            )

    def pose(self, place: int | None, time_s: float) -> Floats:
        """The pose [P] of the frame at a position in the source (counting damaged ones; None: unknown) and time.

        Raises PoseMissing if the file has no pose for it.
        """
        if self.clock == "time":
            return self._timed(time_s + self._start)
        if place is None:
            raise PoseMissing(
                f"{self.name}: after damage, or a hole in its times, nobody knows which frame a row belongs to (at "
                f"{time_s:.3f} s); give the poses by time"
            )
        wanted = place + self._start
        at = int(np.searchsorted(self._at, wanted))
        if at < len(self._at) and self._at[at] == wanted:
            return self.form.encode(self._raw[at])
        if wanted in self._of:
            raise PoseMissing(f"frame {place}: {self._of[wanted]}")
        near = f"after line {self._lines[at - 1]}" if at else f"before line {self._lines[0]}"
        what = f"row {wanted:.0f}" if self.clock == "row" else f"frame {wanted:.0f}"
        end = ", its last one" if at == len(self._at) else ""
        raise PoseMissing(f"frame {place}: {self.name} has no {what} ({near}{end})")

    def over(self, place: int | None, time_s: float) -> bool:
        """Whether all rows are before a frame, so that no later frame has a pose."""
        late = time_s - self.tolerance if self.clock == "time" else -np.inf if place is None else place
        return bool(late + self._start > self._at[-1])

    def poses(self) -> list[Floats]:
        """The pose [P] of every row that can be used, in the order of the clock."""
        return [self.form.encode(raw) for raw in self._raw]

    def _timed(self, moment: float) -> Floats:
        late = bisect.bisect_left(self._at, moment)
        early = max(late - 1, 0)
        late = min(late, len(self._at) - 1)
        distance = min(abs(moment - self._at[early]), abs(self._at[late] - moment))
        if distance > self.tolerance + 1e-9:
            raise PoseMissing(
                f"{moment:.10g} s: the nearest row of {self.name}, line "
                f"{self._lines[min((early, late), key=lambda at: abs(self._at[at] - moment))]}, is {distance:.3g} s "
                f"away, more than the tolerance of {self.tolerance:.3g} s"
            )
        length = self._at[late] - self._at[early]
        share = (moment - self._at[early]) / length if length else 0.0
        share = float(min(max(share, 0.0), 1.0))
        return self.form.encode(self.form.between(self._raw[early], self._raw[late], share))
