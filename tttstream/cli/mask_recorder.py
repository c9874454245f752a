"""The output of `tttstream track` for one source: a folder of masks, the overlay, and a line for each frame."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.cli.recorder import Record, number
from tttstream.frames import Frame
from tttstream.io.outputs import OutputFile, saving
from tttstream.sources.base import Source
from tttstream.streams.masks import MaskResult
from tttstream.views.masks import LARGEST, MaskOverlay, distinct, mask_image
from tttstream.views.overlay import Picture


class MaskFolder(OutputFile):
    """Writes masks as images into a folder. The folder appears when it is complete and replaces an earlier one.

    PNG, or TIFF if a number has more than 16 bits. numbers: of all objects. colours: of the numbers, [256, 3].
    """

    def __init__(self, path: Path, numbers: list[int], colours: NDArray[np.uint8]) -> None:
        self._colours, self._largest = colours, max(numbers)
        self._kind = "png" if self._largest < 1 << 16 else "tiff"
        super().__init__(path)

    def _begin(self) -> None:
        self._remove()
        self.part.mkdir()

    def write(self, name: str, mask: NDArray[np.integer[Any]]) -> None:
        """Write the mask of a frame, the numbers of its objects [H, W], under this name."""
        with saving(self.path):
            image = mask_image(mask, self._colours, self._largest)
            image.save(self.part / f"{name}.{self._kind}", format=self._kind)

    def _place(self) -> None:
        if self.path.is_dir():
            shutil.rmtree(self.path)
        super()._place()

    def _remove(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)


class MaskRecorder(Record):
    """Writes the frames and masks of one source to its folder; without a folder it only counts.

    numbers: of the objects in the files. colours: of the numbers, [256, 3]. video: write overlay.mp4.
    """

    def __init__(
        self,
        folder: Path | None,
        source: Source,
        numbers: list[int],
        colours: NDArray[np.uint8],
        *,
        video: bool,
    ) -> None:
        super().__init__(folder, source, video=video)
        own = [colours[n] if n <= LARGEST else colours[place] for place, n in enumerate(numbers, 1)]
        self.overlay = MaskOverlay(distinct(np.array([(0, 0, 0), *own], np.uint8)))
        self._numbers, self._colours = np.array([0, *numbers], np.int32), colours
        self._masks: MaskFolder | None = None

    def open(self, *, endless: bool) -> None:
        super().open(endless=endless)
        if self._folder is not None:
            path = self._folder.path / "masks"
            self._masks = self._own(MaskFolder(path, self._numbers[1:].tolist(), self._colours))

    def add(self, frame: Frame, result: MaskResult) -> Picture:
        """Record one frame and its result. Returns the drawn picture."""
        self._count(result.latency_ms)
        picture = self.overlay.draw(frame.image, result.mask)
        if self._masks is not None:
            objects = [self._object(place, result) for place in range(1, len(self._numbers))]
            self._write(frame, result, picture, objects=objects)
            self._masks.write(f"{result.index:05d}", self._numbers[result.mask])
        return picture

    def _object(self, place: int, result: MaskResult) -> dict[str, Any]:
        rows, columns = np.nonzero(result.mask == place)
        box = [int(v) for v in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)] if len(rows) else None
        return {
            "object": int(self._numbers[place]),
            "share": number(len(rows) / result.mask.size),
            "box": box,  # left, top, right, bottom, the last two exclusive
            "confidence": number(float(result.confidence[place - 1])),
        }
