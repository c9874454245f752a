"""The meaning of names of sources: links to folders, folders without permission, and numbered images."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.listing import expand, sequence, spelled


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def save(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)


def under(root: Path, *tops: Path) -> list[str]:
    """The files of these folders, relative to one of them."""
    return [os.path.relpath(path, root) for path in expand(tops)]


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """closed(folder): it cannot be listed from now on (permissions do not stop an administrator)."""

    def close(folder: Path) -> None:
        scandir = os.scandir

        def refusing(path: Any = ".") -> Any:
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refusing)

    return close


class TestLinks:
    def test_a_folder_elsewhere_is_read_through_its_link(self, tmp_path: Path) -> None:
        top, disk = tmp_path / "top", tmp_path / "disk"
        touch(disk / "2.mp4", disk / "deep" / "10.mp4", top / "own.mp4")
        (top / "link").symlink_to(disk)
        assert under(top, top / "link") == ["link/2.mp4", "link/deep/10.mp4"]  # a link that was named itself
        (top / "own.mp4").unlink()
        assert under(top, top) == ["link/2.mp4", "link/deep/10.mp4"]
        (tmp_path / "chain").symlink_to(top / "link")
        assert under(tmp_path, tmp_path / "chain") == ["chain/2.mp4", "chain/deep/10.mp4"]

    def test_each_folder_once(self, tmp_path: Path) -> None:
        touch(tmp_path / "disk" / "x.mp4")
        top = tmp_path / "top"
        touch(top / "real" / "y.mp4")
        for name in ("a", "b"):
            (top / name).symlink_to(tmp_path / "disk")
        (top / "alias").symlink_to(top / "real")  # has its own name
        (top / "inner").symlink_to(tmp_path / "disk" / ".." / "disk")
        assert under(top, top) == ["a/x.mp4", "real/y.mp4"]

    def test_circles_end(self, tmp_path: Path) -> None:
        top, other = tmp_path / "top", tmp_path / "other"
        touch(top / "in" / "x.mp4", other / "y.mp4")
        (top / "in" / "up").symlink_to("..")
        (top / "in" / "self").symlink_to(".")
        (top / "over").symlink_to(other)
        (other / "back").symlink_to(top)
        (top / "loop").symlink_to("loop")  # a link to itself leads nowhere
        assert under(top, top) == ["in/x.mp4", "over/y.mp4", "loop"]

    def test_a_link_into_the_middle_of_a_tree_outside(self, tmp_path: Path) -> None:
        touch(tmp_path / "disk" / "a" / "x.mp4", tmp_path / "disk" / "b" / "y.mp4")
        top = tmp_path / "top"
        top.mkdir()
        (top / "all").symlink_to(tmp_path / "disk")
        (top / "zero").symlink_to(tmp_path / "disk" / "b")
        assert under(top, top) == ["all/a/x.mp4", "all/b/y.mp4"]

    def test_folders_of_images(self, tmp_path: Path) -> None:
        save(tmp_path / "disk" / "1.png", 7)
        top = tmp_path / "top"
        top.mkdir()
        (top / "link").symlink_to(tmp_path / "disk")
        assert under(top, top) == ["link"]
        with open_source(top / "link") as source:
            assert [int(frame.image[0, 0, 0]) for frame in source] == [7]
        (top / "file.png").symlink_to(tmp_path / "disk" / "1.png")
        with open_source(top) as source:
            assert source.frames == 1

    def test_skipped_images_are_reported(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        touch(tmp_path / "a" / "x.mp4", tmp_path / "a" / "y.LRV", tmp_path / "a" / "0.png")
        assert under(tmp_path, tmp_path / "a") == ["a/x.mp4", "a/y.LRV"]
        assert not caplog.messages
        touch(tmp_path / "a" / "1.png")
        assert under(tmp_path, tmp_path / "a") == ["a/x.mp4", "a/y.LRV"]
        assert caplog.messages == [
            f"{tmp_path / 'a'}: images are skipped if there are videos in the same folder or above"
        ]
        for number, name in enumerate(("0.jfif", "1.tga", "2.jp2", "3.pbm", "4.dib")):
            Image.new("L", (4, 4), 250 * (number % 2)).save(tmp_path / name, format={0: "JPEG", 3: "PPM"}.get(number))
        touch(tmp_path / "5.heic", tmp_path / "6.HEIC", tmp_path / "7.exr")
        with open_source(tmp_path / "0.jfif") as source:
            assert (source.frames, source.remarks()) == (1, [])
        (tmp_path / "a").rename(tmp_path / ".hidden")
        with open_source(tmp_path) as source:
            assert [int(frame.image[0, 0, 0]) for frame in source] == [0, 250, 0, 250, 0]
            assert source.remarks() == ["3 images are skipped, of kinds that are not read: .exr, .heic"]

    def test_links_to_nowhere_come_last_and_say_so(self, tmp_path: Path) -> None:
        touch(tmp_path / "x.mp4")
        (tmp_path / "gone").symlink_to("nowhere")
        (tmp_path / "b.mp4").symlink_to("missing.mp4")
        assert under(tmp_path, tmp_path) == ["b.mp4", "x.mp4", "gone"]
        for name, target in (("gone", "nowhere"), ("b.mp4", "missing.mp4")):
            with pytest.raises(SourceError, match=rf"the link leads nowhere \(to {target}\)"):
                open_source(tmp_path / name)


def test_a_folder_that_cannot_be_listed_stops_no_other(tmp_path: Path, closed: Callable[[Path], None]) -> None:
    touch(tmp_path / "a" / "x.mp4", tmp_path / "b" / "y.mp4", tmp_path / "c" / "z.mp4")
    closed(tmp_path / "b")
    assert under(tmp_path, tmp_path) == ["a/x.mp4", "c/z.mp4", "b"]
    with pytest.raises(SourceError, match=r"Permission denied|cannot be listed"):
        open_source(tmp_path / "b")
    assert under(tmp_path, tmp_path / "b", tmp_path / "c") == ["b", "c/z.mp4"]


class TestNumberedImages:
    def test_those_that_fit_by_their_numbers(self, tmp_path: Path) -> None:
        for number in (1, 2, 10, 100000):
            save(tmp_path / f"frame{number:05d}.png", number % 256)
        save(tmp_path / "frame7.png", 99)  # of another width
        save(tmp_path / "frame00003.jpg", 99)
        with open_source(tmp_path / "frame%05d.png") as source:
            assert source.frames == 4
            assert [int(frame.image[0, 0, 0]) for frame in source] == [1, 2, 10, 100000 % 256]
        assert [path.name for path in sequence(tmp_path / "frame%d.png")] == ["frame7.png", "frame100000.png"]
        assert expand([tmp_path / "frame%05d.png"]) == [str(tmp_path / "frame%05d.png")]

    def test_other_spellings(self, tmp_path: Path) -> None:
        touch(tmp_path / "50%-3.png", tmp_path / "50%-20.png", tmp_path / "4.png")
        assert [path.name for path in sequence(tmp_path / "50%%-%d.png")] == ["50%-3.png", "50%-20.png"]
        assert [path.name for path in sequence(tmp_path / "%d.png")] == ["4.png"]
        assert sequence(tmp_path / "frame.png") == []
        assert sequence(tmp_path / "%d-%d.png") == []
        save(tmp_path / "a%d.png", 5)  # a file with exactly this name has precedence
        save(tmp_path / "a1.png", 6)
        (frame,) = open_source(tmp_path / "a%d.png")
        assert frame.image[0, 0, 0] == 5

    def test_none_that_fits(self, tmp_path: Path) -> None:
        touch(tmp_path / "frame1.png")
        for name in ("frame%05d.png", "other%d.png", "clip%d.mp4"):
            with pytest.raises(SourceError, match="stands for images with numbers, and none fits"):
                open_source(tmp_path / name)
        with pytest.raises(SourceError, match=r"as a pattern it fits 1"):
            open_source(tmp_path / "*.png")


def test_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert spelled("~/x.mp4") == str(tmp_path / "x.mp4")
    assert spelled("file:///clips/a%20b.mp4") == "/clips/a b.mp4"
    assert [spelled(text) for text in ("-", "0", "walk", "gym:CartPole-v1", "rtsp://~/x")] == [
        *("-", "0", "walk", "gym:CartPole-v1", "rtsp://~/x")
    ]
    with pytest.raises(SourceError, match="empty text"):
        open_source("")
    save(tmp_path / "folder" / "0" / "1.png", 1)
    monkeypatch.chdir(tmp_path / "folder")
    assert expand(["."]) == ["./0"]  # not the camera
