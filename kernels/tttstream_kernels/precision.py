"""The type that the ops compute in: that of the state, whatever autocast says."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(device: str) -> AbstractContextManager[None]:
    """Autocast off; entering and leaving it costs as much as two small ops, so nothing if it is off already. Tensors of
    the device "meta" have no values, and no autocast."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def cast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in a type; those that have it as they are."""
    return [x if x.dtype == dtype else x.to(dtype) for x in tensors]
