"""Labelled data sets on disk: folders, split files, csv, json, and the DAVIS tree."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tttstream.errors import DataError
from tttstream.sources.listing import IMAGES, inside, listed
from tttstream.train.data.clips import Clip, VideoClip
from tttstream.train.data.images import ImagesClip, clip_at
from tttstream.train.data.indices import Index
from tttstream.train.data.listing import Labels, below, entries, place, read_json, read_lines, read_rows, subfolders

NO_CLASSES = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})  # files that operating systems add
PARTS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@dataclass
class ClassFolders(Index):
    """One folder for each class, with videos or folders of images inside. root: the folder of these folders.

    classes: names in the order of their labels, if they must agree with another part; by default in natural order.
    """

    root: str
    classes: Sequence[str] = field(default_factory=list)

    named = True

    def clips(self) -> list[Clip]:
        root = place(self.root, "root")
        found = [name for name in subfolders(root) if name not in NO_CLASSES]
        if not found:
            raise DataError(f"{self.root} holds no folders; expected one for each class with videos inside")
        if not self.classes and {name.casefold() for name in found} <= PARTS:
            raise DataError(f"{self.root} holds the parts {', '.join(found)}, no classes: give the folder of one part")
        self.classes = self.classes or found
        unknown = sorted({*found} - {*self.classes})
        if unknown:
            given = "of train; give both the same classes" if self.shared else "given"
            raise DataError(f"{self.root}: {unknown[0]!r} is not one of the {len(self.classes)} classes {given}")
        clips: list[Clip] = []
        for name, paths in zip(found, inside([root / name for name in found]), strict=True):
            if not paths:
                raise DataError(f"class folder {root / name} holds no video; fill or remove it")
            clips += [clip_at(path, self.classes.index(name)) for path in paths]
        return clips


@dataclass
class Folds(Index):
    """Videos in folders by class, with files that assign the videos of each fold to training or test.

    root: folder of the class folders. splits: folder of the split files. part: "train" or "test". fold: 1, 2 or 3.
    """

    root: str
    splits: str
    part: str = "train"
    fold: int = 1
    classes: Sequence[str] = field(default=(), init=False)


@dataclass
class UCF101(Folds):
    """UCF101: videos in folders by class, and the split files classInd.txt, trainlist01.txt, testlist01.txt …

    root: folder of the class folders (UCF-101). splits: folder of the split files (ucfTrainTestlist). part: "train" or
    "test". fold: 1, 2 or 3.
    """

    def clips(self) -> list[Clip]:
        _one_of("part", self.part, ("train", "test"))
        root, splits = place(self.root, "root"), place(self.splits, "splits")
        self.classes = [line.split()[-1] for line in read_lines(splits / "classInd.txt")]
        labels = Labels(self.classes)
        path = splits / f"{self.part}list{self.fold:02d}.txt"
        clips: list[Clip] = []
        for number, line in enumerate(read_lines(path), start=1):
            name = line.split()[0]
            label = labels.number(name.partition("/")[0], f"{path} line {number}")
            clips.append(VideoClip(str(root / name), label))
        return _present(clips, path, self.root)


@dataclass
class HMDB51(Folds):
    """HMDB51: videos in folders by class, and split files such as brush_hair_test_split1.txt.

    root: folder of the class folders. splits: folder of the split files (testTrainMulti_7030_splits). part: "train"
    (marked 1 in the files) or "test" (marked 2). fold: 1, 2 or 3.
    """

    def clips(self) -> list[Clip]:
        mark = {"train": "1", "test": "2"}[_one_of("part", self.part, ("train", "test"))]
        root, splits = place(self.root, "root"), place(self.splits, "splits")
        ending = f"_test_split{self.fold}.txt"
        files = [path for path in entries(splits) if path.name.endswith(ending)]
        if not files:
            raise DataError(f"{self.splits} holds no split files CLASS{ending}; give the folder that does")
        self.classes = [path.name.removesuffix(ending) for path in files]
        clips: list[Clip] = []
        for label, path in enumerate(files):
            for number, line in enumerate(read_lines(path), start=1):
                name, _, marked = line.strip().rpartition(" ")
                if marked not in ("0", "1", "2"):
                    raise DataError(f"{path} line {number}: expected `video 0`, `1` or `2`, got {line!r}")
                if marked == mark:
                    clips.append(VideoClip(str(root / self.classes[label] / name.strip()), label))
        return _present(clips, self.splits, self.root)


@dataclass
class Kinetics(Index):
    """Kinetics: a csv with the columns label, youtube_id, time_start, time_end, and videos cut to those times.

    csv: the annotation file. root: folder of the videos, named ID_START_END.mp4 with six digits for each time, or
    ID.mp4, in folders by class or in one. Rows without their video are counted in a warning, because most copies of
    Kinetics lack some. classes: the names in the order of their labels, if they must agree with another csv.
    """

    csv: str
    root: str
    classes: Sequence[str] = field(default_factory=list)

    named = True

    def clips(self) -> list[Clip]:
        rows = read_rows(place(self.csv, "csv"), ("label", "youtube_id"))
        parts = list(dict.fromkeys(row.get("split") or "none" for _, row in rows))
        if len(parts) > 1:
            raise DataError(f"{self.csv} lists the splits {', '.join(parts)}: give a csv of one of them")
        self.classes = self.classes or sorted({row["label"] for _, row in rows})
        labels = Labels(self.classes)
        files = {path.rpartition("/")[2].rpartition(".")[0]: path for path in below(place(self.root, "root"))}
        clips: list[Clip] = []
        for number, row in rows:
            label = labels.number(row["label"], f"{self.csv} line {number}")
            times = [row.get("time_start") or "0", row.get("time_end") or "0"]
            try:
                full = "_".join([row["youtube_id"], *(f"{int(float(time)):06d}" for time in times)])
            except (ValueError, OverflowError) as error:
                raise DataError(f"{self.csv} line {number}: times in seconds expected, got {times}") from error
            path = files.get(full) or files.get(row["youtube_id"])
            if path is not None:
                clips.append(VideoClip(path, label))
        if not clips:
            raise DataError(f"not one of {len(rows)} videos of {self.csv} is below {self.root}, such as {full}.mp4")
        if len(clips) < len(rows):
            warnings.warn(f"{len(rows) - len(clips)} of {len(rows)} videos of {self.csv} are not there", stacklevel=2)
        return clips


@dataclass
class SomethingSomething(Index):
    """Something-Something v2: a json list of videos, each with its template, and a json of the labels.

    annotations: train.json or validation.json (test.json, which has no templates, gives clips without labels).
    labels: labels.json, from template to number. root: folder of the videos ID.webm.
    """

    annotations: str
    labels: str
    root: str
    classes: Sequence[str] = field(default=(), init=False)

    def clips(self) -> list[Clip]:
        root = place(self.root, "root")
        numbers = read_json(place(self.labels, "labels"))
        try:
            self.classes = [name for name, _ in sorted(numbers.items(), key=lambda item: int(item[1]))]
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{self.labels}: expected an object of templates and their numbers") from error
        labels = Labels(self.classes)
        items = read_json(place(self.annotations, "annotations"))
        if not isinstance(items, list):
            raise DataError(f"{self.annotations}: expected a list of videos, each with an id and a template")
        clips: list[Clip] = []
        for number, item in enumerate(items, start=1):
            where = f"{self.annotations} item {number}"
            name = item.get("id") if isinstance(item, dict) else None
            if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
                raise DataError(f"{where}: expected a video with an id and a template, got {item!r:.80}")
            template = item.get("template")
            if template is not None and not isinstance(template, str):
                raise DataError(f"{where}: its template is {template!r:.80}, expected a text, or none for no label")
            label = -1 if template is None else labels.number(re.sub(r"[\[\]]", "", template), where)
            clips.append(VideoClip(str(root / f"{name}.webm"), label))
        return _present(clips, self.annotations, self.root)


@dataclass
class Davis(Index):
    """The DAVIS tree: JPEGImages/480p/SEQUENCE, Annotations/480p/SEQUENCE, ImageSets/YEAR/val.txt.

    root: the folder of these three. part: "train", "val" or another list of ImageSets; None for all sequences. year:
    2016 (all objects joined to one) or 2017 (separate objects). resolution: the folder's name, "" for none
    (YouTube-VOS).
    """

    root: str
    part: str | None = "val"
    year: int = 2016
    resolution: str = "480p"

    def clips(self) -> list[Clip]:
        root = place(self.root, "root")
        images, masks = (root / name / self.resolution for name in ("JPEGImages", "Annotations"))
        clips: list[Clip] = []
        for name in self._sequences(images):
            if not os.path.isdir(masks / name) or not listed(images / name, IMAGES):
                raise DataError(f"{self.root}: sequence {name} lacks its masks, {masks / name}, or its images")
            clips.append(ImagesClip(str(images / name), masked=True, masks=str(masks / name), merge=self.year == 2016))
        return clips

    def _sequences(self, images: Path) -> list[str]:
        if self.part is None:
            found = subfolders(images)
            if not found:
                raise DataError(f"{images} holds no sequences")
            return found
        sets = place(self.root, "root") / "ImageSets"
        path = next((p for p in (sets / str(self.year), sets / self.resolution) if p.is_dir()), sets)
        # Lines are names of sequences, or pairs of files as in 2016: /JPEGImages/480p/NAME/00000.jpg and its mask.
        rows = [line.split()[0] if "/" in line else line.strip() for line in read_lines(path / f"{self.part}.txt")]
        lines = [row.strip("/").split("/") for row in rows]
        names = list(dict.fromkeys(line[-2] if len(line) > 1 else line[0] for line in lines))
        missing = [name for name in names if not os.path.isdir(images / name)]
        if missing:
            raise DataError(f"{path / self.part}.txt names the sequence {missing[0]}, which is not in {images}")
        return names


def _one_of(what: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise DataError(f"{what} is {value!r}, expected {' or '.join(map(repr, known))}")
    return value


def _present(clips: list[Clip], listing: str | Path, root: str | Path) -> list[Clip]:
    """The clips. Raises DataError if there are none, or if none of their files exists, so that the root is wrong."""
    if not clips:
        raise DataError(f"{listing} lists no videos for this part")
    if not any(os.path.exists(clip.name) for clip in clips):
        raise DataError(f"not one of {len(clips)} videos listed in {listing} is below {root}; check the root")
    return clips
