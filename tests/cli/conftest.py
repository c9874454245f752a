"""Shared by the tests of commands: short videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cli.watching import CUT_AT
from tttstream.views.writer import VideoWriter


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A video of some frames: noise patterns, another one after CUT_AT frames."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str, frames: int = 40) -> Path:
        path = folder / f"{name}.mp4"
        if not path.exists():
            rng = np.random.default_rng(len(name))
            patterns = [cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60)) for _ in range(2)]
            with VideoWriter(path, 20) as writer:
                for index in range(frames):
                    writer.write(np.asarray(patterns[index >= CUT_AT], dtype=np.uint8))
        return path

    return make
