"""Reads masks from files, with one rule for numbers, void and colours.

The rule (docs/masks.md has all of it):

- Grey and palette images, of 1 to 32 bits: the value of a pixel is the number of its object, 0 the background.
- 255 in an image of 8 bits is void (unknown). In a black and white mask, with only the values 0 and 255, it is the
  object, number 1, as in an image of 1 bit.
- Colour images: one object for each colour, black the background. The objects are numbered 1, 2 … in the order of
  their colours (by red, then green, then blue). There is no void.
- Fully transparent pixels are background. If all visible pixels are black, they are one object, number 1.
- The first mask of a sequence that contains an object decides how the others are read.
- Files in which the numbers may be changed are refused: JPEG, smoothed edges, several pages, 16 bits for each colour
  channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError

VOID = -1
"""The label of pixels whose object is unknown: left out of losses and of scores."""

MOST = 32
"""Images with more values are checked more closely: they may be pictures instead of masks."""

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # the last two may be lossless, but their headers do not show it
LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")

Labels = NDArray[np.int32]
"""The number of the object of each pixel, [H, W]: 0 the background, VOID unknown."""

RGB = tuple[int, int, int]


class Mask(NamedTuple):
    """A mask: its labels, and the colours of the numbers in its file (none for a grey image)."""

    labels: Labels
    colours: dict[int, RGB]


@dataclass(frozen=True)
class _Stored:
    """The content of a file. values: int32 [H, W], 0 the background; the 24 bits of red, green and blue if `coloured`.
    palette: the colours of its values, [256, 3]. eight: whether 255 is the largest possible value.
    """

    values: NDArray[np.int32]
    coloured: bool = False
    eight: bool = False
    palette: NDArray[np.uint8] | None = None


class _Key(NamedTuple):
    """The first mask of a sequence with an object, which decides how the others are read: its file, kind, and
    values."""

    path: Path
    coloured: bool
    black_and_white: bool
    values: tuple[int, ...]


class MaskSequence:
    """The masks of the frames of one sequence, read by one rule (see above).

    paths: their files in order. The first mask with an object decides between black and white and numbers, and between
    grey and colours; a later mask of another kind is refused. Colours are numbered in the first mask, and new colours
    later have the next numbers, so that a colour has the same number in all masks.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Mask:
        """The mask of a frame. Raises SourceError, which names the file, if it cannot be read as a mask."""
        path, key = self._paths[index], self._key
        stored = _stored(path)
        if key is None or not stored.values.any():
            return Mask(np.zeros_like(stored.values), {})
        if stored.coloured != key.coloured:
            kinds = ("numbers", "colours") if stored.coloured else ("colours", "numbers")
            raise SourceError(f"{key.path} tells objects by {kinds[0]}, {path} by {kinds[1]}: keep all masks alike")
        if stored.coloured:
            return self._of_colours(stored.values)
        values = _different(stored)
        if stored.eight and key.black_and_white and values != [255]:
            raise SourceError(
                f"{key.path} is black and white (0 and 255 alone), {path} has other numbers: whether 255 is an object "
                "or void is unclear; number the objects 1, 2 … in all masks"
            )
        meaning = 1 if key.black_and_white else VOID
        labels = stored.values
        if stored.eight:
            labels = np.where(labels == 255, meaning, labels).astype(np.int32)
        numbers = {value: meaning if stored.eight and value == 255 else value for value in values}
        colours = {} if stored.palette is None else dict(zip(values, stored.palette[values].tolist(), strict=True))
        return Mask(labels, {numbers[value]: tuple(rgb) for value, rgb in colours.items() if numbers[value] != VOID})

    @cached_property
    def _key(self) -> _Key | None:
        """The key from the first mask with an object; files that cannot be read are skipped."""
        for path in self._paths:
            try:
                stored = _stored(path)
            except SourceError:
                if len(self._paths) == 1:
                    raise
                continue
            values = _different(stored)
            if values:
                return _Key(path, stored.coloured, stored.eight and values == [255], tuple(values))
        return None

    @cached_property
    def _legend(self) -> NDArray[np.int32]:
        """The colours of all masks, in the order of their numbers from 1."""
        assert self._key is not None
        first, later = self._key.values, set[int]()
        for path in self._paths if len(self._paths) > 1 else ():
            try:
                later.update(_different(_stored(path)))
            except SourceError:  # the error is raised when this mask is read
                continue
        legend = np.array([*first, *sorted(later.difference(first))], np.int32)
        greys = legend & 255
        numbered = (greys == np.arange(1, len(greys) + 1)).all()
        if len(greys) > 1 and not numbered and (legend == greys * 0x10101).all():
            raise SourceError(
                f"{self._key.path} tells objects by greys in three channels ({', '.join(map(str, greys[:5]))}): "
                "numbers or colours? Keep numbers as a grey image"
            )
        return legend

    def _of_colours(self, values: NDArray[np.int32]) -> Mask:
        order = np.argsort(self._legend)
        place = order[np.searchsorted(self._legend, values, sorter=order).clip(max=len(order) - 1)]
        labels = np.where(values > 0, place + 1, 0).astype(np.int32)
        colours = {n: (int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for n, v in enumerate(self._legend, start=1)}
        return Mask(labels, colours)


def read_mask(path: Path) -> Mask:
    """One mask by itself. Raises SourceError, which names the file, if it cannot be read as a mask."""
    return MaskSequence([path])[0]


def compact(labels: Labels) -> tuple[NDArray[np.int16], list[int]]:
    """Labels with the objects numbered 1, 2 … without gaps, void and background unchanged; and the former number of
    each."""
    numbers = [int(number) for number in np.unique(labels) if number > 0]
    places = np.searchsorted(numbers, labels) + 1
    return np.where(labels > 0, places, labels).astype(np.int16), numbers


def _different(stored: _Stored) -> list[int]:
    """The values except 0, in order."""
    values = stored.values
    found = np.flatnonzero(np.bincount(values.ravel(), minlength=256)) if stored.eight else np.unique(values)
    return [int(value) for value in found if value]


def _stored(path: Path) -> _Stored:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DependencyError("reading masks needs Pillow: pip install pillow") from error
    try:
        with Image.open(path) as file:
            _refuse_lossy(path, file)
            scale = _scale(file)
            file.load()
            stored = _values(path, ImageOps.exif_transpose(file), scale)
    except FileNotFoundError as error:
        raise SourceError(f"there is no file {path}: it cannot be read as a mask") from error
    except SourceError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path} cannot be read as a mask ({error})") from error
    _refuse_pictures(path, stored)
    return stored


