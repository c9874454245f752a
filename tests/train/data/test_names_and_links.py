"""Training data under odd names, behind links, and in tables with broken rows."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import DataError
from tttstream.train.data.datasets import ClassFolders, Davis, Kinetics, SomethingSomething
from tttstream.train.data.files import MEMBER, content
from tttstream.train.data.indices import Index
from tttstream.train.data.video import Decord, PyAV


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(index: Index, root: Path) -> list[tuple[str, int]]:
    return [(os.path.relpath(clip.name, root), clip.label) for clip in index.clips()]


def refused(index: Index, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        index.clips()
    assert "\n" not in str(caught.value)


class TestLinks:
    def test_class_folders(self, tmp_path: Path) -> None:
        root, disk = tmp_path / "root", tmp_path / "disk"
        touch(disk / "1.mp4", disk / "more" / "2.mp4", root / "sit" / "3.mp4")
        (root / "run").symlink_to(disk)
        (root / "sit" / "deep").symlink_to(tmp_path / "other")
        touch(tmp_path / "other" / "4.mp4")
        expected = [("run/1.mp4", 0), ("run/more/2.mp4", 0), ("sit/3.mp4", 1), ("sit/deep/4.mp4", 1)]
        assert found(ClassFolders(str(root)), root) == expected
        (root / "up").symlink_to("..")  # its origin is no class
        assert found(ClassFolders(str(root)), root) == expected
        (root / "zebra").symlink_to(disk)  # the class run under another name
        with pytest.warns(UserWarning, match="zebra is skipped: it is the folder run under another name"):
            assert found(ClassFolders(str(root)), root) == expected
        (root / "jump").symlink_to("nowhere")
        refused(ClassFolders(str(root)), "jump is a broken link")

    def test_kinetics(self, tmp_path: Path) -> None:
        touch(tmp_path / "disk" / "aaa.mp4")
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "abseiling").symlink_to(tmp_path / "disk")
        (tmp_path / "disk" / "back").symlink_to(tmp_path / "root")
        (tmp_path / "a.csv").write_text("label,youtube_id\nabseiling,aaa\n")
        index = Kinetics(str(tmp_path / "a.csv"), str(tmp_path / "root"))
        assert found(index, tmp_path) == [("root/abseiling/aaa.mp4", 0)]

    def test_davis(self, tmp_path: Path) -> None:
        for part, name in (("JPEGImages", "0.jpg"), ("Annotations", "0.png")):
            disk = tmp_path / "disk" / part / "bear"
            disk.mkdir(parents=True)
            Image.fromarray(np.zeros((4, 6), np.uint8)).save(disk / name)
            (tmp_path / "root" / part).mkdir(parents=True)
            (tmp_path / "root" / part / "480p").symlink_to(tmp_path / "disk" / part)
            (tmp_path / "disk" / part / "cow").symlink_to(disk)
        with pytest.warns(UserWarning, match="cow is skipped"):
            clips = Davis(str(tmp_path / "root"), part=None).clips()
        assert [Path(clip.name).name for clip in clips] == ["bear"]


class TestRows:
    HEAD = "label,youtube_id,time_start,time_end\n"

    @pytest.mark.parametrize(
        ("row", "says"),
        [
            ("x\n", "a.csv line 3 has no youtube_id; expected 4 columns"),
            ("x,\n", "a.csv line 3 has no youtube_id"),
            (" ,aaa,1,2\n", "a.csv line 3 has no label"),
            ("riding, a bike,aaa,1,2\n", "a.csv line 3 has more columns than the first line"),
            ("x,aaa,1,nan\n", "a.csv line 3: times in seconds"),
            ("x,aaa,inf,2\n", "a.csv line 3: times in seconds"),
        ],
    )
    def test_kinetics(self, tmp_path: Path, row: str, says: str) -> None:
        touch(tmp_path / "videos" / "aaa.mp4")
        (tmp_path / "a.csv").write_text(self.HEAD + "x,aaa,1,2\n" + row)
        refused(Kinetics(str(tmp_path / "a.csv"), str(tmp_path / "videos")), says)

    def test_rows_without_times_or_with_empty_ends(self, tmp_path: Path) -> None:
        touch(tmp_path / "videos" / "aaa.mp4")
        (tmp_path / "a.csv").write_text(self.HEAD + 'x,aaa\n"riding, a bike",aaa,,,,\n')
        index = Kinetics(str(tmp_path / "a.csv"), str(tmp_path / "videos"))
        assert [clip.label for clip in index.clips()] == [1, 0]
        assert index.classes == ["riding, a bike", "x"]

    @pytest.mark.parametrize(
        ("item", "says"),
        [
            ({"id": "7", "template": 3}, "item 1: its template is 3, expected a text"),
            ({"id": "7", "template": ["a"]}, r"item 1: its template is \['a'\]"),
            ({"id": None, "template": "a"}, "item 1: expected a video with an id"),
            ({"template": "a"}, "item 1: expected a video with an id"),
            (None, "item 1: expected a video with an id"),
            ("7", "item 1: expected a video with an id"),
        ],
    )
    def test_templates(self, tmp_path: Path, item: object, says: str) -> None:
        touch(tmp_path / "7.webm")
        (tmp_path / "labels.json").write_text('{"a": "0"}')
        (tmp_path / "train.json").write_text(json.dumps([item]))
        names = [str(tmp_path / "train.json"), str(tmp_path / "labels.json"), str(tmp_path)]
        refused(SomethingSomething(*names), says)
        (tmp_path / "train.json").write_text(json.dumps([{"id": 7, "template": None}]))
        assert found(SomethingSomething(*names), tmp_path) == [("7.webm", -1)]


def test_empty_paths_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "root" / "run" / "1.mp4")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "root")
    assert found(ClassFolders("~/root"), tmp_path) == [("root/run/1.mp4", 0)]
    refused(ClassFolders(""), "root is an empty text")
    refused(Davis(""), "root is an empty text")
    refused(Kinetics("", "."), "csv is an empty text")


@pytest.mark.parametrize("name", ["10:00.mp4", "http:x.mp4", "a::b.mp4", os.fsdecode(b"caf\xe9.mp4")])
def test_names_that_look_like_something_else(
    movie: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made = movie("x.mp4")
    expected = PyAV(32).open(str(made)).read(np.arange(3)).frames
    monkeypatch.chdir(tmp_path)
    os.rename(made, name)
    for decoder in (PyAV(32), Decord(32)) if find_spec("decord") else (PyAV(32),):
        frames = decoder.open(name).read(np.arange(3)).frames
        assert frames.shape == expected.shape
        np.testing.assert_allclose(frames.astype(int), expected.astype(int), atol=4)


def test_a_tar_whose_name_has_the_mark_of_tars(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"first")
    with tarfile.open(tmp_path / "a::b.tar", "w") as tar:
        tar.add(tmp_path / "x.mp4", "x.mp4")
        tar.add(tmp_path / "x.mp4", "y::z.mp4")
    for member in ("x.mp4", "y::z.mp4"):
        assert content(f"{tmp_path / 'a::b.tar'}{MEMBER}{member}").read() == b"first"
