"""What a decoded picture looks like: orientation, shape of pixels, colours and brightness; the same in training."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources import hdr, open_source
from tttstream.sources.camera import Camera
from tttstream.sources.video import Video
from tttstream.train.data import Decord, PyAV

Pixels = NDArray[np.uint8]
Encode = Callable[..., Path]
WIDE, HIGH = 64, 48
UNIT = 1 << 16


def quarters() -> Pixels:
    """Red and green above blue and white, so that every turn and mirror shows."""
    image = np.zeros((HIGH, WIDE, 3), np.uint8)
    image[:24, :32], image[:24, 32:] = (230, 30, 30), (30, 230, 30)
    image[24:, :32], image[24:, 32:] = (30, 30, 230), (230, 230, 230)
    return image


@pytest.fixture
def encode(tmp_path: Path) -> Encode:
    """encode(name, codec, planes or RGB, pixels=…, matrix=…, **context): a video of three equal frames."""

    def write(name: str, codec: str, image: Any, pixels: str = "yuv420p", matrix: Any = None, **context: Any) -> Path:
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options=context.pop("options", {}))
            stream.width, stream.height, stream.pix_fmt = WIDE, HIGH, pixels
            for key, value in context.items():
                setattr(stream.codec_context, key, value)
            if matrix is not None:
                stream.set_display_matrix(matrix)
            for _ in range(3):
                if isinstance(image, np.ndarray):
                    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                else:
                    frame = av.VideoFrame(WIDE, HIGH, pixels)
                    for plane, value in zip(frame.planes, image, strict=True):
                        many = plane.buffer_size // (2 if "10" in pixels else 1)
                        plane.update(np.full(many, value, np.uint16 if "10" in pixels else np.uint8).tobytes())
                    for key in {"colorspace", "color_range"} & set(context):
                        setattr(frame, key, context[key])
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return tmp_path / name

    return write


def shown(path: Path) -> Pixels:
    """The first frame as `watch` reads it, after a check that both decoders of training, and a camera simulated by the
    file, read the same."""
    with Video(str(path)) as video, Camera(str(path)) as camera:
        image = next(iter(video)).image
        np.testing.assert_array_equal(next(iter(camera)).image, image)
    for decoder in (PyAV(), Decord()):
        reader = decoder.open(str(path))
        (frame,) = reader.read(np.array([0])).frames
        reader.close()
        assert frame.shape == image.shape
        assert np.abs(frame.astype(int) - image).max() <= 1
    return np.asarray(image)


# A point (x, y), y down, is shown at (a x + c y, b x + d y), by a, b, c, d; what FFmpeg's transpose, hflip, vflip do.
ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[Pixels], Pixels]] = {
    (1, 0, 0, 1): lambda image: image,
    (-1, 0, 0, 1): lambda image: image[:, ::-1],
    (-1, 0, 0, -1): lambda image: image[::-1, ::-1],
    (1, 0, 0, -1): lambda image: image[::-1],
    (0, 1, 1, 0): lambda image: image.swapaxes(0, 1),
    (0, 1, -1, 0): lambda image: np.rot90(image, -1),
    (0, -1, -1, 0): lambda image: image[::-1, ::-1].swapaxes(0, 1),
    (0, -1, 1, 0): lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_all_eight_orientations(encode: Encode, matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = (UNIT * number for number in matrix)
    plain = shown(encode("plain.mp4", "libx264", quarters()))
    for name in ("turned.mp4", "turned.mkv"):
        path = encode(name, "libx264", quarters(), matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
        np.testing.assert_array_equal(shown(path), ORIENTATIONS[matrix](plain))
        small = PyAV(short_side=24).open(str(path)).read(np.array([0])).frames[0]
        assert np.abs(small - ORIENTATIONS[matrix](quarters()[::2, ::2]).astype(float)).mean() < 12


def test_a_tilted_picture_is_turned_about_its_middle(encode: Encode) -> None:
    half = UNIT * 0.5**0.5
    path = encode("tilted.mp4", "libx264", quarters(), matrix=(half, half, 0, -half, half, 0, 0, 0, 1 << 30))
    image = shown(path)  # clockwise by 45 degrees: red moves to the top, green to the right
    assert image.shape == (HIGH, WIDE, 3)
    assert image[0, 0].max() == 0
    for (row, column), colour in {(6, 32): 0, (24, 50): 1, (24, 14): 2}.items():
        assert int(image[row, column].argmax()) == colour


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_in_images_and_in_motion_jpeg(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    for suffix in ("jpg", "png", "webp", "tif"):
        Image.fromarray(quarters()).save(tmp_path / f"image.{suffix}", exif=exif, quality=95)
        with Image.open(tmp_path / f"image.{suffix}") as stored:
            pixels = np.array(stored.convert("RGB"))
        turned = _by_exif(quarters(), orientation)
        assert pixels.shape in (turned.shape, quarters().shape)
        with open_source(tmp_path / f"image.{suffix}") as source:
            image = next(iter(source)).image
        assert image.shape == turned.shape
        assert np.abs(image.astype(int) - turned).mean() < 5, suffix
    (tmp_path / "movie.mjpeg").write_bytes((tmp_path / "image.jpg").read_bytes() * 3)
    image = shown(tmp_path / "movie.mjpeg")
    assert image.shape == turned.shape
    assert np.abs(image.astype(int) - turned).mean() < 5


def _by_exif(image: Pixels, orientation: int) -> Pixels:
    """Upright by the table of the EXIF standard."""
    ways = (2, None), (2, (1,)), (2, (0, 1)), (2, (0,)), (5, ()), (5, (1,)), (5, (0, 1)), (5, (0,))
    way, flips = ways[orientation - 1]
    image = image.swapaxes(0, 1) if way == 5 else image
    return np.flip(image, flips) if flips else image


@pytest.mark.parametrize(("aspect", "width"), [("16:11", 93), ("8:9", 57), ("1:1", 64)])
def test_pixels_are_made_square(encode: Encode, aspect: str, width: int) -> None:
    from fractions import Fraction

    ratio = Fraction(aspect.replace(":", "/"))
    path = encode("wide.mp4", "libx264", quarters(), sample_aspect_ratio=ratio)
    image = shown(path)
    assert image.shape == (HIGH, width, 3)
    assert [int(image[5, column].argmax()) for column in (4, width // 2 - 4, width // 2 + 4)] == [0, 0, 1]
    turn = (0, UNIT, 0, -UNIT, 0, 0, 0, 0, 1 << 30)
    turned = encode("turned.mp4", "libx264", quarters(), sample_aspect_ratio=ratio, matrix=turn)
    assert shown(turned).shape == (width, HIGH, 3)
    assert min(PyAV(short_side=24).open(str(path)).read(np.array([0])).frames.shape[1:3]) == 24


def test_pixels_of_an_absurd_shape_are_refused(encode: Encode) -> None:
    from fractions import Fraction

    path = encode("thin.mp4", "libx264", quarters(), sample_aspect_ratio=Fraction(1, 20))
    with pytest.raises(SourceError, match=r"thin\.mp4 has pixels that are 1/20 times as wide as high"):
        open_source(path)


WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}


def rgb(codes: tuple[int, int, int], matrix: int, full: bool) -> NDArray[np.float64]:
    """RGB in 0..255 of YUV codes of 8 bits, by the definition in H.273."""
    red, blue = WEIGHTS[matrix]
    low, luma, chroma = (0, 255, 255) if full else (16, 219, 224)
    y, u, v = (codes[0] - low) / luma, (codes[1] - 128) / chroma, (codes[2] - 128) / chroma
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.clip([r, (y - red * r - blue * b) / (1 - red - blue), b], 0, 1) * 255


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", WEIGHTS)
def test_colours_follow_the_header(encode: Encode, matrix: int, full: bool) -> None:
    codes = (70, 95, 160)
    for name, codec in (("colours.mp4", "libx264"), ("colours.webm", "libvpx-vp9")):
        said = {"colorspace": matrix, "color_range": 2 if full else 1}
        image = shown(encode(name, codec, codes, options={"crf": "4"}, **said))
        np.testing.assert_allclose(image[20, 20], rgb(codes, matrix, full), atol=4)


def test_colours_that_cannot_be_converted_are_refused(encode: Encode) -> None:
    path = encode("ycgco.mkv", "libx264", (70, 95, 160), colorspace=8)
    with pytest.raises(SourceError, match=r"colours of ycgco\.mkv cannot be converted to RGB \(matrix number 8\)"):
        open_source(path)
    for decoder in (PyAV(), Decord()):
        with pytest.raises(SourceError, match=r"matrix number 8"):
            decoder.open(str(path)).read(np.array([0]))


def expected_grey(nits: float) -> float:
    """The 8-bit code of a grey of this number of nits, by BT.2390 written out."""
    top, most = float(hdr.pq_code(1000)), float(hdr.pq_code(203) / hdr.pq_code(1000))
    code, knee = float(hdr.pq_code(min(nits, 1000))) / top, 1.5 * most - 0.5
    if code > knee:
        t = (code - knee) / (1 - knee)
        code = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return float((hdr.pq_light(np.array(code * top)) / 203) ** (1 / 2.4) * 255)


def test_the_pq_curve() -> None:
    codes = {0.0: 0.0, 100: 0.5081, 203: 0.5807, 1000: 0.7518, 10000: 1.0}  # BT.2408, table 1
    for nits, code in codes.items():
        assert float(hdr.pq_code(nits)) == pytest.approx(code, abs=2e-4)
        assert float(hdr.pq_light(np.array(code))) == pytest.approx(nits, rel=5e-3, abs=1e-3)


@pytest.mark.parametrize(("name", "transfer"), [("pq", 16), ("hlg", 18)])
def test_hdr_is_tone_mapped(encode: Encode, name: str, transfer: int) -> None:
    said = {"colorspace": 9, "color_range": 1, "color_trc": transfer, "color_primaries": 9}
    levels = []
    for share in (0.0, 0.3, 0.58, 0.75, 1.0):
        codes = (round(64 + 876 * share), 512, 512)
        image = shown(encode(f"{name}.mkv", "ffv1", codes, pixels="yuv420p10le", **said))
        if name == "pq":
            nits = float(hdr.pq_light(np.array(share)))
        else:
            scene = share**2 / 3 if share <= 0.5 else (np.exp((share - 0.55991073) / 0.17883277) + 0.28466892) / 12
            nits = 1000 * scene**1.2
        np.testing.assert_allclose(image[20, 20], expected_grey(nits), atol=4)
        levels.append(int(image[20, 20, 0]))
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 255)
    plain = encode("sdr.mkv", "ffv1", (700, 512, 512), pixels="yuv420p10le", colorspace=9)
    np.testing.assert_allclose(shown(plain)[20, 20], (700 - 64) / 876 * 255, atol=3)


def test_hdr_keeps_the_colours() -> None:
    to_2020 = np.linalg.inv(np.array(hdr.BT2020))
    for colour in np.eye(3):
        codes = hdr.pq_code((to_2020 @ colour * 60).clip(0)) * 65535
        image = hdr.tone_mapped(np.asarray(codes.round(), np.uint16).reshape(1, 1, 3), hdr.PQ, 9)
        np.testing.assert_allclose(image[0, 0], colour * expected_grey(60), atol=14)
        assert int(image[0, 0].argmax()) == int(colour.argmax())
    with pytest.raises(SourceError, match="primaries of number 10 cannot be tone mapped"):
        hdr.tone_mapped(np.zeros((1, 1, 3), np.uint16), hdr.PQ, 10)


def test_a_jpeg_with_a_picture_inside_and_one_cut_off(tmp_path: Path) -> None:
    good = []
    for value in (40, 90, 140, 190, 240):
        exif, small, data = Image.Exif(), io.BytesIO(), io.BytesIO()
        Image.new("RGB", (16, 12), (value, value, value)).save(small, "JPEG")
        exif[0x927C] = small.getvalue()  # a thumbnail, with its own start and end
        noise = np.random.default_rng(value).integers(0, 40, (4 * HIGH, 4 * WIDE, 3))
        Image.fromarray((noise + value - 40).astype(np.uint8)).save(data, "JPEG", exif=exif)
        good.append(data.getvalue())
    header = good[2][: good[2].rindex(b"\xff\xda") // 2]
    (tmp_path / "header.mjpeg").write_bytes(b"".join([*good[:2], header, *good[3:]]))
    with Video(str(tmp_path / "header.mjpeg")) as video:
        assert len(list(video)) >= 3  # FFmpeg reads the next one as a part of it
        assert (video.skipped, video.truncated) == (1, True)
    for number, where in enumerate((0.5, 0.9, -2)):
        cut = good[2][: int(len(good[2]) * where) if where > 0 else int(where)]
        for place, items in enumerate(([*good[:2], cut, *good[3:]], [*good[:4], cut])):
            path = tmp_path / f"cut{number}{place}.mjpeg"
            path.write_bytes(b"".join(items))
            with Video(str(path)) as video:
                assert len(list(video)) == 4
                assert (video.skipped, video.truncated) == (1, True)
            for decoder in (PyAV(), Decord()):
                reader = decoder.open(str(path))
                reader.read(np.arange(5))
                assert reader.damage == "damaged frames: 1"
            with Video(str(path), on_error="raise") as video, pytest.raises(SourceError, match="is damaged or cut off"):
                list(video)
    (tmp_path / "good.mjpeg").write_bytes(b"".join(good))
    with Video(str(tmp_path / "good.mjpeg"), on_error="raise") as video:
        assert len(list(video)) == 5
        assert (video.skipped, video.truncated) == (0, False)