def _refuse_lossy(path: Path, file: Any) -> None:
    """Raise SourceError for a file format that may change the numbers of a mask, by its header."""
    kind = file.format
    if file.info.get("compression") in LOSSY_TIFF or (kind == "WEBP" and _is_lossy_webp(path)):
        kind = f"lossy {kind}"
    if kind in LOSSY or kind != file.format:
        raise SourceError(f"{path} is a {kind} image, which changes the numbers of a mask: keep masks as PNG")
    pages = getattr(file, "n_frames", 1)
    if pages > 1:
        raise SourceError(f"{path} holds {pages} images: keep one mask in a file")
    _, raw, largest = _layout(file)
    if file.mode in ("LA", "RGB", "RGBA") and (";16" in raw or largest > 255):
        raise SourceError(f"{path} has 16 bits a channel: keep numbers as a grey image of 16 bits, colours in 8 bits")


def _is_lossy_webp(path: Path) -> bool:
    """Whether the pixels of a WebP are in a chunk VP8, and not in VP8L."""
    data, at = path.read_bytes(), 12
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8 ", b"VP8L"):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return data[at : at + 4] == b"VP8 "


def _layout(file: Any) -> tuple[str, str, int]:
    """Codec, raw mode, and largest value of an image file that is not yet loaded."""
    if not file.tile:
        return "", "", 0
    codec, args = file.tile[0][0], file.tile[0][3]
    words = args if isinstance(args, tuple) else (args,)
    raw = words[0] if words and isinstance(words[0], str) else ""
    largest = words[1] if codec.startswith("ppm") and len(words) > 1 and isinstance(words[1], int) else 0
    return codec, raw, largest


def _scale(file: Any) -> float:
    """The factor by which Pillow multiplied grey values of few bits, so that white is 255; it changes the numbers."""
    _, raw, largest = _layout(file)
    if file.mode == "L" and raw.startswith(("L;2", "L;4")):
        return 85.0 if raw.startswith("L;2") else 17.0
    if largest and file.mode in ("L", "I"):
        return (255 if file.mode == "L" else 65535) / largest
    return 1.0


def _values(path: Path, image: Any, scale: float) -> _Stored:
    """The values of an upright image, with 0 for transparent pixels."""
    mode, transparent = image.mode, image.info.get("transparency")
    if mode == "RGBX":
        image, mode = image.convert("RGB"), "RGB"
    eight, coloured = mode in ("1", "L", "LA", "P", "PA"), mode in ("RGB", "RGBA")
    if not (eight or coloured or mode in ("I", "F") or mode.startswith("I;16")):
        raise SourceError(f"{path} is an image of mode {mode}: keep masks as grey, palette or RGB images, such as PNG")
    pixels = np.asarray(image)
    alpha = pixels[..., -1] if mode in ("LA", "PA", "RGBA") else None
    if coloured:
        values = pixels[..., :3].astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    else:
        whole = pixels[..., 0] if alpha is not None else pixels
        if mode == "1":
            whole = whole.astype(np.uint8) * 255
        values = np.rint(whole / scale) if scale != 1 else whole
        plain = values.dtype.kind == "u" or (np.isfinite(values) & (values == np.rint(values)) & (values >= 0)).all()
        if not plain or values.max(initial=0) >= 2**31:
            raise SourceError(
                f"{path} has values that are no whole numbers from 0 to 2147483647: expected object numbers"
            )
        values = values.astype(np.int32)
    if transparent is not None and alpha is None:
        alpha = _opacity(values, transparent)
    if alpha is not None:
        values = _seen(path, values, alpha, 0xFFFFFF if coloured else 255 if eight else 1)
    palette = None
    if mode in ("P", "PA"):
        palette = np.zeros((256, 3), np.uint8)
        own = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(own)] = own
        black = own.any(1).argmin() if own[0].any() else 0
        if black and not own[black].any() and (values == black).any():
            raise SourceError(
                f"{path} shows number {black} in black and number 0 in a colour: which is the background is unclear; "
                "give the background the number 0"
            )
    return _Stored(values, coloured, eight, palette)


