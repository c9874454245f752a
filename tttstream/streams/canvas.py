"""Canvas: the labels of a frame, from the output of a model for the whole frame or for parts of it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tttstream.models.masks import MaskOutput
from tttstream.streams.windows import Window

Labels = NDArray[np.uint8]
"""The object that each pixel belongs to, [H, W]: 0 the background, 1, 2 … the objects."""


class Canvas:
    """Labels [height, width] of a frame, and the confidence in each object; empty at first."""

    def __init__(self, height: int, width: int, objects: int) -> None:
        self._labels = np.zeros((height, width), np.uint8)
        self._best: Tensor | None = None  # log-odds of the drawn objects, if windows may overlap
        self._sure = np.zeros(objects, np.float32)

    def draw(self, output: MaskOutput, window: Window, alone: bool) -> None:
        """Add the output of a model for a window. alone: it is the only one of the frame. Where windows overlap, the
        larger log-odds count."""
        rows, columns = window.slices
        sides = rows.stop - rows.start, columns.stop - columns.start
        logits, objects = output.logits[0], np.array(window.objects, np.uint8)
        if output.fit is None:
            whole = F.interpolate(logits, sides, mode="bilinear", align_corners=False)[0]
            share, labels = whole.softmax(0).max(0)
            sums = torch.bincount(labels.flatten(), share.flatten().double(), minlength=len(whole))
            sizes = torch.bincount(labels.flatten(), minlength=len(whole)).clamp(min=1)
            self._labels[rows, columns] = labels.to(torch.uint8).numpy()
            self._sure[objects] = (sums / sizes)[1:].float().numpy()
            return
        above = logits[:, 1:] - logits[:, :1]  # above the background
        every = F.interpolate(above, sides, mode="bilinear", align_corners=False)[0]
        if len(objects) == 1:
            best, found = every[0], np.full(sides, objects[0] + 1, np.uint8)
        else:
            best, number = every.max(0)
            found = objects[number.numpy()] + np.uint8(1)
        if alone:
            here = best > 0
        else:
            if self._best is None:
                self._best = torch.zeros(self._labels.shape, dtype=best.dtype)
            here = best > self._best[rows, columns]
            self._best[rows, columns] = torch.maximum(best, self._best[rows, columns])
        np.copyto(self._labels[rows, columns], found, where=here.numpy())
        self._sure[objects] = output.fit[0, 0].sigmoid().float().numpy()

    def done(self, fits: bool) -> tuple[Labels, NDArray[np.float32]]:
        """(labels, confidences). fits: set the confidence of objects without a pixel to 0."""
        if not fits:
            return self._labels, self._sure
        there = np.bincount(self._labels.ravel(), minlength=len(self._sure) + 1)[1:] > 0
        return self._labels, np.where(there, self._sure, np.float32(0))
