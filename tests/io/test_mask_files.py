"""The rule of masks in files: numbers, void and colours of every kind of image, and of sequences of them."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, features

from tttstream.errors import SourceError
from tttstream.io.mask_files import VOID, MaskSequence, compact, read_mask
from tttstream.views.masks import palette

HEIGHT, WIDTH = 12, 20
BOX, OTHER, BORDER = np.s_[1:5, 2:8], np.s_[6:11, 9:18], np.s_[5:6, 2:18]


def drawn(one: Any, two: Any = 0, between: Any = 0, dtype: Any = np.uint8, ground: Any = 0) -> NDArray[Any]:
    """Two boxes and a border between them, of these values (colours)."""
    channels = np.shape(one)
    pixels = np.zeros((HEIGHT, WIDTH, *channels), dtype)
    pixels[:] = ground
    pixels[BOX], pixels[OTHER], pixels[BORDER] = one, two, between
    return pixels


def kept(path: Path, pixels: NDArray[Any], colours: Sequence[int] | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    if colours is not None:
        image.putpalette(list(colours))
    image.save(path, **options)
    return path


def png(path: Path, pixels: NDArray[Any], bits: int, kind: int) -> Path:
    """A PNG of samples [H, W] or [H, W, C] with this number of bits, which Pillow cannot write. kind: its colour
    type."""
    rows = pixels.reshape(len(pixels), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        places = np.arange(bits)[::-1]
        lines = [np.packbits((row[:, None] >> places & 1).astype(np.uint8)).tobytes() for row in rows]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], bits, kind, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line for line in lines))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("grey.png", drawn(2, 7), drawn(2, 7, dtype=np.int32)),
        ("grey.bmp", drawn(2, 7), drawn(2, 7, dtype=np.int32)),
        ("grey.pgm", drawn(2, 7), drawn(2, 7, dtype=np.int32)),
        ("void.png", drawn(2, 7, 255), drawn(2, 7, VOID, np.int32)),
        ("high.png", drawn(254, 7), drawn(254, 7, dtype=np.int32)),
        ("black-and-white.png", drawn(255, 255), drawn(1, 1, dtype=np.int32)),
        ("white.png", drawn(255, 255, 255, ground=255), drawn(1, 1, 1, np.int32, 1)),
        ("one.png", drawn(38), drawn(38, dtype=np.int32)),
        ("empty.png", drawn(0), drawn(0, dtype=np.int32)),
        ("bits.png", drawn(True, dtype=bool), drawn(1, dtype=np.int32)),
        ("bits.tif", drawn(True, dtype=bool), drawn(1, dtype=np.int32)),
        ("16.png", drawn(256, 65535, 255, np.uint16), drawn(256, 65535, 255, np.int32)),
        ("16.tif", drawn(256, 512, 3, np.uint16), drawn(256, 512, 3, np.int32)),
        ("16-two.png", drawn(255, 0, 0, np.uint16), drawn(255, dtype=np.int32)),
        ("16.pgm", drawn(256, 300, 255, np.uint16), drawn(256, 300, 255, np.int32)),
        ("32.tif", drawn(70_000, 2**31 - 1, 255, np.int32), drawn(70_000, 2**31 - 1, 255, np.int32)),
        ("whole-floats.tif", drawn(3.0, 4.0, dtype=np.float32), drawn(3, 4, dtype=np.int32)),
    ],
)
def test_numbers_are_unchanged(tmp_path: Path, name: str, pixels: Any, expected: Any) -> None:
    found = read_mask(kept(tmp_path / name, pixels))
    assert found.labels.dtype == np.int32
    np.testing.assert_array_equal(found.labels, expected)
    assert found.colours == {}


def test_palettes_keep_numbers_and_colours(tmp_path: Path) -> None:
    path = kept(tmp_path / "a.png", drawn(2, 7, 255), palette().ravel().tolist())
    found = read_mask(path)
    np.testing.assert_array_equal(found.labels, drawn(2, 7, VOID, np.int32))
    assert found.colours == {2: (0, 128, 0), 7: (128, 128, 128)}
    found = read_mask(kept(tmp_path / "b.png", drawn(255, 255), palette().ravel().tolist()))
    np.testing.assert_array_equal(found.labels, drawn(1, 1, dtype=np.int32))
    assert found.colours == {1: (224, 224, 192)}
    short = kept(tmp_path / "c.png", drawn(1, 2), [0, 0, 0, 9, 8, 7, 6, 5, 4], bits=2)
    assert read_mask(short).colours == {1: (9, 8, 7), 2: (6, 5, 4)}
    hidden = kept(tmp_path / "d.png", drawn(1, 2), [0, 0, 0, 9, 8, 7, 6, 5, 4], transparency=bytes([0, 255, 0]))
    np.testing.assert_array_equal(read_mask(hidden).labels, drawn(1, dtype=np.int32))
    gif = kept(tmp_path / "e.gif", drawn(1, 2), [0, 0, 0, 9, 8, 7, 6, 5, 4])
    np.testing.assert_array_equal(read_mask(gif).labels, drawn(1, 2, dtype=np.int32))


@pytest.mark.parametrize(("bits", "one", "two"), [(2, 1, 3), (4, 5, 15), (4, 1, 2), (8, 9, 200)])
def test_greys_of_few_bits_are_not_stretched(tmp_path: Path, bits: int, one: int, two: int) -> None:
    path = png(tmp_path / "a.png", drawn(one, two), bits, kind=0)
    np.testing.assert_array_equal(read_mask(path).labels, drawn(one, two, dtype=np.int32))


@pytest.mark.parametrize("largest", [3, 100, 1000])
def test_grey_maps_with_a_largest_value_of_their_own_are_not_stretched(tmp_path: Path, largest: int) -> None:
    raw = drawn(1, largest, dtype=np.uint8 if largest < 256 else ">u2").tobytes()
    (tmp_path / "a.pgm").write_bytes(f"P5 {WIDTH} {HEIGHT} {largest}\n".encode() + raw)
    plain = drawn(1, largest, dtype=np.int32)
    (tmp_path / "b.pgm").write_text(f"P2 {WIDTH} {HEIGHT} {largest}\n" + " ".join(map(str, plain.ravel())))
    for name in ("a.pgm", "b.pgm"):
        np.testing.assert_array_equal(read_mask(tmp_path / name).labels, plain)


def test_16_bits_in_either_byte_order(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (WIDTH, HEIGHT), drawn(300, 40_000, dtype=">u2").tobytes())
    image.save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif").labels, drawn(300, 40_000, dtype=np.int32))
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"


RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def test_colours_are_numbered_in_order_and_known(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "a.tif"):
        found = read_mask(kept(tmp_path / name, drawn(RED, GREEN, BLUE)))
        np.testing.assert_array_equal(found.labels, drawn(3, 2, 1, np.int32))
        assert found.colours == {1: BLUE, 2: GREEN, 3: RED}
    white = read_mask(kept(tmp_path / "white.png", drawn((255, 255, 255), (1, 1, 1), BLUE)))
    np.testing.assert_array_equal(white.labels, drawn(3, 2, 1, dtype=np.int32))
    lossless = read_mask(kept(tmp_path / "a.webp", drawn(RED, GREEN), lossless=True))
    np.testing.assert_array_equal(lossless.labels, drawn(2, 1, dtype=np.int32))


def test_numbers_in_three_channels(tmp_path: Path) -> None:
    """As OpenCV writes a grey mask that it read in colour, and WebP every one: taken where both readings agree."""

    def three(*values: int) -> Path:
        return kept(tmp_path / "three.png", drawn(*values)[..., None].repeat(3, 2))

    np.testing.assert_array_equal(read_mask(three(2, 1)).labels, drawn(2, 1, dtype=np.int32))
    for alone in (255, 7):
        np.testing.assert_array_equal(read_mask(three(alone)).labels, drawn(1, dtype=np.int32))
    for values in ((1, 3), (2, 3), (1, 255), (128, 255)):
        with pytest.raises(SourceError, match=r"three.png tells objects by greys in three channels"):
            read_mask(three(*values))


def test_transparent_pixels_are_background(tmp_path: Path) -> None:
    hidden = drawn((*RED, 255), (*GREEN, 128), ground=(90, 60, 30, 0), between=(0, 0, 0, 255))
    found = read_mask(kept(tmp_path / "hidden.png", hidden))
    np.testing.assert_array_equal(found.labels, drawn(2, 1, dtype=np.int32))
    assert found.colours == {1: GREEN, 2: RED}
    alone = drawn((0, 0, 0, 255), (0, 0, 0, 255), ground=(0, 0, 0, 0), between=(0, 0, 0, 0))
    alone_hidden = drawn((0, 0, 0, 255), (0, 0, 0, 255), ground=(9, 9, 9, 0), between=(0, 0, 0, 0))
    for number, pixels in enumerate((alone, alone_hidden)):
        found = read_mask(kept(tmp_path / f"alone{number}.png", pixels))
        np.testing.assert_array_equal(found.labels, drawn(1, 1, dtype=np.int32))
    key = kept(tmp_path / "key.png", drawn(RED, GREEN), transparency=GREEN)
    np.testing.assert_array_equal(read_mask(key).labels, drawn(1, dtype=np.int32))
    cut = kept(tmp_path / "cut.png", drawn(2, 7), transparency=7)
    np.testing.assert_array_equal(read_mask(cut).labels, drawn(2, dtype=np.int32))


@pytest.mark.parametrize(
    ("one", "two", "ground", "expected"),
    [
        ((2, 255), (7, 255), (5, 0), (2, 7)),
        ((2, 255), (7, 0), (5, 0), (2, 0)),
        ((255, 255), (255, 255), (255, 0), (1, 1)),
        ((0, 255), (0, 255), (0, 0), (1, 1)),
        ((255, 255), (3, 255), (0, 255), (VOID, 3)),
    ],
)
def test_grey_with_transparency(tmp_path: Path, one: Any, two: Any, ground: Any, expected: Any) -> None:
    path = kept(tmp_path / "a.png", drawn(one, two, ground, ground=ground))
    with Image.open(path) as image:
        assert image.mode == "LA"
    np.testing.assert_array_equal(read_mask(path).labels, drawn(*expected, dtype=np.int32))


def test_a_mask_is_turned_upright_as_frames_are(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    path = kept(tmp_path / "a.png", drawn(2, 7), exif=exif)
    np.testing.assert_array_equal(read_mask(path).labels, np.rot90(drawn(2, 7), -1))


def disk(size: int, mode: str = "L", fill: Any = 255, scale: int = 4) -> Image.Image:
    image = Image.new(mode, (size * scale, size * scale))
    ImageDraw.Draw(image).ellipse([9 * scale, 6 * scale, 43 * scale, 44 * scale], fill=fill)
    return image


@pytest.mark.parametrize(
    "image",
    [
        disk(60).resize((60, 60), Image.Resampling.BOX),
        disk(60, scale=2).resize((60, 60), Image.Resampling.BOX),
        disk(60).resize((60, 60), Image.Resampling.LANCZOS),
        disk(60, fill=3).resize((60, 60), Image.Resampling.BOX).point(lambda value: 40 * value),
        disk(60, scale=1).filter(ImageFilter.GaussianBlur(1)),
        disk(60, scale=1).filter(ImageFilter.GaussianBlur(5)),
        disk(60, "RGB", (255, 90, 0)).resize((60, 60), Image.Resampling.BOX),
        disk(60, "RGBA", (255, 90, 0, 255)).resize((60, 60), Image.Resampling.BOX),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)),
    ],
)
def test_smoothed_masks_and_pictures_are_refused(tmp_path: Path, image: Image.Image) -> None:
    image.save(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"a\.png (is smoothed|has \d+ values)") as caught:
        read_mask(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_many_objects_and_small_ones_are_no_picture(tmp_path: Path) -> None:
    many = (np.arange(60)[:, None] // 6 * 10 + np.arange(60) // 6).astype(np.uint16) * 300
    np.testing.assert_array_equal(read_mask(kept(tmp_path / "a.png", many)).labels, many)
    dots = drawn(1)
    dots[7:10, [3, 6, 9, 12]] = [2, 3, 4, 5]
    np.testing.assert_array_equal(read_mask(kept(tmp_path / "b.png", dots)).labels, dots)


def test_unsuitable_formats_are_refused_in_one_line(tmp_path: Path) -> None:
    refused = {
        "jpeg.jpg": "is a JPEG image, which changes the numbers",
        "lossy.webp": "lossy WEBP image",
        "noted.webp": "lossy WEBP image",
        "a.avif": "is a AVIF image",
        "jpeg.tif": "lossy TIFF image",
        "nowhere.png": "there is no file",
        "text.png": "cannot be read as a mask",
        "array.npy": "cannot be read as a mask",
        "cut.png": "cannot be read as a mask",
        "pages.tif": "holds 2 images",
        "animated.png": "holds 2 images",
        "cmyk.tif": "mode CMYK",
        "odd.png": "shows number 2 in black and number 0 in a colour",
        "deep.png": "16 bits a channel",
        "deep-grey.png": "16 bits a channel",
        "half.tif": "no whole numbers",
        "minus.tif": "no whole numbers",
    }
    kept(tmp_path / "jpeg.jpg", drawn(255, 255))
    kept(tmp_path / "lossy.webp", drawn(1, 2), quality=90)
    kept(tmp_path / "noted.webp", drawn(1, 2), quality=90, exif=b"Exif\0\0" + b"x" * 41)
    kept(tmp_path / "jpeg.tif", drawn(255, 255), compression="jpeg")
    if features.check("avif"):
        kept(tmp_path / "a.avif", drawn(1, 2), quality=100)
    else:
        del refused["a.avif"]
    (tmp_path / "text.png").write_text("no image")
    np.save(tmp_path / "array.npy", drawn(1))
    whole = kept(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 2, (99, 99), np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    pages = [Image.fromarray(drawn(1)), Image.fromarray(drawn(2))]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "animated.png", save_all=True, append_images=pages[1:])
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.tif")
    kept(tmp_path / "odd.png", drawn(1, 2), [9, 9, 9, 200, 0, 0, 0, 0, 0])
    png(tmp_path / "deep.png", drawn((300, 0, 0), (301, 0, 0), dtype=np.uint16), 16, kind=2)
    png(tmp_path / "deep-grey.png", drawn((300, 65535), (301, 65535), dtype=np.uint16), 16, kind=4)
    kept(tmp_path / "half.tif", drawn(0.5, dtype=np.float32))
    kept(tmp_path / "minus.tif", drawn(-3, dtype=np.int32))
    for name, message in refused.items():
        with pytest.raises(SourceError, match=message) as caught:
            read_mask(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def sequence(folder: Path, *masks: NDArray[Any]) -> MaskSequence:
    return MaskSequence([kept(folder / f"{number}.png", mask) for number, mask in enumerate(masks)])


def test_the_first_mask_with_an_object_decides_the_meaning_of_255(tmp_path: Path) -> None:
    numbers = sequence(tmp_path, drawn(0), drawn(1, 2, 255), drawn(0, 0, 255), drawn(1))
    assert [np.unique(mask.labels).tolist() for mask in numbers] == [[0], [VOID, 0, 1, 2], [VOID, 0], [0, 1]]
    white = sequence(tmp_path, drawn(255, 255), drawn(0), drawn(255), drawn(1, 2, 255))
    assert [np.unique(white[index].labels).tolist() for index in (2, 1, 0)] == [[0, 1], [0], [0, 1]]
    with pytest.raises(SourceError, match=r"0\.png is black and white .*3\.png has other numbers"):
        white[3]


def test_colours_keep_their_numbers_through_a_sequence(tmp_path: Path) -> None:
    masks = sequence(tmp_path, drawn(GREEN, RED), drawn(RED), drawn(BLUE, RED), drawn(0), drawn(GREEN, (0, 9, 0)))
    expected = [drawn(1, 2), drawn(2), drawn(3, 2), drawn(0), drawn(1, 4)]
    for index in (2, 0, 4, 1, 3):
        np.testing.assert_array_equal(masks[index].labels, expected[index])
    mixed = sequence(tmp_path, drawn(GREEN, RED), drawn(1))
    with pytest.raises(SourceError, match=r"0\.png tells objects by colours, .*1\.png by numbers"):
        mixed[1]
    mixed = sequence(tmp_path, drawn(1), drawn(GREEN))
    with pytest.raises(SourceError, match=r"0\.png tells objects by numbers, .*1\.png by colours"):
        mixed[1]


def test_an_unreadable_file_of_a_sequence_is_reported_when_it_is_read(tmp_path: Path) -> None:
    masks = sequence(tmp_path, drawn(GREEN), drawn(RED, GREEN), drawn(BLUE))
    (tmp_path / "0.png").write_text("no image")
    np.testing.assert_array_equal(masks[1].labels, drawn(2, 1))
    with pytest.raises(SourceError, match=r"0\.png cannot be read"):
        masks[0]


def test_objects_without_gaps() -> None:
    places, numbers = compact(drawn(300, 70_000, VOID, np.int32))
    np.testing.assert_array_equal(places, drawn(1, 2, VOID, np.int16))
    assert numbers == [300, 70_000]
