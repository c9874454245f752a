"""A list of videos as an index, with labels as numbers or names; its interpretation is logged in one line."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tttstream.errors import DataError
from tttstream.train.data.clips import Clip
from tttstream.train.data.columns import Row, is_number
from tttstream.train.data.images import clip_at
from tttstream.train.data.indices import Index
from tttstream.train.data.listing import Labels, logger, place
from tttstream.train.data.lists import read_list

SEVERAL = re.compile(r"[\[({]?\s*[0-9.]+(\s*[,;|/\s]\s*[0-9.]+)+\s*[\])}]?")
LISTED = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)")  # as Python and JSON write lists
NOTHING = frozenset({"nan", "na", "n/a", "none", "null", "nil", "?", "-"})
LARGEST = 1_000_000  # number of a class
MOST = 5  # largest number of classes in the line


@dataclass
class PathList(Index):
    """A list of videos, one per line, with their labels; separated by spaces, tabs, commas, semicolons or bars.

    file: the list. Headers, quotes, comments (#) and labels of several words are supported, and the interpretation is
    logged in one line; an ambiguous row raises DataError. root: the folder of relative paths, by default that of the
    file. classes: the names in the order of their labels; by default numbers are unchanged, and names are sorted (in
    val and test they have the order of train). columns: the roles of the columns, if neither a header nor their content
    determines them: path, label, name (of a numeric label), frames (their number), start, stop (the frames [start,
    stop) of the video), part, - (not used). part: the rows to take by the column part, such as train, val, test.
    """

    file: str
    root: str | None = None
    classes: Sequence[str] = field(default_factory=list)
    columns: Sequence[str] = field(default_factory=list)
    part: str | None = None
    _said: bool = field(default=False, init=False, repr=False, compare=False)

    named = True

    def clips(self) -> list[Clip]:
        file = place(self.file, "file")
        listing = read_list(file, self._place, self.columns)
        numbers = self._numbers(listing.rows)
        rows = self._of_part(listing.rows)
        clips = [clip_at(str(self._place(row.path)), numbers[row.line], row.start, row.stop) for row in rows]
        if not any(Path(clip.name).exists() for clip in clips):
            here = " (they are there from this folder: root=.)" if Path(rows[0].path).exists() else ""
            raise DataError(
                f"not one of {len(clips)} videos listed in {file} is below {self._root}, such as {rows[0].path}; check "
                f"the root{here}"
            )
        repeated = self._repeated(rows, clips)
        if not self._said:
            self._said = True
            first = f"first row: {rows[0].path} → {self._called(clips[0].label)}"
            chosen = f" of part {self.part} among {len(listing.rows)}" if self.part else ""
            logger.info(
                f"{file}: {len(clips)} videos{chosen}{repeated}, {listing.read}; {self._classes_said(clips)}; {first}"
            )
        return clips

    @property
    def _root(self) -> Path:
        return place(self.file, "file").parent if self.root is None else place(self.root, "root")

    def _place(self, path: str) -> Path:
        """The location of a path in the list; backslashes separate folders if no file has them in its name."""
        place = self._root / Path(path).expanduser()
        if "\\" in path and not place.exists() and (other := self._root / path.replace("\\", "/")).exists():
            return other
        return place

    def _of_part(self, rows: list[Row]) -> list[Row]:
        found = list(dict.fromkeys(row.part for row in rows))
        if self.part is None:
            if len(found) > 1:
                raise DataError(f"{self.file} lists the parts {', '.join(map(str, found))}: choose one with part")
            return rows
        kept = [row for row in rows if row.part == self.part]
        if not kept:
            listed = ", ".join(str(part) for part in found if part) or "no parts"
            raise DataError(f"{self.file} has no row of the part {self.part!r}; it has {listed}")
        return kept

    def _numbers(self, rows: list[Row]) -> dict[int, int]:
        """Line → label, -1 for none; sets `classes` where labels are names."""
        said = [row for row in rows if row.label is not None]
        names: dict[str, Row] = {}  # each label with its first row
        for row in said:
            names.setdefault(str(row.label), row)
        for label, row in names.items():
            if label in self.classes:
                continue
            if SEVERAL.fullmatch(label) or LISTED.fullmatch(label) or self._many(label, names):
                raise self._refused(row, f"several labels {label!r} for one video; a video has one class here")
            if label.casefold() in NOTHING:
                raise self._refused(
                    row, f"the label {label} may mean none; leave it empty for a video without a class, or give classes"
                )
        self._refuse_one_hot(names)
        numbers = [label for label in names if is_number(label)]
        if not set(names) <= set(self.classes):
            if numbers and len(numbers) < len(names):
                few = min(numbers, [label for label in names if not is_number(label)], key=len)[0]
                raise self._refused(names[few], f"the label {few!r} among {'names' if few in numbers else 'numbers'}")
            if numbers and self.shared:
                raise self._refused(names[numbers[0]], "its labels are numbers, those of train names")
        if numbers and not set(names) <= set(self.classes):
            whole = {label: self._whole(names[label]) for label in numbers}
            self._named_beside(said, whole)
        else:
            whole = {}
            self._by_name(names)
        labels = Labels(self.classes)
        found = {}
        for row in rows:
            if row.label is None:
                found[row.line] = -1
                continue
            text = str(whole[row.label]) if row.label in whole else row.label
            found[row.line] = self._number(labels, text, f"{self.file} line {row.line}")
        return found

    def _number(self, labels: Labels, text: str, where: str) -> int:
        try:
            return labels.number(text, where)
        except DataError as error:
            raise DataError(f"{error}{', as train has them' if self.shared else ''}") from error

    def _many(self, label: str, names: dict[str, Row]) -> bool:
        """Whether a label consists of several labels, with commas or similar separators."""
        parts = [part.strip() for part in re.split("[,;|+&/]", label)]
        return len(parts) > 1 and all(part in names or part in self.classes for part in parts)

    def _refuse_one_hot(self, names: dict[str, Row]) -> None:
        """Raises DataError for labels such as 010, 100: a digit for each class, or numbers that begin with 0?"""
        digits = len({len(label) for label in names}) == 1 and all(re.fullmatch("[01]{2,}", label) for label in names)
        row = next((row for label, row in names.items() if label[0] == "0"), None)
        if digits and row is not None and len(names) > 1:
            raise self._refused(row, f"{row.label!r}: a digit for each class, or a number? write numbers without zeros")

    def _by_name(self, names: dict[str, Row]) -> None:
        alike: dict[str, str] = {}
        for label, row in names.items() if not self.classes else ():
            if (other := alike.setdefault(_looks(label), label)) != label:
                how = f"{label!r} and {other!r} differ in their case"
                how = how if label.casefold() == other.casefold() else f"{label!a} and {other!a} look alike"
                raise self._refused(row, f"the labels {how}; or give classes")
        self.classes = self.classes or sorted(names)

    def _named_beside(self, rows: list[Row], whole: dict[str, int]) -> None:
        """Use the names of numeric labels; each number has one name, and each name one number."""
        called: dict[int, str] = {}
        numbered: dict[str, int] = {}
        for row in rows:
            if row.label is None or row.name is None or self.classes:
                continue
            number = whole[row.label]
            if called.setdefault(number, row.name) != row.name or numbered.setdefault(row.name, number) != number:
                raise self._refused(row, f"{number} and {row.name!r} differ from the pairs on earlier lines")
        if called:
            self.classes = [called.get(number, str(number)) for number in range(max(whole.values()) + 1)]

    def _whole(self, row: Row) -> int:
        """A label as a number; 3.0 is 3."""
        label = str(row.label)
        if label.startswith("-"):
            raise DataError(
                f"{self.file}: the label {label} is negative; leave the label out for videos without a class"
            )
        if not re.fullmatch(r"[0-9]+(\.0*)?", label):
            raise self._refused(row, f"the label {label} is no class; expected names or whole numbers")
        number = int(label.partition(".")[0])
        if number > LARGEST:
            raise self._refused(row, f"the label {label} is larger than any class, {LARGEST}")
        return number

    def _refused(self, row: Row, why: str) -> DataError:
        return DataError(f"{self.file} line {row.line} ({row.path}): {why}")

    def _repeated(self, rows: list[Row], clips: list[Clip]) -> str:
        """The number of repeated rows, in words. Raises DataError if one video has two labels."""
        seen: dict[tuple[str, int, int | None], tuple[Row, int]] = {}
        repeated = 0
        for row, clip in zip(rows, clips, strict=True):
            piece = os.path.normpath(clip.name), row.start, row.stop
            before, label = seen.setdefault(piece, (row, clip.label))
            if label != clip.label:
                raise self._refused(row, f"its label is another one on line {before.line}")
            repeated += before is not row
        return f" ({repeated} of them repeated)" if repeated else ""

    def _called(self, label: int) -> str:
        return "no label" if label < 0 else f"{self.classes[label]!r} ({label})" if self.classes else str(label)

    def _classes_said(self, clips: list[Clip]) -> str:
        counts = Counter(clip.label for clip in clips)
        without = counts.pop(-1, 0)
        if not counts:
            return "no labels"
        some = [f"{self.classes[n] if self.classes else n}: {counts[n]}" for n in sorted(counts)[:MOST]]
        more = " …" if len(counts) > MOST else ""
        said = f"{len(counts)} classes ({', '.join(some)}{more})"
        if not self.classes:
            said += f", numbers {min(counts)} to {max(counts)}"
        elif len(counts) < len(self.classes):
            said += f" of {len(self.classes)}"
        return said + (f", {without} without a label" if without else "")


def _looks(label: str) -> str:
    """Equal for labels that look the same: independent of case, composed accents, spaces and invisible characters."""
    seen = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
    return " ".join(seen.casefold().split())
