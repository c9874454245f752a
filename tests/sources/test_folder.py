"""Folders of images, the expansion of a folder of videos, and paths that `open_source` refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.folder import ImageFolder, expand


def save(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value in (1, 2, 10, 20):
        save(tmp_path / "pictures" / f"frame{value}.png", value)
    (tmp_path / "pictures" / "notes.txt").write_text("no image")
    save(tmp_path / "pictures" / ".hidden.png", 99)
    return tmp_path / "pictures"


def test_images_come_in_natural_order(folder: Path) -> None:
    with open_source(folder) as source:
        frames = list(source)
        assert (source.name, source.frames, source.fps) == ("pictures", 4, 30)
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [1, 2, 10, 20]
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(4) / 30)


def test_one_image_is_a_source_of_one_frame(folder: Path) -> None:
    (frame,) = open_source(folder / "frame20.png")
    assert frame.image[0, 0, 0] == 20


def test_damaged_images_are_counted_or_raised(folder: Path) -> None:
    (folder / "frame2.png").write_bytes((folder / "frame10.png").read_bytes()[:40])
    with open_source(folder) as source:
        frames = list(source)
        assert (source.skipped, source.truncated) == (1, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    np.testing.assert_allclose([frame.time_s for frame in frames], [0, 2 / 30, 3 / 30])
    with open_source(folder, on_error="raise") as source:
        frames = []
        with pytest.raises(SourceError, match=r"frame2\.png cannot be read"):
            frames.extend(source)


def test_not_one_readable_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no image")
    with open_source(tmp_path) as source, pytest.raises(SourceError, match="not one of the 1 images"):
        list(source)


def test_seeking(folder: Path) -> None:
    (folder / "frame1.png").write_text("no image")
    source = ImageFolder(folder)
    next(iter(source))
    position = json.loads(json.dumps(source.position()))
    rest = list(source)
    source = ImageFolder(folder)
    source.seek(position)
    again = list(source)
    assert source.skipped == 1
    assert [(f.index, f.time_s, f.image.tobytes()) for f in again] == [
        (f.index, f.time_s, f.image.tobytes()) for f in rest
    ]
    for path in folder.glob("*.png"):
        path.unlink()
    save(folder / "frame1.png", 1)
    with pytest.raises(SourceError, match="has changed"):
        ImageFolder(folder).seek(position)


def test_greys_of_16_bits_and_turned_photographs(tmp_path: Path) -> None:
    grey = (np.arange(24, dtype=np.uint16) * 2700).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    (frame,) = open_source(tmp_path / "grey.png")
    np.testing.assert_array_equal(frame.image[..., 1], grey // 256)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    (frame,) = open_source(tmp_path / "turned.jpg")
    assert frame.image.shape == (6, 4, 3)


def test_expand(folder: Path, tmp_path: Path) -> None:
    assert expand([folder]) == [str(folder)]
    assert expand(["walk", 0, "gym:CartPole-v1", "rtsp://camera/1"]) == [
        "walk",
        "0",
        "gym:CartPole-v1",
        "rtsp://camera/1",
    ]
    clips = tmp_path / "clips"
    for name in ("b/2.mp4", "b/10.mp4", "a/deep/x.mkv", "z.avi", ".git/y.mp4"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
        (clips / name).touch()
    save(clips / "b" / "poster.jpg", 1)
    expected = [clips / "z.avi", clips / "a/deep/x.mkv", clips / "b/2.mp4", clips / "b/10.mp4"]
    assert expand([clips]) == [str(path) for path in expected]
    assert expand([clips / "b", "walk"]) == [str(clips / "b/2.mp4"), str(clips / "b/10.mp4"), "walk"]
    save(tmp_path / "many" / "one" / "1.png", 1)
    save(tmp_path / "many" / "two" / "1.png", 1)
    assert expand([tmp_path / "many"]) == [str(tmp_path / "many" / "one"), str(tmp_path / "many" / "two")]


def test_folders_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").touch()
    (tmp_path / "notes.txt").write_text("hello\n" * 50)
    expected = {"bare": "neither images nor videos", "clips": "take one of them", "none": "no such file"}
    expected["notes.txt"] = "."
    for name, message in expected.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(SourceError, match="on_error is 'ignore'"):
        open_source("walk", on_error="ignore")
