"""Files of several images: animations and pages as frames, their times, continuing inside one, and damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.sources import open_source
from tttstream.sources.pages import Pages, count_pages
from tttstream.train.data import ImagesClip, PyAV
from tttstream.train.data.clips import Clip

LASTS = [100, 250, 40, 40, 300]
NAMES = ["a.png", "a.webp", "a.tif"]
Images = list[Image.Image]


def drawn(many: int = 5) -> Images:
    """Images of noise, in which a square moves."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    images = []
    for number in range(many):
        picture = noise.copy()
        picture[4:12, 3 * number : 3 * number + 8] = 50 * number
        images.append(Image.fromarray(picture))
    return images


def save(path: Path, images: Images, **given: Any) -> Path:
    if path.suffix == ".webp":
        given |= {"lossless": True}
    if path.suffix != ".tif":
        given = {"duration": LASTS[: len(images)], "loop": 3} | given
    images[0].save(path, save_all=True, append_images=images[1:], **given)
    return path


def frames(path: Path) -> list[Frame]:
    with open_source(path, on_error="raise") as source:
        return list(source)


def same(came: list[Frame], expected: Images) -> None:
    assert [frame.index for frame in came] == list(range(len(expected)))
    for frame, image in zip(came, expected, strict=True):
        np.testing.assert_array_equal(frame.image, np.asarray(image))


@pytest.mark.parametrize("name", NAMES)
def test_every_image_once_at_its_time(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, drawn())
    with open_source(path) as source:
        came = list(source)
        assert source.frames == 5
        assert source.fps == pytest.approx(30 if name == "a.tif" else 10)
    same(came, drawn())
    times = np.arange(5) / 30 if name == "a.tif" else np.cumsum([0, *LASTS[:-1]]) / 1000
    np.testing.assert_allclose([frame.time_s for frame in came], times)


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_images_are_drawn_over_each_other_as_pillow_does(tmp_path: Path, disposal: int, blend: int) -> None:
    images = drawn()
    for number, image in enumerate(images[1:]):
        image.putalpha(Image.fromarray(np.tri(24, 32, 5 * number, np.uint8) * 255))
    images[0].putalpha(255)
    path = save(tmp_path / "a.png", images, disposal=disposal, blend=blend)
    expected = []
    for number in range(5):
        with Image.open(path) as file:
            file.seek(number)
            expected.append(file.convert("RGB"))
    same(frames(path), expected)


def test_the_default_image_of_an_animation_is_not_part_of_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", drawn(), default_image=True, duration=LASTS[:4])
    came = frames(path)
    same(came, drawn()[1:])
    np.testing.assert_allclose([frame.time_s for frame in came], [0, 0.1, 0.35, 0.39])


def test_images_that_last_no_time_have_times_of_their_own(tmp_path: Path) -> None:
    came = frames(save(tmp_path / "a.png", drawn(), duration=0))
    np.testing.assert_allclose([frame.time_s for frame in came], np.arange(5) / 30)


def test_pages_of_all_kinds(tmp_path: Path) -> None:
    wide = Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30))
    first, second = drawn(2)
    path = save(tmp_path / "a.tif", [first, wide, second.convert("L")])
    came = frames(path)
    np.testing.assert_array_equal(came[0].image, np.asarray(first))
    np.testing.assert_array_equal(came[1].image[..., 0], np.asarray(wide) // 256)
    np.testing.assert_array_equal(came[2].image[..., 2], np.asarray(second.convert("L")))


@pytest.mark.parametrize(("tag", "value"), [(254, 1), (254, 4), (255, 2)])
def test_thumbnails_and_masks_of_a_picture_are_no_pages(tmp_path: Path, tag: int, value: int) -> None:
    whole, small = drawn(1)[0], drawn(2)[1].resize((8, 6))
    small.encoderinfo = {"tiffinfo": {tag: value}}
    path = save(tmp_path / "a.tif", [whole, small])
    with Image.open(path) as file:
        file.seek(1)
        assert file.tag_v2[tag] == value  # type: ignore[attr-defined]
    same(frames(path), [whole])
    clip: Clip = ImagesClip(str(tmp_path))
    np.testing.assert_array_equal(clip.open(PyAV()).read(np.array([0])).frames[0], np.asarray(whole))


def test_most_files_of_one_image_are_recognised_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a file with Pillow takes several times as long as reading its header, and folders contain many files."""
    image = drawn(1)[0]
    single: dict[str, dict[str, Any]] = {
        "a.png": {},
        "b.png": {"icc_profile": b"x" * 9000, "compress_level": 0},
        "lossy.webp": {"quality": 50},
        "lossless.webp": {"lossless": True},
        "noted.webp": {"exif": b"Exif\0\0" + b"x" * 40},
        "a.tif": {},
        "b.tiff": {"compression": "tiff_deflate"},
    }
    for name, given in single.items():
        image.save(tmp_path / name, **given)
    (tmp_path / "big.tif").write_bytes(big_endian_tiff())
    for name in NAMES:
        save(tmp_path / f"many{name}", drawn())
    pages = []

    class Counted(Pages):
        def __init__(self, path: Path) -> None:
            pages.append(path.name)
            super().__init__(path)

    monkeypatch.setattr("tttstream.sources.pages.Pages", Counted)
    counts = {path.name: count_pages(path) for path in tmp_path.iterdir()}
    assert counts == dict.fromkeys([*single, "big.tif"], 1) | {f"many{name}": 5 for name in NAMES}
    assert sorted(pages) == sorted(f"many{name}" for name in NAMES)


def big_endian_tiff() -> bytes:
    """One grey pixel as Motorola's processors write it."""
    fields = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 1)]
    packed = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in fields
    )
    return b"MM\0*" + struct.pack(">I", 10) + b"\x80\0" + struct.pack(">H", len(fields)) + packed + bytes(4)


