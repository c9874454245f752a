"""Folders of images as clips, and their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tttstream.errors import DataError, SourceError
from tttstream.train.data import Davis, ImagesClip, PyAV, VideoData, Videos
from tttstream.train.data.clips import Shot
from tttstream.train.data.transforms import transformed


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + 253 * [99, 99, 99])
    image.save(path)


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two sequences of four frames of 24 × 32 pixels with two objects, and lists of both years."""
    for number, name in enumerate(("bear", "camel")):
        for frame in range(4):
            save(tmp_path / f"JPEGImages/480p/{name}/{frame:05d}.jpg", np.full((24, 32, 3), 60 * number + 10 * frame))
            mask = np.zeros((24, 32))
            mask[4:12, 4 + frame : 12 + frame], mask[14:20, 20:28] = 1, 2
            save(tmp_path / f"Annotations/480p/{name}/{frame:05d}.png", mask, "P")
    for year, lines in {
        "2017": {"val": "camel\n", "train": "bear\n", "wrong": "dog\n", "empty": ""},
        "2016": {"val": "/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png\n" * 2},
    }.items():
        for part, text in lines.items():
            path = tmp_path / "ImageSets" / year / f"{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return tmp_path


def test_the_davis_tree(davis: Path) -> None:
    names = {
        (part, year): [Path(clip.name).name for clip in Davis(str(davis), part, year).clips()]
        for part, year in (("val", 2016), ("val", 2017), ("train", 2017), (None, 2017))
    }
    assert list(names.values()) == [["bear"], ["camel"], ["bear"], ["bear", "camel"]]
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p" / "bear").rename(davis / kind / "480p" / "brown bear")
    (davis / "ImageSets" / "2017" / "mine.txt").write_text("brown bear\n")
    assert [Path(clip.name).name for clip in Davis(str(davis), "mine", 2017).clips()] == ["brown bear"]


@pytest.mark.parametrize(("year", "objects"), [(2016, [0, 1]), (2017, [0, 1, 2])])
def test_frames_and_masks_go_through_the_same_transform(davis: Path, year: int, objects: list[int]) -> None:
    data = VideoData(val=Davis(str(davis), None, year), size=24, length=4, batch_size=2, workers=1)
    (batch,) = list(data.val_dataloader())
    assert batch.mask is not None
    assert batch.mask.shape == (2, 4, 24, 24)
    assert batch.mask.unique().tolist() == objects
    first = batch.mask[0] == 1
    assert [int(frame.nonzero()[0, 1]) for frame in first] == [0, 1, 2, 3]  # the middle square starts at column 4
    assert batch.frames[1, 2].float().mean().item() == pytest.approx(80, abs=2)
    data.teardown("validate")


def test_clips_without_masks_beside_clips_with_some(davis: Path, tmp_path: Path) -> None:
    from tttstream.train.data import Index
    from tttstream.train.data.clips import Clip

    class Both(Index):
        def clips(self) -> list[Clip]:
            return [*Davis(str(davis), "val").clips(), ImagesClip(str(davis / "JPEGImages/480p/camel"))]

    (batch,) = list(VideoData(val=Both(), size=16, length=4, batch_size=2, workers=0).val_dataloader())
    assert batch.mask is not None
    assert batch.mask[0].any()
    assert not batch.mask[1].any()


def masks_of(folder: Path, *masks: Image.Image, merge: bool = False, suffix: str = ".png") -> ImagesClip:
    """A clip of black images, one for each mask and of its size."""
    folder.mkdir()
    for number, mask in enumerate(masks):
        Image.new("RGB", mask.size).save(folder / f"{number}.jpg")
        (folder / "masks").mkdir(exist_ok=True)
        mask.save(folder / "masks" / f"{number}{suffix}")
    return ImagesClip(str(folder), masked=True, masks=str(folder / "masks"), merge=merge)


def test_masks_as_people_save_them(tmp_path: Path) -> None:
    """The reader returns the numbers in the files, -1 for void; test_mask_files.py tests the whole rule."""
    pixels = np.kron(np.array([[0, 1, 2], [2, 255, 0]]), np.ones((4, 4), int))
    plain = np.where(pixels == 255, -1, pixels)
    white = (pixels == 1).astype(np.uint8) * 255
    indexed = Image.fromarray(pixels.astype(np.uint8))
    indexed.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + 253 * [99, 99, 99])
    kinds = {
        "grey": ([Image.fromarray(pixels.astype(np.uint8))], plain),
        "indexed": ([indexed], plain),
        "16 bits": ([Image.fromarray((pixels * 256).astype(np.uint16))], pixels * 256),
        "black and white": ([Image.fromarray(white)], white > 0),
        "bits": ([Image.fromarray(white > 0)], white > 0),
        "colour": ([Image.fromarray(np.stack([white, 0 * white, 0 * white], -1))], white > 0),
    }
    for name, (images, expected) in kinds.items():
        shot = masks_of(tmp_path / name, *images).open(PyAV()).read(np.arange(1))
        assert shot.masks is not None
        np.testing.assert_array_equal(shot.masks[0], expected, err_msg=name)
    large = masks_of(tmp_path / "32", Image.fromarray((pixels * 10**6).astype(np.int32)), suffix=".tif")
    found = large.open(PyAV()).read(np.arange(1)).masks
    assert found is not None
    np.testing.assert_array_equal(found[0], pixels * 10**6)
    merged = masks_of(tmp_path / "merged", indexed, merge=True).open(PyAV()).read(np.arange(1)).masks
    assert merged is not None
    np.testing.assert_array_equal(merged[0], np.minimum(plain, 1))
    for name, suffix, message in (("jpeg", ".jpg", "is a JPEG image"), ("none", ".npy.png", "there is no file")):
        with pytest.raises(SourceError, match=message):
            masks_of(tmp_path / name, Image.fromarray(white), suffix=suffix).open(PyAV()).read(np.arange(1))


