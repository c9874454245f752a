"""What the tests of sources share: small videos made on the spot, and the resident memory of the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray


def picture(index: int, side: int = 64) -> NDArray[np.uint8]:
    """A drifting pattern: every frame differs from every other."""
    y, x = np.mgrid[:side, :side]
    planes = [np.sin((x + 3 * index) / 9), np.cos((y - 2 * index) / 7), np.sin((x + y + index) / 11)]
    return (127 + 120 * np.stack(planes, axis=-1)).astype(np.uint8)


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """make_video(name, times_ms, codec=..., side=..., …): a video with frames at these times in milliseconds."""

    def make(
        name: str,
        times: Sequence[int],
        codec: str = "libx264",
        side: int = 64,
        gop: int = 12,
        pixels: str = "yuv420p",
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = pixels
            stream.codec_context.gop_size = gop
            stream.codec_context.time_base = Fraction(1, 1000) if codec == "libx264" else Fraction(1, 25)
            for index, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(picture(index, side), format="rgb24")
                frame.pts = time if codec == "libx264" else index
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def resident_mb() -> Callable[[], float]:
    """Resident memory of this process in MB."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc, which this system has not")
    return lambda: int(statm.read_text().split()[1]) * 4096 / 1e6
