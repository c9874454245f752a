"""Images in ROS 2 messages: encodings, rows, byte orders, mosaics, compression."""

from collections.abc import Callable
from types import SimpleNamespace as Made
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("mcap_ros2", reason="needs the extra robots")
from tests.sources.bags import Pixels, image, picture_of
from tttstream.sources.robots.images import picture


def converted(encoding: str, pixels: Pixels) -> tuple[NDArray[Any], Pixels]:
    """RGB in an encoding, and the expected result."""
    grey = pixels[..., 0]
    ways: dict[str, Callable[[], tuple[NDArray[Any], Pixels]]] = {
        "rgb8": lambda: (pixels, pixels),
        "bgr8": lambda: (pixels[..., ::-1], pixels),
        "rgba8": lambda: (np.dstack([pixels, grey]), pixels),
        "bgra8": lambda: (np.dstack([pixels[..., ::-1], grey]), pixels),
        "mono8": lambda: (grey, np.dstack([grey] * 3)),
        "8UC1": lambda: (grey, np.dstack([grey] * 3)),
        "mono16": lambda: (grey.astype(np.uint16) * 256 + 17, np.dstack([grey] * 3)),
        "16UC1": lambda: (grey.astype(np.uint16) * 256 + 200, np.dstack([grey] * 3)),
        "32FC1": lambda: ((grey / 255).astype(np.float32), np.dstack([grey] * 3)),
    }
    return ways[encoding]()


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "mono16", "16UC1", "32FC1"])
def test_encodings(encoding: str, big: bool, pad: int) -> None:
    stored, expected = converted(encoding, picture_of(1, 5, 7))
    np.testing.assert_array_equal(picture(image(np.ascontiguousarray(stored), encoding, pad=pad, big=big)), expected)


@pytest.mark.parametrize(
    ("encoding", "layout"),
    [("bayer_rggb8", "RGGB"), ("bayer_bggr8", "BGGR"), ("bayer_gbrg8", "GBRG"), ("bayer_grbg8", "GRBG")],
)
def test_mosaics(encoding: str, layout: str) -> None:
    colour = np.array([220, 120, 40], np.uint8)
    mosaic = np.zeros((12, 12), np.uint8)
    for place, name in enumerate(layout):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour["RGB".index(name)]
    np.testing.assert_array_equal(picture(image(mosaic, encoding))[4:8, 4:8], np.broadcast_to(colour, (4, 4, 3)))


@pytest.mark.parametrize(("encoding", "places"), [("yuv422", (1, 3, 0, 2)), ("yuv422_yuy2", (0, 2, 1, 3))])
def test_colours_in_pairs(encoding: str, places: tuple[int, ...]) -> None:
    luma, blue, other = 82, 90, 240  # pure red by BT.601
    row = np.zeros((2, 2, 4), np.uint8)
    row[..., places[0]] = row[..., places[1]] = luma
    row[..., places[2]], row[..., places[3]] = blue, other
    message = image(row.reshape(2, 8), encoding)
    message.width = 4
    assert np.abs(picture(message).astype(int) - [255, 0, 0]).max() < 4
    message.width = 3
    with pytest.raises(ValueError, match="in pairs"):
        picture(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "8UC3"}, "its encoding is '8UC3', expected one of rgb8, bgr8"),
        ({"step": 23}, r"8×6 pixels of rgb8 need rows of 24 bytes, and it has 144 bytes in rows of 23"),
        ({"data": b"\0" * 143}, "143 bytes in rows of 24"),
        ({"width": 0}, "it is 0×6 pixels"),
    ],
)
def test_images_that_are_none(change: dict[str, Any], message: str) -> None:
    bad = image(picture_of(0))
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(ValueError, match=message):
        picture(bad)


def test_dark_sixteen_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="its values go from 200 to 200"):
        picture(image(np.full((4, 4), 200, np.uint16), "mono16"))


def encoded(pixels: Pixels, suffix: str = ".png") -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if suffix == ".jpg" else []
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "kind", "swap"),
    [
        (".png", "png", False),
        (".png", "rgb8; png compressed bgr8", False),
        (".png", "rgb8; png compressed rgb8", True),
        (".jpg", "jpeg", False),
        (".jpg", "bgr8; jpeg compressed bgr8", False),
    ],
)
def test_compressed(suffix: str, kind: str, swap: bool) -> None:
    pixels = cv2.resize(picture_of(3, 4, 4), (32, 24), interpolation=cv2.INTER_CUBIC)
    stored = pixels[..., ::-1] if swap else pixels
    found = picture(Made(format=kind, data=encoded(stored, suffix)))
    assert np.abs(found.astype(int) - pixels).max() <= (0 if suffix == ".png" else 30)


def test_compressed_greys() -> None:
    grey = picture_of(3)[..., 0]
    np.testing.assert_array_equal(picture(Made(format="png", data=encoded(grey))), np.dstack([grey] * 3))
    deep = grey.astype(np.uint16) * 256
    found = picture(Made(format="16UC1; png compressed ", data=encoded(deep)))
    np.testing.assert_array_equal(found, np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("jpeg", encoded(picture_of(0), ".jpg")[:-40], "its JPEG is cut off"),
        ("16UC1; compressedDepth png", b"x", "compressed depth"),
        ("h264", b"\0\0\0\1x", "neither JPEG nor PNG"),
        ("png", encoded(picture_of(0))[:30], "cannot be decoded"),
    ],
)
def test_compressed_images_that_are_none(kind: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture(Made(format=kind, data=data))
