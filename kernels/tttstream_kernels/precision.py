"""The type that the ops compute in: that of the state, whatever autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(device: str) -> AbstractContextManager[None]:
    """Returns a context in which autocast is off. Such a context costs as much as two small ops, so the result does
    nothing if autocast is already off, or on the device "meta", which has no autocast."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in a type; those that have it as they are."""
    return [x if x.dtype == dtype else x.to(dtype) for x in tensors]
