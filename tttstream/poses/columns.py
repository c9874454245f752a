"""Determines the clock and the poses among the columns of a file of poses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tttstream.errors import SourceError
from tttstream.poses import form
from tttstream.poses.form import ORDERS, Form, Part, Quaternion, Rigid, declared, part, unit_of
from tttstream.poses.table import Table

TUM = ["timestamp", "tx", "ty", "tz", "qx", "qy", "qz", "qw"]
SECONDS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SECONDS |= {"second": 1.0, "millisecond": 1e-3, "microsecond": 1e-6, "nanosecond": 1e-9}
SECONDS |= {"msec": 1e-3, "millis": 1e-3, "usec": 1e-6, "micros": 1e-6, "nsec": 1e-9, "nanos": 1e-9}
SECONDS |= {f"{name}s": unit for name, unit in SECONDS.items() if name.endswith("second")}
TIMES = {"t", "time", "seconds", "secs", "times", "timestamp", "timestamps", "time_stamp", "stamp"}
FRAMES = {"frame", "index", "idx", "step", "timestep", "frame_index", "frame_idx", "frame_id", "frame_number"}
FRAMES |= {"frame_no", "frame_nr", "frame_num"}
CLOCKS = {"time", "times", "timestamp", "timestamps", "stamp", "sec", "secs", "nsec", "nsecs", "nanosec", "frame"}
"""Words in names of clocks, which are no part of a pose."""
QUATERNIONS = {"q", "quat", "quaternion", "orientation", "rotation", "rot"}


@dataclass(frozen=True)
class Columns:
    """kind: of the file, for messages. clock: "time" (seconds), "frame" or "row". at: the column of the clock, and its
    unit in seconds or frames. form: of the poses; places: the columns of its raw numbers. left_out: the names of
    columns that are not used."""

    kind: str
    clock: str
    at: int | None
    unit: float
    form: Form
    places: list[int]
    left_out: list[str] = field(default_factory=list)


def has_names(words: Sequence[str]) -> bool:
    """Whether the words of a comment are names of columns: a clock is among them, or a quaternion."""
    plain = [_plain(word) for word in words]
    return any(_seconds(word) is not None or _frames(word) for word in plain) or bool(_quaternions(plain))


def understand(table: Table, name: str, keys: str | None) -> Columns:
    """Interpret a table. keys: the requested columns, with their units, as in `--pose`.

    Raises SourceError if it is ambiguous, or if a key does not exist.
    """
    count = table.cells.shape[1]
    if table.names is None or table.names == ["", *map(str, range(12))]:  # KITTI rows that pandas wrote
        if keys is not None:
            raise SourceError(f"{name} has no header: columns cannot be chosen by name ({keys})")
        if count == 8:
            return _named("TUM trajectory", table, TUM, None, name)
        if count in (12, 13):  # 13: KITTI-360 writes the number of the frame first
            first = count - 12
            clock = "frame" if first else "row"
            return Columns("KITTI poses", clock, 0 if first else None, 1.0, Form([Rigid()]), list(range(first, count)))
        raise SourceError(
            f"{name} has rows of {count} numbers without a header: expected csv with a header, TUM rows (timestamp "
            "tx ty tz qx qy qz qw) or KITTI rows of 12 numbers"
        )
    plain = [_plain(word) for word in table.names]
    kind = "TUM trajectory" if plain == TUM else "csv"
    return _named(kind, table, table.names, keys, name)


def _named(kind: str, table: Table, names: list[str], keys: str | None, name: str) -> Columns:
    plain = [_plain(word) for word in names]
    double = sorted({word for word in plain if word and plain.count(word) > 1})
    if double:
        raise SourceError(f"{name} has two columns of the name {double[0]!r}: name each once")
    clock, at, unit = "row", None, 1.0
    rows = np.arange(len(table.lines))
    for place, word in enumerate(plain):
        seconds = _seconds(word)
        # pandas writes row numbers without a name; a frame_id of ROS is a word
        if (_frames(word) and not table.words(place)) or (not word and np.array_equal(table.cells[:, place], rows)):
            clock, at, unit = "frame", place, 1.0
            break
        if seconds is not None and clock == "row":
            clock, at, unit = "time", place, seconds
    clocks = {place for place, word in enumerate(plain) if _frames(word) or _seconds(word) is not None or place == at}
    if keys is None:
        wanted = [place for place in range(len(names)) if place not in clocks and not table.words(place)]
        units: dict[int, str | None] = {}
    else:
        asked = [(_find(key, plain, names, name), unit) for key, unit in declared(keys)]
        wanted, units = [place for place, _ in asked], dict(asked)
    nameless = next((place for place in wanted if not plain[place]), None)
    if nameless is not None:
        raise SourceError(f"{name}: column {nameless + 1} has no name; choose columns with --pose NAME,NAME")
    if not wanted:
        comma = next((text for text in table.odd.values() if re.fullmatch(r"[-+]?\d+,\d+", text)), None)
        advice = "" if comma is None else f"; {comma} has a decimal comma, write {comma.replace(',', '.')}"
        raise SourceError(f"{name} has no column of poses, only {', '.join(filter(None, names))}{advice}")
    unknown = next(
        (names[place] for place in wanted if keys is None and CLOCKS.intersection(form.split(names[place]))), None
    )
    if unknown is not None:
        raise SourceError(
            f"{name}: {unknown} seems to be a time or the number of a frame, and its unit is not known: call it "
            "time_s, time_ms, timestamp_ns or frame, or choose columns with --pose NAME,NAME"
        )
    parts, places = _parts(wanted, units, plain, names)
    left_out = [names[place] for place in range(len(names)) if place not in {*places, at} and names[place]]
    return Columns(kind, clock, at, unit, Form(parts), places, left_out)


def _parts(
    wanted: list[int], units: dict[int, str | None], plain: list[str], names: list[str]
) -> tuple[list[Part], list[int]]:
    """The parts of the requested columns, in the requested order, and their columns."""
    parts: list[Part] = []
    places: list[int] = []
    quaternions = _quaternions([plain[place] if place in wanted else "" for place in range(len(plain))])
    inside = {place: stem for stem, axes in quaternions.items() for place in axes}
    for place in wanted:
        stem = inside.get(place)
        if place in places:
            continue
        if stem is None:
            unit = unit_of(names[place], units.get(place))
            if unit in ORDERS:
                raise SourceError(f"{names[place]}:{unit}: the columns of a quaternion are named like qx, qy, qz, qw")
            parts += part(names[place], unit)
            places.append(place)
        else:
            parts.append(Quaternion(stem.strip("_. ") or "q"))
            places += quaternions[stem]
    return parts, places


def _plain(name: str) -> str:
    """A name in small letters with underscores, `[unit]` or `(unit)` as an ending: "Timestamp [ns]" and "timestampNs"
    become timestamp_ns."""
    found = re.fullmatch(r"\s*(.*?)\s*[\[(]\s*([^\])]*?)\s*[\])]\s*", name)
    words = [name.strip()] if found is None else [found[1], *filter(None, [found[2]])]
    return form.separated("_".join(words)).lower()


def _seconds(word: str) -> float | None:
    """Seconds in one unit of a column of time; None for other columns."""
    stem, _, ending = word.rpartition("_")
    if word in TIMES:
        return 1.0
    return SECONDS.get(ending) if stem in TIMES else None


def _frames(word: str) -> bool:
    return word in FRAMES


def _quaternions(plain: Sequence[str]) -> dict[str, list[int]]:
    """The columns x, y, z, w of each quaternion, by the start of their names."""
    stems: dict[str, dict[str, int]] = {}
    for place, word in enumerate(plain):
        named = re.fullmatch(r"(.*?)([wxyz])(_-|_1)?", word)  # it may end with the unit of a plain number, [-] or [1]
        if named and QUATERNIONS.intersection(re.split(r"[_.\s]+", named[1])):
            stems.setdefault(named[1], {})[named[2]] = place
    return {stem: [axes[axis] for axis in "xyzw"] for stem, axes in stems.items() if len(axes) == 4}


def _find(key: str, plain: list[str], names: list[str], name: str) -> int:
    if key in names:
        return names.index(key)
    if _plain(key) in plain:
        return plain.index(_plain(key))
    raise SourceError(f"{name} has no column {key!r}; it has {', '.join(filter(None, names))}")
