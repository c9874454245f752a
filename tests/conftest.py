"""What all tests share: one thread for torch, repeatable random examples, and the folder of real videos."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("repeatable")

NEEDS = {
    "av": ["cli", "sources", "train", "views/test_video.py", "views/test_window.py"],
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
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is first imported, which comes later


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real videos beside the repository; a test that asks for it is skipped where it is absent."""
    folder = ROOT.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/videos is absent")
    return folder
