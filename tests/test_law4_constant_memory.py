"""Law 4: a bounded state's size does not depend on how much was seen, and the process does not grow with the stream."""

import gc

import psutil
import pytest
import torch

from tttstream.testing import Case, cases

every_memory = pytest.mark.parametrize("case", cases(), ids=str)


def resident_mb() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss) / 2**20


def grown_mb(case: Case, tokens: int, warmup: int) -> float:
    """The growth of the process over a stream, unit by unit; the graph is cut after each."""
    memory = case.memory(torch.float32)
    x = case.stream(1, 64, torch.float32)
    state = None
    start = 0.0
    for i in range(tokens // case.unit):
        if i == warmup // case.unit:
            gc.collect()
            start = resident_mb()
        at = i % 64 * case.unit
        _, state = memory(x[:, at : at + case.unit], state)
        state = state.detach()
    gc.collect()
    return resident_mb() - start


@every_memory
def test_state_size(case: Case) -> None:
    memory = case.memory()
    state = fresh = memory.init_state(2)
    for units in (1, 2, 7, 40):
        _, state = memory(case.stream(2, units), state)
        stored = sum(leaf.untyped_storage().nbytes() for _, leaf in state.detach().leaves())
        if memory.bounded:
            assert state.nbytes == fresh.nbytes
            assert stored <= 2 * fresh.nbytes + 1024, "the state holds on to something larger"
        else:
            assert state.nbytes > fresh.nbytes


@every_memory
def test_process_is_flat(case: Case) -> None:
    if not case.memory().bounded:
        pytest.skip("a growing cache grows")
    assert grown_mb(case, 1000, warmup=250) < 1


@every_memory
@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_process_is_flat_over_100_000_units(case: Case) -> None:
    if not case.memory().bounded:
        pytest.skip("a growing cache grows")
    assert grown_mb(case, 100_000 * case.unit, warmup=1000 * case.unit) < 20
