"""Labelled data sets in their usual forms, and the errors of damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tttstream.errors import DataError
from tttstream.train.data import (
    HMDB51,
    UCF101,
    ClassFolders,
    Index,
    Kinetics,
    PathList,
    SomethingSomething,
    VideoData,
    Videos,
    Window,
)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")


def write(path: Path, text: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return str(path)


def found(index: Index) -> list[tuple[str, int]]:
    return [(Path(clip.name).name, clip.label) for clip in index.clips()]


def refused(index: Index, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        index.clips()
    assert "\n" not in str(caught.value)


class TestClassFolders:
    def test_one_folder_a_class(self, tmp_path: Path) -> None:
        touch(*(tmp_path / name for name in ("b/2.mp4", "b/10.mp4", "a/deep/x.avi", "a/notes.txt", ".git/y.mp4")))
        index = ClassFolders(str(tmp_path))
        assert found(index) == [("x.avi", 0), ("2.mp4", 1), ("10.mp4", 1)]
        assert index.classes == ["a", "b"]
        touch(tmp_path / "__MACOSX/z.mp4")
        assert ClassFolders(str(tmp_path)).clips() == index.clips()

    def test_folders_of_images(self, tmp_path: Path) -> None:
        touch(tmp_path / "run/one/1.jpg", tmp_path / "run/two/1.jpg", tmp_path / "sit/three/1.jpg")
        assert found(ClassFolders(str(tmp_path))) == [("one", 0), ("two", 0), ("three", 1)]

    def test_labels_by_given_classes(self, tmp_path: Path) -> None:
        touch(tmp_path / "sit/1.mp4")
        assert found(ClassFolders(str(tmp_path), ["run", "sit"])) == [("1.mp4", 1)]
        refused(ClassFolders(str(tmp_path), ["run"]), "'sit' is not one of the 1 classes given")

    def test_mistakes(self, tmp_path: Path) -> None:
        touch(tmp_path / "a/1.mp4")
        (tmp_path / "b").mkdir()
        refused(ClassFolders(str(tmp_path)), "class folder .*b holds no video; fill or remove it")
        refused(ClassFolders(str(tmp_path / "a")), "holds no folders; expected one for each class")
        refused(ClassFolders(str(tmp_path / "none")), "no folder .*none")
        touch(tmp_path / "parts/train/a/1.mp4", tmp_path / "parts/val/a/1.mp4")
        refused(ClassFolders(str(tmp_path / "parts")), "holds the parts train, val, no classes: give the folder of one")


class TestUCF101:
    @pytest.fixture
    def splits(self, tmp_path: Path) -> Path:
        touch(tmp_path / "UCF-101/Archery/v_Archery_g01_c01.avi", tmp_path / "UCF-101/YoYo/v_YoYo_g02_c01.avi")
        splits = tmp_path / "splits"
        write(splits / "classInd.txt", "1 Archery\n2 YoYo\n")
        write(splits / "trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1\r\nYoYo/v_YoYo_g02_c01.avi 2\r\n")
        write(splits / "testlist01.txt", "YoYo/v_YoYo_g02_c01.avi\n")
        return splits

    def test_parts(self, splits: Path) -> None:
        root = str(splits.parent / "UCF-101")
        index = UCF101(root, str(splits))
        assert found(index) == [("v_Archery_g01_c01.avi", 0), ("v_YoYo_g02_c01.avi", 1)]
        assert index.classes == ["Archery", "YoYo"]
        assert found(UCF101(root, str(splits), "test")) == [("v_YoYo_g02_c01.avi", 1)]

    def test_mistakes(self, splits: Path) -> None:
        root = str(splits.parent / "UCF-101")
        refused(UCF101(root, str(splits), fold=2), "no file .*trainlist02.txt; give the split")
        refused(UCF101(root, str(splits), "val"), "part is 'val', expected 'train' or 'test'")
        refused(UCF101(str(splits), str(splits)), "not one of 2 videos listed in .* is below .*splits; check the root")
        write(splits / "testlist01.txt", "Archery/a.avi\nArchrey/b.avi\n")
        refused(UCF101(root, str(splits), "test"), "testlist01.txt line 2: unknown class 'Archrey'")
        write(splits / "testlist01.txt", "\n")
        refused(UCF101(root, str(splits), "test"), "testlist01.txt is empty")


class TestHMDB51:
    @pytest.fixture
    def splits(self, tmp_path: Path) -> Path:
        touch(*(tmp_path / "hmdb51" / name for name in ("brush_hair/a b.avi", "brush_hair/c.avi", "wave/d.avi")))
        splits = tmp_path / "splits"
        write(splits / "brush_hair_test_split1.txt", "a b.avi 1 \nc.avi 2 \nunused.avi 0 \n")
        write(splits / "wave_test_split1.txt", "d.avi 1 \n")
        return splits

    def test_parts(self, splits: Path) -> None:
        root = str(splits.parent / "hmdb51")
        index = HMDB51(root, str(splits))
        assert found(index) == [("a b.avi", 0), ("d.avi", 1)]
        assert index.classes == ["brush_hair", "wave"]
        assert found(HMDB51(root, str(splits), "test")) == [("c.avi", 0)]

    def test_mistakes(self, splits: Path) -> None:
        root = str(splits.parent / "hmdb51")
        refused(HMDB51(root, str(splits), fold=3), "holds no split files CLASS_test_split3.txt")
        refused(HMDB51(str(splits), str(splits)), "check the root")
        write(splits / "wave_test_split1.txt", "d.avi one\n")
        refused(HMDB51(root, str(splits)), "wave_test_split1.txt line 1: expected")


class TestKinetics:
    CSV = "label,youtube_id,time_start,time_end,split\n"

    def test_names_of_files(self, tmp_path: Path) -> None:
        touch(tmp_path / "videos/abseiling/aaa_000010_000020.mp4", tmp_path / "videos/zumba/bbb.mkv")
        rows = "abseiling,aaa,10,20,train\nzumba,bbb,0,10,train\nzumba,ccc,0,10,train\n"
        index = Kinetics(write(tmp_path / "train.csv", self.CSV + rows), str(tmp_path / "videos"))
        with pytest.warns(UserWarning, match="1 of 3 videos .* are not there"):
            assert found(index) == [("aaa_000010_000020.mp4", 0), ("bbb.mkv", 1)]
        assert index.classes == ["abseiling", "zumba"]

    def test_mistakes(self, tmp_path: Path) -> None:
        touch(tmp_path / "videos/aaa.mp4")
        root = str(tmp_path / "videos")
        refused(Kinetics(write(tmp_path / "a.csv", ""), root), "a.csv is empty")
        refused(Kinetics(write(tmp_path / "b.csv", self.CSV), root), "b.csv is empty")
        refused(Kinetics(write(tmp_path / "c.csv", "name,id\nx,y\n"), root), "no column 'label'; it has name, id")
        refused(
            Kinetics(write(tmp_path / "d.csv", self.CSV + "x,zzz,1,2,t\n"), root), r"not one of 1 .*zzz_000001_000002"
        )
        refused(Kinetics(write(tmp_path / "e.csv", self.CSV + "x,aaa,one,2,t\n"), root), "line 2: times in seconds")
        both = self.CSV + "x,aaa,1,2,train\nx,bbb,1,2,validate\n"
        refused(Kinetics(write(tmp_path / "h.csv", both), root), "lists the splits train, validate: give a csv of one")
        refused(Kinetics(str(tmp_path / "f.csv"), root), "no file .*f.csv")
        rows = self.CSV + "x,aaa,1,2,t\n"
        refused(Kinetics(write(tmp_path / "g.csv", rows), root, ["y"]), "line 2: unknown class 'x'")
        refused(Kinetics(write(tmp_path / "g.csv", rows), str(tmp_path / "none")), "no folder")


class TestSomethingSomething:
    LABELS = {"Holding something": "1", "Dropping something": "0"}  # noqa: RUF012

    def test_templates(self, tmp_path: Path) -> None:
        touch(tmp_path / "videos/7.webm", tmp_path / "videos/8.webm")
        items = [{"id": "7", "label": "holding a cup", "template": "Holding [something]"}, {"id": "8"}]
        labels = write(tmp_path / "labels.json", self.LABELS)
        index = SomethingSomething(write(tmp_path / "train.json", items), labels, str(tmp_path / "videos"))
        assert found(index) == [("7.webm", 1), ("8.webm", -1)]
        assert index.classes == ["Dropping something", "Holding something"]

    def test_mistakes(self, tmp_path: Path) -> None:
        touch(tmp_path / "7.webm")
        labels = write(tmp_path / "labels.json", self.LABELS)
        broken = write(tmp_path / "broken.json", "[{")
        other = write(tmp_path / "other.json", {"id": 7})
        unknown = write(tmp_path / "unknown.json", [{"id": "7", "template": "Eating [something]"}])
        root = str(tmp_path)
        refused(SomethingSomething(broken, labels, root), "broken.json cannot be read as json")
        refused(SomethingSomething(other, labels, root), "expected a list of videos")
        refused(SomethingSomething(other, other.replace("other", "none"), root), "no file .*none.json")
        refused(SomethingSomething(unknown, unknown, root), "expected an object of templates")
        refused(
            SomethingSomething(unknown, labels, root), "item 1: unknown class 'Eating something'; expected one of 2"
        )


class TestPathList:
    def test_numbers_names_and_paths_alone(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.mp4", tmp_path / "my videos/b.mp4", tmp_path / "c/1.jpg")
        numbers = PathList(write(tmp_path / "numbers.txt", "a.mp4 3\nmy videos/b.mp4 12\n\nc 0\n"))
        assert found(numbers) == [("a.mp4", 3), ("b.mp4", 12), ("c", 0)]
        names = PathList(write(tmp_path / "names.txt", "a.mp4 sit\nmy videos/b.mp4 run\n"))
        assert found(names) == [("a.mp4", 1), ("b.mp4", 0)]
        assert names.classes == ["run", "sit"]
        tabs = PathList(write(tmp_path / "tabs.txt", "a.mp4\t3\nmy videos/b.mp4\t 12\n"))
        assert found(tabs) == [("a.mp4", 3), ("b.mp4", 12)]
        alone = PathList(write(tmp_path / "alone/list.txt", "a.mp4\nmy videos/b.mp4\n"), root=str(tmp_path))
        assert found(alone) == [("a.mp4", -1), ("b.mp4", -1)]
        (absolute,) = PathList(write(tmp_path / "abs.txt", f"{tmp_path / 'a.mp4'} 1\n"), root="/nowhere").clips()
        assert absolute.name == str(tmp_path / "a.mp4")

    def test_mistakes(self, tmp_path: Path) -> None:
        touch(tmp_path / "a.mp4")
        lines = write(tmp_path / "list.txt", "a.mp4 sit\na.mp4 stand\n")
        refused(PathList(lines, classes=["sit", "run"]), "list.txt line 2: unknown class 'stand'; expected one of 2")
        refused(PathList(write(tmp_path / "n.txt", "a.mp4 7\n"), classes=["sit", "run"]), "unknown class '7'")
        refused(PathList(write(tmp_path / "below.txt", "a.mp4 0\na.mp4 -1\n")), "below.txt: the label -1 is negative")
        refused(PathList(lines, root=str(tmp_path / "none")), "check the root")
        refused(PathList(str(tmp_path / "absent.txt")), "no file")
        refused(PathList(write(tmp_path / "empty.txt", "\n\n")), "is empty")
        (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80" * 9)
        refused(PathList(str(tmp_path / "binary.txt")), "cannot be read as text")


class TestVideos:
    def test_folders_files_and_images(self, tmp_path: Path) -> None:
        touch(tmp_path / "a/1.mp4", tmp_path / "a/deep/2.mkv", tmp_path / "b/1.png", tmp_path / "c.avi")
        paths = [str(tmp_path / name) for name in ("a", "b", "c.avi")]
        assert found(Videos(paths)) == [("1.mp4", -1), ("2.mkv", -1), ("b", -1), ("c.avi", -1)]
        assert found(Videos(paths, skip=["?.mp4", "b*"])) == [("2.mkv", -1), ("c.avi", -1)]
        refused(Videos(paths, skip=["*"]), "leaves no video")

    def test_mistakes(self, tmp_path: Path) -> None:
        refused(Videos(str(tmp_path / "none")), "no folder of videos")
        refused(Videos(str(tmp_path)), "contains neither images nor videos")


def test_labels_come_with_the_frames(movie: Callable[..., Path], tmp_path: Path) -> None:
    for number, name in enumerate(("run", "run", "sit")):
        movie(f"classes/{name}/{number}.mp4", 6)
    index = ClassFolders(str(tmp_path / "classes"))
    data = VideoData(index, size=16, length=6, batch_size=3, window=Window(6), workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch.label.shape == (3, 6)
    assert sorted(batch.label[:, 0].tolist()) == [0, 0, 1]
    assert bool((batch.label == batch.label[:, :1]).all())
    assert data.classes == ["run", "sit"]


def test_parts_have_the_classes_of_train_in_its_order(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("train/run/1.mp4", "train/sit/2.mp4", "val/sit/3.mp4", "more/jump/4.mp4")))
    parts = [ClassFolders(str(tmp_path / name)) for name in ("train", "val", "more")]
    data = VideoData(*parts)
    assert [clip.label for clip in data.clips("val")] == [1]
    assert data.classes == ["run", "sit"]
    with pytest.raises(DataError, match="more: 'jump' is not one of the 2 classes of train; give both the same"):
        data.clips("test")
    data = VideoData(parts[0], ClassFolders(str(tmp_path / "val"), classes=["sit", "run"]))
    with pytest.raises(DataError, match="val has 2 classes that are not the 2 of train, or in another order"):
        data.clips("val")