def test_in_a_folder_they_come_in_their_place(tmp_path: Path) -> None:
    single, *others = drawn()
    single.save(tmp_path / "1.png")
    save(tmp_path / "2.webp", others[:2])
    save(tmp_path / "10.tif", others[2:])
    single.save(tmp_path / "11.bmp")
    with open_source(tmp_path) as source:
        came = list(source)
        assert (source.frames, source.fps) == (6, 30)
    same(came, [single, *others, single])
    np.testing.assert_allclose([frame.time_s for frame in came], np.arange(6) / 30)


@pytest.mark.parametrize("name", [*NAMES, "folder"])
def test_continuing_inside_an_animation(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        for number, inside in enumerate(NAMES):
            save(path / f"{number}{inside}", drawn(2))
    else:
        save(path, drawn())
    whole = frames(path)
    for stop in range(1, len(whole)):
        with open_source(path) as source:
            for _, _ in zip(range(stop), source, strict=False):
                pass
            position = json.loads(json.dumps(source.position()))
        with open_source(path) as source:
            source.seek(position)
            rest = list(source)
        expected_at = [(frame.index, frame.time_s) for frame in whole[stop:]]
        assert [(frame.index, frame.time_s) for frame in rest] == expected_at
        for frame, expected in zip(rest, whole[stop:], strict=True):
            np.testing.assert_array_equal(frame.image, expected.image)


@pytest.mark.parametrize("name", NAMES)
def test_no_wrong_image_where_the_file_is_cut(tmp_path: Path, name: str) -> None:
    images = [image.crop((0, 0, 12, 8)) for image in drawn()]
    path = save(tmp_path / name, images)
    data, wanted = path.read_bytes(), [np.asarray(image) for image in images]
    for length in range(len(data) // 4, len(data) - 60, 7):
        path.write_bytes(data[:length])
        with open_source(path) as source:
            try:
                came = list(source)
            except SourceError:  # not one image is left
                continue
            for frame, expected in zip(came, wanted, strict=False):
                np.testing.assert_array_equal(frame.image, expected)
            assert len(came) < 5, length
            assert source.skipped > 0, length
        with pytest.raises(SourceError, match="cannot be read as an image"):
            frames(path)


@pytest.mark.parametrize("name", NAMES)
def test_training_refuses_them(tmp_path: Path, name: str) -> None:
    save(tmp_path / name, drawn(3))
    with pytest.raises(SourceError, match="it contains 3 images, expected one") as caught:
        ImagesClip(str(tmp_path)).open(PyAV())
    assert "\n" not in str(caught.value)


def test_an_animation_under_the_suffix_of_single_images_is_refused(tmp_path: Path) -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    path = tmp_path / "moving.png"
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    path = path.rename(tmp_path / "moving.bmp")
    with pytest.raises(SourceError, match="contains 3 images; its suffix"), open_source(path) as source:
        list(source)


@pytest.mark.parametrize("blend", [0, 1])
def test_the_default_image_is_never_visible_through_an_animation(blend: int, tmp_path: Path) -> None:
    """The first image of an animation is drawn on an empty picture, not on the default image."""
    half = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    half.paste((0, 0, 0, 0), (0, 0, 8, 4))
    stand_in = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    others = [half, Image.new("RGBA", (8, 8), (0, 255, 0, 255))]
    path = tmp_path / "moving.png"
    stand_in.save(path, save_all=True, append_images=others, default_image=True, blend=blend)
    if blend == 0:
        with open_source(path) as source:
            frames = [frame.image for frame in source]
        assert len(frames) == 2
        assert (frames[0][:4, :, 0] == 0).all()
        return
    with pytest.raises(SourceError, match="drawn over the default image"), open_source(path) as source:
        list(source)
