"""Shared by the tests of data: tiny videos whose grey level is the number of the frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

STEP = 5  # grey levels from one frame to the next

Make = Callable[..., Path]


def grey(number: int, side: int) -> NDArray[np.uint8]:
    """Frame `number`: one grey, darker in its left upper quarter, so that turning and mirroring show."""
    picture = np.full((side, side, 3), 20 + STEP * (number % 45), np.uint8)
    picture[: side // 2, : side // 2] = 8
    return picture


@pytest.fixture
def numbers() -> Callable[[Tensor], list[int]]:
    """numbers(frames [..., 3, H, W]): the numbers of frames of a movie, from their lower right corners."""

    def tell(frames: Tensor) -> list[int]:
        corner = frames[..., -(frames.shape[-2] // 4) :, -(frames.shape[-1] // 4) :].float().mean((-3, -2, -1))
        return ((corner - 20) / STEP).round().long().flatten().tolist()

    return tell


@pytest.fixture
def movie(tmp_path: Path) -> Make:
    """movie(name, frames, side=32): a video with this number of frames."""

    def make(name: str, frames: int = 12, side: int = 32) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(path.suffix, "libx264")
        with av.open(str(path), "w") as container:
            quick = {"preset": "ultrafast"} if codec == "libx264" else {}
            stream = container.add_stream(codec, rate=25, options=quick)
            stream.codec_context.thread_count = 1
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = 4_000_000
            for number in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(number, side), format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def folder(movie: Make, tmp_path: Path) -> Path:
    """A folder of five videos of 7, 9, 11, 13 and 15 frames."""
    for number, frames in enumerate((7, 9, 11, 13, 15)):
        movie(f"videos/{number}.mp4", frames)
    return tmp_path / "videos"
