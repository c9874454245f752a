"""What all tests share: one thread for torch, repeatable random examples, and the folder of real videos."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.kernels.interpreter import quicken

if TYPE_CHECKING:
    from tttstream.models.masks import MixtureModel, TargetModel

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

NEEDS = {
    "av": ["cli", "sources", "train", "views/test_writer.py", "views/test_window.py"],
    "gymnasium": ["agents", "cli", "sources"],
    "jsonargparse": ["train"],
    "lightning": ["train"],
}
"""Tests that cannot even be read without a package, as on a machine that is only lent for its GPU."""
ABSENT = [name for name in NEEDS if find_spec(name) is None]
collect_ignore = sorted({path for name in ABSENT for path in NEEDS[name]})


def pytest_report_header() -> list[str]:
    return [f"without {name}: no tests of {', '.join(NEEDS[name])}" for name in ABSENT]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # two workers share the machine; also makes sums repeatable
    os.environ["OMP_NUM_THREADS"] = "1"  # the same in the processes that tests start
    # Autograd counts devices once. Later a FakeTensorMode may have added one, and then no forked rank can use autograd.
    torch.ones((), requires_grad=True).backward()
    multiprocessing.get_start_method()  # from now on Python's default: TorchRL sets a slower one when it is imported
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, after this line


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # a collection need not look at all that was imported
    gc.set_threshold(20_000, 10, 10)  # by default one begins after every 700 new objects
    quicken()


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real videos beside the repository; a test that uses it is skipped if it is absent."""
    folder = ROOT.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/videos is absent")
    return folder


@pytest.fixture
def make_mask_model() -> Callable[..., MixtureModel]:
    """Makes a small model, every parameter moved a little; options are those of MixtureConfig."""

    from tttstream.models.masks import MixtureConfig, MixtureModel

    small = MixtureConfig(width=16, heads=2, head_width=8, placed=1, contour=8, slots=40, size=32)

    def make(dtype: torch.dtype = torch.float64, **options: Any) -> MixtureModel:
        torch.manual_seed(0)
        model = MixtureModel(replace(small, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.to(dtype).eval()

    return make


@pytest.fixture
def make_target_model() -> Callable[..., TargetModel]:
    """Makes a small model with an untrained encoder, every parameter moved a little; options are those of
    TargetConfig."""

    from tttstream.models.masks import TargetConfig, TargetModel

    small = TargetConfig(key=8, hidden=12, channels=8, inside=12, outside=20, size=32)

    def make(dtype: torch.dtype = torch.float64, **options: Any) -> TargetModel:
        torch.manual_seed(0)
        model = TargetModel(replace(small, **options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("encoder."):
                    parameter.add_(0.05 * torch.randn_like(parameter))
            model.spread.fill_(0.05)
        return model.to(dtype).eval()

    return make


@pytest.fixture
def mask_clip() -> Callable[..., tuple[Tensor, Tensor]]:
    """Makes frames [B, T, 3, 32, 48] and masks [B, T, O, 32, 48] of bright disks that move over noise."""

    def make(rows: int = 2, count: int = 5, objects: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
        frames = 0.3 * torch.rand(rows, count, 3, 32, 48, generator=generator, dtype=torch.float64)
        masks = torch.zeros(rows, count, objects, 32, 48, dtype=torch.float64)
        for row in range(rows):
            for number in range(objects):
                at = 10 + torch.rand(2, generator=generator) * torch.tensor([12.0, 20.0])
                colour = 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator, dtype=torch.float64)
                for t in range(count):
                    inside = (y - at[0] - t) ** 2 + (x - at[1] - 2 * t * (1 - 2 * number)) ** 2 < 36
                    inside &= ~masks[row, t].any(0).bool()
                    masks[row, t, number] = inside
                    frames[row, t] = torch.where(inside, colour, frames[row, t])
        return frames, masks

    return make
