"""One stream over several processes: outputs, states and gradients are those of one process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from tttstream import memory
from tttstream.errors import ConfigError
from tttstream.memory.matrix import Additive
from tttstream.models.frame import FrameModel, ModelConfig
from tttstream.ranks import Line, Relay
from tttstream.ranks.scan import moved
from tttstream.testing import Case, cases
from tttstream_kernels.testing import TOLERANCE

HERE = Path(__file__).parent
LINEAR = ("additive", "delta", "kernel_delta", "gated_delta", "mamba2", "mesa", "rwkv7", "ttt", "ttt_nested")
Found = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The results of `across.py` for two and four processes."""
    path = tmp_path_factory.mktemp("ranks") / "found.json"
    words = [sys.executable, str(HERE / "across.py"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-3000:]
    return {int(size): told for size, told in json.loads(path.read_text()).items()}


@pytest.mark.parametrize("case", cases(), ids=str)
def test_several_processes_are_one(found: Found, case: Case) -> None:
    """Over two and four processes, in parts that differ in length, with resets, lengths, and rows in pieces."""
    for size, names in ((2, ["plain"]), (4, ["ragged", "pieces"])):
        for name in names:
            if name == "pieces" and not case.memory().bounded:
                continue
            told = found[size][f"{case}/{name}"]
            assert max(told["whole"].values()) < TOLERANCE[torch.float64], (size, name, told)
            assert told.get("parts", True), f"{size} processes, {name}: not bit for bit what calls of the parts give"


@pytest.mark.parametrize("case", [case for case in cases() if case.name in LINEAR], ids=str)
def test_the_scan_of_linear_states(found: Found, case: Case) -> None:
    for size, name in ((2, "scan"), (4, "scan-resets")):
        told = found[size][f"{case}/{name}"]["whole"]
        assert max(told.values()) < TOLERANCE[torch.float64], (size, told)


def test_which_memories_scan(found: Found) -> None:
    scanning = {name.split("/")[0].split("-")[0] for name in found[4] if name.endswith("/scan-resets")}
    assert scanning == set(LINEAR)


def test_a_reset_removes_values_that_are_not_finite() -> None:
    """A row that was reset does not depend on its state any more, whatever it holds; a row beside it does."""
    state, more = torch.full((2, 1, 3, 3), torch.nan), torch.ones(2, 1, 3, 3)
    for columns in (1, 3):
        came = moved(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 3, columns), state, more)
        assert torch.equal(came[0], more[0])
        assert came[1].isnan().all()


DIES = """
import os, sys, time
from datetime import timedelta
import torch
from torch import distributed as dist
from tttstream import memory
from tttstream.errors import RankError
from tttstream.ranks import Line, Relay
from tttstream.ranks.scan import moved

rank, folder, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=3)
)
layer = memory.build("ttt_linear", dim=16, heads=2)
with Relay(layer, Line()):
    try:
        layer(torch.randn(1, 4, 16))
        if rank == 0:
            if how == "dies":  # perhaps before its state has left: then the first call of rank 1 fails
                os._exit(9)
            time.sleep(6)
            os._exit(0)
        layer(torch.randn(1, 4, 16))
    except RankError as error:
        print(error, flush=True)
        os._exit(5)
"""


@pytest.mark.parametrize("how", [pytest.param("dies", marks=pytest.mark.soak), "hangs"])
def test_a_rank_that_has_ended(tmp_path: Path, how: str) -> None:
    """The rank that waits for it raises an error, at once or after the timeout of its process group."""
    begun = time.monotonic()
    words = [sys.executable, "-c", DIES]
    ranks = [
        subprocess.Popen([*words, str(rank), str(tmp_path), how], stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=100)[0] for rank in ranks]
    assert ranks[1].returncode == 5
    assert said[1].startswith("rank 1 of 2 in time does not reach rank 0, which has ended or waits too long: ")
    assert said[1].count("\n") == 1
    assert time.monotonic() - begun < 90


@pytest.fixture
def line(tmp_path: Path) -> Any:
    """A line of one rank."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield Line()
    dist.destroy_process_group()


def test_one_rank_is_no_different(line: Line) -> None:
    layer, x = memory.build("delta", dim=16, heads=2), torch.randn(2, 5, 16)
    with Relay(layer, line, pieces=2):
        y, state = layer(x)
    expected, after = layer(x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state.matrix, after.matrix)
    assert torch.equal(line.from_last(state).matrix, state.matrix)
    assert line.first
    assert line.last


def test_states_that_cannot_be_passed_on(line: Line) -> None:
    moving = FrameModel(ModelConfig(size=16, patch=8, dim=16, depth=1, heads=2, motion=2))
    with pytest.raises(ConfigError, match="a state beside that of its memories"):
        Relay(moving, line)
    with pytest.raises(ConfigError, match="take pieces=1"):
        Relay(memory.build("attention", dim=16, heads=2), line, pieces=2)
    with pytest.raises(ConfigError, match="pieces must be at least 1"):
        Relay(Additive(16), line, pieces=0)


def test_a_line_without_processes() -> None:
    with pytest.raises(ConfigError, match="init_process_group"):
        Line()
