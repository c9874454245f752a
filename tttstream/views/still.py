"""A picture as a PNG file that appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.outputs import OutputFile, saving


class Still(OutputFile):
    """A picture [H, W, 3] uint8, written as PNG."""

    def __init__(self, path: Path, picture: NDArray[np.uint8]) -> None:
        super().__init__(path)
        with saving(self.path):
            Image.fromarray(picture).save(self.part, format="png")

    def _end(self) -> None:
        pass

    def _abandon(self) -> None:
        pass
