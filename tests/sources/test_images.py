"""Pixels of image files in 8 bits, refused files, and the files found in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.folder import expand
from tttstream.train.data import ImagesClip, PyAV
from tttstream.train.data.clips import Clip

RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def shown(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    """The image as `watch` and training read it."""
    with open_source(path) as source:
        (frame,) = source
    clip: Clip = ImagesClip(str(path.parent))
    np.testing.assert_array_equal(clip.open(PyAV()).read(np.array([0])).frames[0], frame.image)
    return frame.image


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("a.tif", RAMP.astype(np.float32), RAMP * 255),
        ("a.tif", (RAMP * 65535).astype(np.int32), RAMP * 255),
        ("a.tif", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("a.png", (RAMP * 65535).astype(np.uint16), RAMP * 255),
        ("a.tif", (RAMP * 255).astype(np.uint8), RAMP * 255),
        ("a.png", RAMP > 0.5, (RAMP > 0.5) * 255),
        ("a.tif", np.zeros((6, 8), np.float32), RAMP * 0),
        ("a.tif", np.zeros((6, 8), np.int32), RAMP * 0),
    ],
)
def test_greys(tmp_path: Path, name: str, values: np.ndarray, expected: np.ndarray) -> None:  # type: ignore[type-arg]
    Image.fromarray(values).save(tmp_path / name)
    image = shown(tmp_path / name)
    assert image.shape == (6, 8, 3)
    assert np.abs(image - expected[..., None]).max() <= 1


@pytest.mark.parametrize("mode", ["P", "CMYK", "LA", "RGBA", "L"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    grey = Image.new("RGB", (8, 6), (102, 102, 102)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    grey.save(path)
    assert np.abs(shown(path).astype(int) - 102).max() <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 3.5, r"from 0 to 3\.5, expected 0 to 1;"),
        (RAMP - 0.25, r"from -0\.25 to 0\.75, expected 0 to 1;"),
        (RAMP * np.nan, "from nan to nan, expected 0 to 1;"),
        ((RAMP * 100_000).astype(np.int32), "from 0 to 100000, expected 0 to 65535 with some from 256 on;"),
        ((RAMP * 255).astype(np.int32), "from 0 to 255, expected 0 to 65535 with some from 256 on;"),
        ((RAMP * 255).astype(np.uint16), "from 0 to 255, expected 0 to 65535 with some from 256 on;"),
    ],
)
def test_ambiguous_ranges_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    kind = values.dtype if values.dtype.kind in "iu" else np.float32
    Image.fromarray(values.astype(kind)).save(tmp_path / "a.tif")
    for on_error in ("skip", "raise"):
        with open_source(tmp_path / "a.tif", on_error=on_error) as source, pytest.raises(SourceError, match=message):
            list(source)
    with pytest.raises(SourceError, match=message):
        ImagesClip(str(tmp_path)).open(PyAV())


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp"])
def test_an_image_cut_in_half_is_damaged(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    for path in (tmp_path / name, tmp_path / f"b{name}"):
        Image.fromarray(noise).save(path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with open_source(tmp_path) as source:
        assert len(list(source)) == 1
        assert source.skipped == 1


def test_videos_of_all_kinds_are_found_in_a_folder(tmp_path: Path) -> None:
    suffixes = ["gif", "vob", "y4m", "mjpeg", "mjpg", "m2v", "mpv", "h264", "264", "hevc", "265", "ivf", "nut"]
    suffixes += ["apng", "avif", "MP4", "Gif", "lrv", "insv", "divx", "tod", "trp", "m2p", "mk3d", "3gpp", "obu"]
    for suffix in suffixes:
        (tmp_path / f"{suffix}.{suffix}").touch()
    assert {Path(path).suffix[1:] for path in expand([tmp_path])} == set(suffixes)