def test_void_stays_void_where_an_object_is_hidden(tmp_path: Path) -> None:
    """A later mask of 0 and 255 alone is not taken for a black and white one."""
    masks = [np.zeros((8, 8), np.uint8) for _ in range(2)]
    masks[0][:4, :4], masks[0][4], masks[1][4] = 3, 255, 255
    clip = masks_of(tmp_path / "a", *map(Image.fromarray, masks))
    found = clip.open(PyAV()).read(np.array([1])).masks
    assert found is not None
    assert np.unique(found).tolist() == [-1, 0]


def test_numbers_go_through_transforms_exactly() -> None:
    """torchvision computes masks in float32, which has no 2 ** 24 + 1; void is no object and no background."""
    masks = np.zeros((2, 8, 8), np.int32)
    masks[0, 0], masks[0, 1], masks[0, 2], masks[1, 3] = -1, 2**24 + 1, 2**24, 2**31 - 1
    shot = Shot(np.zeros((2, 8, 8, 3), np.uint8), masks)
    _, found = transformed(shot, v2.Compose([v2.RandomHorizontalFlip(1.0), v2.Resize(8), v2.Pad(1)]), 10, seed=0)
    assert found is not None
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found[:, 1:-1, 1:-1], masks)
    assert not found[:, 0].any()


def test_bad_trees(davis: Path) -> None:
    expected = {
        "absent": "no file .*absent.txt",
        "empty": "empty.txt is empty",
        "wrong": "names the sequence dog, which is not in",
    }
    for part, message in expected.items():
        with pytest.raises(DataError, match=message):
            Davis(str(davis), part, 2017).clips()
    for part, message in {"val": "no file .*val.txt", None: "no folder .*nowhere/JPEGImages/480p"}.items():
        with pytest.raises(DataError, match=message):
            Davis(str(davis / "nowhere"), part).clips()
    for path in (davis / "Annotations/480p/camel").iterdir():
        path.unlink()
    (davis / "Annotations/480p/camel").rmdir()
    with pytest.raises(DataError, match="sequence camel lacks its masks"):
        Davis(str(davis), None).clips()


def test_frames_of_different_sizes(davis: Path) -> None:
    folder = davis / "JPEGImages/480p/bear"
    save(folder / "00002.jpg", np.zeros((10, 12, 3)))
    data = VideoData(Videos(str(folder)), size=8, length=4, batch_size=1, workers=0, bad_video="raise")
    with pytest.raises(DataError, match=r"00002\.jpg is 12×10 pixels and the first image of its folder 32×24"):
        next(iter(data.loader("train")))


def test_masks_that_do_not_fit(davis: Path) -> None:
    mask = davis / "Annotations/480p/bear/00001.png"
    save(mask, np.zeros((10, 10)))
    reader = Davis(str(davis), "train", 2017).clips()[0].open(PyAV())
    assert len(reader.read(np.arange(4)).frames) == 1
    assert reader.damage is not None
    assert "00001.jpg is 10×10 pixels, expected 32×24" in reader.damage
    mask.unlink()
    with pytest.raises(SourceError, match=r"00001\.png: it cannot be read as a mask"):
        reader.read(np.arange(1, 4))


def test_a_damaged_image(davis: Path) -> None:
    (davis / "JPEGImages/480p/bear/00001.jpg").write_text("no image")
    data = VideoData(Videos(str(davis / "JPEGImages/480p/bear")), size=8, length=4, batch_size=1, workers=0)
    batch = next(iter(data.loader("train")))
    assert batch.frame[0].tolist() == [0, 0, 0, 0]
    with pytest.warns(UserWarning, match="00001.jpg cannot be read as an image"):
        data.teardown("fit")


def test_the_real_sequence(shared_videos: Path) -> None:
    clips = Davis(str(shared_videos / "masks" / "davis"), None).clips()
    (clip,) = (clip for clip in clips if Path(clip.name).name == "car-shadow")
    assert clip.count(PyAV()) == 40
    shot = clip.open(PyAV()).read(np.array([0, 39]))
    assert shot.frames.shape == (2, 480, 854, 3)
    assert shot.masks is not None
    assert set(np.unique(shot.masks)) == {0, 1}
    assert 0.01 < shot.masks.mean() < 0.3
