"""What the tests of live share: a small model, sources that the tests hold in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.models import FrameModel
from tttstream.models.frame import ModelConfig
from tttstream.sources.base import Source
from tttstream.views.writer import VideoWriter


@pytest.fixture(scope="session")
def model() -> FrameModel:
    torch.manual_seed(0)
    return FrameModel(ModelConfig(size=32, patch=8, dim=32, depth=2, heads=2, surprise=1)).eval()


def picture(index: int, seed: int = 0, side: int = 32) -> np.ndarray:
    """A slow picture with a cut every 40 frames."""
    rng = np.random.default_rng([seed, index // 40])
    base = rng.integers(0, 200, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
    noise = np.random.default_rng([seed, 7, index]).integers(0, 8, (side, side, 3))
    return (base + noise).astype(np.uint8)


class Reel(Source):
    """Frames that follow from their number; it can seek. length: None for an endless one. broken: frames with a NaN.
    gate: when given, a frame is yielded only after it was set."""

    def __init__(
        self,
        seed: int = 0,
        length: int | None = None,
        *,
        broken: tuple[int, ...] = (),
        live: bool = False,
        fails_at: int | None = None,
        gate: threading.Event | None = None,
        sides: tuple[int, ...] = (32,),
    ) -> None:
        self.name, self.fps, self.seed, self.frames, self.live = f"reel {seed}", 25.0, seed, length, live
        self._broken, self._fails_at, self._gate, self._sides = broken, fails_at, gate, sides
        self._index = 0

    def __iter__(self) -> Iterator[Frame]:
        while self.frames is None or self._index < self.frames:
            index = self._index
            if self._gate is not None:
                self._gate.wait(20)
            if index == self._fails_at:
                raise SourceError("the cable is out")
            image: Any = picture(index, self.seed, self._sides[index // 10 % len(self._sides)])
            if index in self._broken:
                image = np.full((32, 32, 3), np.nan, np.float32)
            self._index += 1
            yield Frame(image, index, index / 25)

    def position(self) -> dict[str, Any]:
        return {"source": self.name, "index": self._index}

    def seek(self, position: dict[str, Any]) -> None:
        self._check(position)
        self._index = position["index"]


class Blinking(Reel):
    """Its upper left quarter goes black and white every seven frames."""

    def __iter__(self) -> Iterator[Frame]:
        for frame in super().__iter__():
            frame.image[:16, :16] = 255 * (frame.index // 7 % 2)
            yield frame


@pytest.fixture(scope="session")
def reel() -> type[Reel]:
    return Reel


@pytest.fixture(scope="session")
def blinking() -> type[Reel]:
    return Blinking


@pytest.fixture(scope="session")
def eventually() -> Callable[..., bool]:
    """eventually(what, timeout_s=20): ask until it is true or the time is over; the last answer."""

    def ask(what: Callable[[], bool], timeout_s: float = 20.0) -> bool:
        until = time.monotonic() + timeout_s
        while not what() and time.monotonic() < until:
            time.sleep(0.02)
        return what()

    return ask


@pytest.fixture(scope="session")
def recording() -> Callable[[Path, int], None]:
    """recording(path, frames): write a video of 64 pixels, 100 frames a second, with a cut every 60 frames."""

    def write(path: Path, frames: int) -> None:
        rng = np.random.default_rng(0)
        with VideoWriter(path, 100.0) as writer:
            for index in range(frames):
                scene = np.random.default_rng(index // 60).integers(0, 255, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
                writer.write((0.8 * scene + rng.integers(0, 40, (64, 64, 3))).astype(np.uint8), index / 100)

    return write
