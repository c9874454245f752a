"""Converts decoded pictures to upright RGB of 8 bits with square pixels, for watching and training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import cv2  # before PyAV, see video.py
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as Kind
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.sources import hdr

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Pixels = NDArray[np.uint8]
WIDEST = 8  # a pixel wider or narrower than this is a broken header
NUMBERS = range(64)  # kinds of side data, including future ones


@dataclass(frozen=True)
class Display:
    """Converts the pictures of one stream for display.

    name: of the file, for messages. aspect: the width of its pixels over their height. short_side: reduce pictures to
    this many pixels on their shorter side; None keeps their size.

    If pixels are not square, the width is scaled and the height kept. The display matrix is applied (all eight
    rotations and reflections). A rotation by other angles is about the centre, within the size and with black borders,
    as in FFmpeg. YUV is converted to RGB with the matrix (BT.601, 709, 2020 …) and the range in the file, BT.601 if it
    has none. HDR (PQ, HLG) is tone mapped; see `hdr`. Opacity is ignored.
    """

    name: str
    aspect: Fraction = Fraction(1)
    short_side: int | None = None
    _turns: dict[int, NDArray[np.float64] | None] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, stream: VideoStream, name: str, short_side: int | None = None) -> Display:
        """The Display of a stream. Raises SourceError if its header has an impossible aspect ratio."""
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if not 1 / WIDEST <= aspect <= WIDEST:
            raise SourceError(f"{name} has pixels that are {aspect} times as wide as high; its header is broken")
        return cls(name, aspect, short_side)

    def show(self, picture: VideoFrame) -> Pixels:
        """RGB [H, W, 3]. Raises SourceError for colours that cannot be converted."""
        width, height = self.size(picture.width, picture.height)
        bright = picture.color_trc in (hdr.PQ, hdr.HLG)
        how = None if (width, height) == (picture.width, picture.height) else "AREA"
        try:
            form = "rgb48le" if bright else "rgb24"
            pixels = picture.to_ndarray(format=form, width=width, height=height, interpolation=how)
        except OSError as error:
            raise SourceError(
                f"the colours of {self.name} cannot be converted to RGB (matrix number {picture.colorspace}); "
                f"convert it, for example with ffmpeg"
            ) from error
        if bright:
            pixels = hdr.tone_mapped(pixels.astype(np.uint16, copy=False), picture.color_trc, picture.color_primaries)
        return turned(pixels.astype(np.uint8, copy=False), self._turn(picture))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a stored picture is scaled to, before it is turned."""
        width = max(1, round(width * self.aspect))
        share = 1.0 if self.short_side is None else min(1.0, self.short_side / min(width, height))
        return (width, height) if share == 1 else (max(1, round(width * share)), max(1, round(height * share)))

    def as_stored(self, picture: VideoFrame) -> bool:
        """Whether a picture is shown as it is stored, except for its size."""
        return self.aspect == 1 and picture.color_trc not in (hdr.PQ, hdr.HLG) and self._turn(picture) is None

    def _turn(self, picture: VideoFrame) -> NDArray[np.float64] | None:
        """The display matrix, read once for each angle: reading it keeps a picture until the next collection."""
        angle = picture.rotation
        if angle not in self._turns:
            self._turns[angle] = display_matrix(picture)
        return self._turns[angle]


def display_matrix(picture: VideoFrame) -> NDArray[np.float64] | None:
    """The linear part of a picture's display matrix, [2, 2], columns of length 1; None for the identity.

    A point (x, y), x to the right and y down, is shown at matrix @ (x, y).
    """
    for data in _side_data(picture):
        if data.type is Kind.DISPLAYMATRIX:
            stored = np.frombuffer(bytes(data), np.int32).reshape(3, 3)[:2, :2].T.astype(np.float64)
            length = np.hypot(*stored)
            return None if not length.all() or np.allclose(stored / length, np.eye(2)) else stored / length
    return None


def _side_data(picture: VideoFrame) -> list[SideData]:
    """The side data of a picture; empty if it has a kind that PyAV does not know (EXIF)."""
    try:
        return _listed(picture)
    except ValueError:
        named: set[object] = {kind.value for kind in Kind}
        graph = Graph()
        form, tick = picture.format, Fraction(1, 1000)
        nodes = [graph.add_buffer(width=picture.width, height=picture.height, format=form, time_base=tick)]
        nodes += [graph.add("sidedata", f"mode=delete:type={number}") for number in NUMBERS if number not in named]
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        graph.push(picture)
        return _listed(cast("VideoFrame", graph.pull()))


def _listed(picture: VideoFrame) -> list[SideData]:
    return list(cast("Iterable[SideData]", picture.side_data))


def turned(pixels: Pixels, matrix: NDArray[np.float64] | None) -> Pixels:
    """A picture rotated and mirrored by the linear part of a display matrix; unchanged for None."""
    if matrix is None:
        return np.ascontiguousarray(pixels)
    if np.abs(matrix).min(axis=0).max() > np.sin(np.radians(1)):
        middle = (np.array(pixels.shape[1::-1]) - 1) / 2
        shift = middle - matrix @ middle
        return np.asarray(cv2.warpAffine(pixels, np.column_stack([matrix, shift]), pixels.shape[1::-1]), np.uint8)
    if abs(matrix[0, 1]) > abs(matrix[0, 0]):
        pixels, matrix = pixels.swapaxes(0, 1), matrix[:, ::-1]
    rows, columns = (slice(None, None, -1 if sign < 0 else 1) for sign in (matrix[1, 1], matrix[0, 0]))
    return np.ascontiguousarray(pixels[rows, columns])
