"""A picture as a PNG file, which is complete or absent."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tttstream.io.outputs import OutputFile


class Still(OutputFile):
    """A picture [H, W, 3] uint8, written as PNG. claim: see OutputFile."""

    def __init__(self, path: Path, picture: NDArray[np.uint8], *, claim: bool = True) -> None:
        self._picture = picture
        super().__init__(path, claim=claim)

    def _begin(self) -> None:
        Image.fromarray(self._picture).save(self.part, format="png")
