"""A small map with drawn weights, and frames with poses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tttstream import MapStream
from tttstream.map import MapConfig, MapModel

SMALL = MapConfig(size=32, patch=8, codes=6, features=16, where=12, what=8, heads=2)


@pytest.fixture
def small() -> MapModel:
    """A map of 32 pixels with 16 patches, in float64."""
    torch.manual_seed(0)
    return MapModel(SMALL).double().eval()


@pytest.fixture
def fresh() -> Callable[..., MapStream]:
    """Makes a stream of a small map whose weights follow from a seed."""

    def make(seed: int = 0) -> MapStream:
        torch.manual_seed(seed)
        return MapStream(MapModel(SMALL))

    return make
