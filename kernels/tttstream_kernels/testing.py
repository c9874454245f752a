"""Shared by tests of the ops: the tolerance table, and memory of NaN around and under what a kernel is given."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""The one tolerance table of all backends: largest error relative to the largest value, by compute type."""


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever torch allocates here holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def framed(x: Tensor) -> Tensor:
    """The same numbers as a view into a larger tensor of NaN: no two dimensions lie side by side."""
    buffer = x.new_full([size + 4 for size in x.shape], torch.nan)
    view = buffer[tuple(slice(2, -2) for _ in x.shape)]
    view.copy_(x)
    return view
