"""Writes pictures to an MP4 file one at a time, with their presentation times."""

import math
import os
from contextlib import suppress
from fractions import Fraction
from typing import cast

import cv2  # noqa: F401 - before PyAV, see sources/video.py

import av  # isort: skip
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ConfigError, OutputError, ShapeError
from tttstream.io.outputs import OutputFile, saving

TICKS = 60_000  # a second; MPEG-4 allows at most 65,535
PACES = (1, 3600 * TICKS)  # limits of the ticks between frames for the nominal rate, because files may contain any rate


class VideoWriter(OutputFile):
    """An MP4 (H.264 if PyAV has an encoder for it, else MPEG-4), yuv420p, one frame for each written picture.

    fps: nominal rate, and the rate of pictures without a time, in whole ticks. endless: write fragments, so that the
    file's index takes no memory while it grows (80 bytes per frame otherwise), and an incomplete file can be played.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float = 25.0, *, endless: bool = False) -> None:
        if not 0 < fps < math.inf:
            raise ConfigError(f"expected a frame rate above 0, got {fps}")
        self.frames = 0
        self._pace = round(min(max(TICKS / fps, PACES[0]), PACES[1]))
        self._first_s = 0.0
        self._last = -1
        self._size: tuple[int, int] | None = None
        self._options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if endless else {}
        super().__init__(path)

    def _begin(self) -> None:
        self.part.touch()
        # absolute: FFmpeg reads text before a colon at the start of a path as a protocol
        self._container = av.open(os.path.abspath(self.part), "w", format="mp4", options=self._options)

    def _open_stream(self, height: int, width: int) -> None:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = cast("av.VideoStream", self._container.add_stream(codec, rate=Fraction(TICKS, self._pace)))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.thread_count = 1
        if codec == "libx264":
            context.options = {"preset": "ultrafast", "crf": "26", "rc-lookahead": "0"}
        else:
            context.options = {"flags": "+qscale", "global_quality": str(4 * 118)}  # quantiser 4, in FFmpeg's unit
        self._size = height, width

    def write(self, picture: NDArray[np.uint8], time_s: float | None = None) -> None:
        """Append a picture [H, W, 3] RGB, always of the first one's size (an odd last row or column is left out).

        time_s: its presentation time; times that do not increase are replaced with the nominal rate.
        """
        height, width = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        with saving(self.path):
            if self._size is None:
                self._open_stream(height, width)
                self._first_s = time_s or 0.0
            if (height, width) != self._size:
                raise ShapeError(f"expected pictures of {self._size} pixels like the first, got {(height, width)}")
            tick = self._last + self._pace if time_s is None else round((time_s - self._first_s) * TICKS)
            if tick <= self._last:
                tick = self._last + self._pace
            self._last = tick
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, TICKS)
            self._mux(frame)
        self.frames += 1

    def _mux(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise OutputError(f"cannot write {self.path}: encoder error: {error}") from error

    def _end(self) -> None:
        if self._size is None:
            raise OutputError(f"cannot write {self.path}: there was no picture")
        self._mux(None)
        self._container.close()

    def _abandon(self) -> None:
        with suppress(av.FFmpegError, OSError):  # a broken file: there is nothing to save
            self._container.close()
