"""What is done to the frames of a clip: transforms of torchvision, drawn once a visit and alike for all its frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from tttstream.errors import DataError
from tttstream.train.data.clips import Shot


def fitted(size: int) -> nn.Module:
    """Bring any picture to size × size by its middle square."""
    return v2.Compose([v2.Resize(size, antialias=True), v2.CenterCrop(size)])


def transformed(shot: Shot, transform: nn.Module, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """Frames uint8 [n, 3, size, size] and masks int64 [n, size, size] after a transform whose choices follow from
    the seed. Raises DataError where it gives frames of another size.
    """
    frames = tv_tensors.Video(torch.from_numpy(shot.frames).permute(0, 3, 1, 2))
    masks = None if shot.masks is None else tv_tensors.Mask(torch.from_numpy(shot.masks))
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
    return frames.as_subclass(Tensor), None if masks is None else masks.as_subclass(Tensor).long()
