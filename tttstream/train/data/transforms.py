"""Applies transforms of torchvision to the frames of a clip, with the same random choices for all frames of a visit."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from tttstream.errors import DataError
from tttstream.io.mask_files import VOID
from tttstream.train.data.clips import Shot


def fitted(size: int) -> nn.Module:
    """Bring any picture to size × size by its middle square."""
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def transformed(shot: Shot, transform: nn.Module, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Frames uint8 [n, 3, size, size] and masks int64 [n, size, size] after a transform with random choices from the
    seed; the numbers of objects are unchanged. Raises DataError if the frames have another size.
    """
    frames = tv_tensors.Video(torch.from_numpy(shot.frames).permute(0, 3, 1, 2))
    codes, numbers = (None, None) if shot.masks is None else _coded(shot.masks)
    masks = None if codes is None else tv_tensors.Mask(torch.from_numpy(codes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            out = transform(frames) if masks is None else transform(frames, masks)
        except (RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"transform: {type(transform).__name__} takes no uint8 frames: {error}") from error
    frames, masks = (out, None) if masks is None else out
    if tuple(frames.shape[1:]) != (3, size, size) or frames.dtype != torch.uint8:
        came = f"{frames.dtype} {list(frames.shape[1:])}"
        raise DataError(
            f"transform: expected uint8 frames [3, {size}, {size}] to come out, got {came}; end it with a crop"
        )
    if masks is None:
        return frames.as_subclass(Tensor), None
    found = masks.as_subclass(Tensor).long()
    return frames.as_subclass(Tensor), found if numbers is None else torch.from_numpy(numbers)[found]


def _coded(masks: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Masks with codes that transforms keep exactly, and the number of each code (None: the code itself). 0 stays 0,
    because transforms pad with it; torchvision computes in float32, which is exact up to 2 to the power of 24."""
    if masks.dtype == np.uint8:
        return masks, None
    masks = masks.astype(np.int64)
    known = np.unique(masks) if masks.max() >= 1 << 16 else np.flatnonzero(np.bincount((masks - VOID).ravel())) + VOID
    numbers = np.array([0, *known[known != 0]], np.int64)
    order = np.argsort(numbers)
    kind = np.uint8 if len(numbers) <= 256 else np.int32
    return order.astype(kind)[np.searchsorted(numbers, masks, sorter=order)], numbers