def _opacity(values: NDArray[np.int32], transparent: Any) -> NDArray[np.uint8]:
    """The opacity of each pixel if a file has it by value: of one value or colour, or of all in a palette."""
    if isinstance(transparent, bytes):
        table = np.full(256, 255, np.uint8)
        table[: len(transparent)] = np.frombuffer(transparent, np.uint8)
        return table[values]
    if isinstance(transparent, tuple):
        red, green, blue = transparent
        transparent = red << 16 | green << 8 | blue
    return np.where(values == transparent, 0, 255).astype(np.uint8)


def _seen(path: Path, values: NDArray[np.int32], alpha: NDArray[np.uint8], white: int) -> NDArray[np.int32]:
    """Values with 0 for transparent pixels. If all visible pixels are 0 (black), only the opacity shows the object:
    visible pixels are then `white`."""
    shown = alpha > 0
    seen = np.where(shown, values, 0).astype(np.int32)
    opacities = np.unique(seen[shown].astype(np.int64) * 256 + alpha[shown])
    if len(opacities) > len(np.unique(seen[shown])):
        raise SourceError(f"{path} is smoothed: its opacity changes inside an object; draw masks without smoothing")
    if not seen.any() and shown.any() and not shown.all():
        return np.where(shown, white, 0).astype(np.int32)
    return seen


def _refuse_pictures(path: Path, stored: _Stored) -> None:
    """Raise SourceError for images with smoothed edges, and for pictures: their values do not form areas.

    A value is thin if most of its pixels are in no 2 × 2 square of it. Smoothed edges are thin values between those of
    their neighbours, if there are more of them than of values with an area; if only 255 has an area, one is enough.
    """
    known = np.array([0, *_different(stored)])
    if len(known) <= 2:
        return
    places = np.searchsorted(known, stored.values)
    across, down = places[:, 1:] == places[:, :-1], places[1:] == places[:-1]
    square = across[1:] & across[:-1] & down[:, 1:]
    inside = np.zeros(places.shape, bool)
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            inside[rows, columns] |= square
    counts = np.bincount(places.ravel(), minlength=len(known))
    shares = np.bincount(places[inside], minlength=len(known)) / counts.clip(min=1)
    objects = known != 0
    thin = objects & (shares < 0.5)
    solid = objects & ~thin
    many = int(objects.sum())
    if many > MOST and thin.sum() > many / 2:
        raise SourceError(
            f"{path} has {many} values besides 0, more than {MOST} and few with an area of its own: is it a mask? "
            "Draw masks without smoothing, and keep them as PNG"
        )
    only = stored.eight and known[solid].tolist() == [255]
    if (thin.any() and only) or (solid.any() and thin.sum() > max(1, solid.sum())):
        edge = thin[places]
        if _between(stored, edge) > 0.5:
            raise SourceError(
                f"{path} is smoothed: {thin.sum()} values lie only along edges; draw masks without smoothing"
            )


def _between(stored: _Stored, edge: NDArray[np.bool_]) -> float:
    """The share of the pixels in `edge` whose value is between those around them in some channel and outside in
    none."""
    values = stored.values
    if stored.coloured:
        channels = [values >> 16, values >> 8 & 255, values & 255]
    elif stored.palette is not None:
        channels = [stored.palette[values.clip(max=len(stored.palette) - 1), c].astype(np.int32) for c in range(3)]
    else:
        channels = [values]
    between, beyond = np.zeros(edge.shape, bool), np.zeros(edge.shape, bool)
    for channel in channels:
        around = np.lib.stride_tricks.sliding_window_view(np.pad(channel, 1, mode="edge"), (3, 3))[edge]
        low, high, own = around.min((1, 2)), around.max((1, 2)), channel[edge]
        between[edge] |= (low < own) & (own < high)
        beyond[edge] |= (low < high) & ((own == low) | (own == high))
    return float((between & ~beyond)[edge].mean())
