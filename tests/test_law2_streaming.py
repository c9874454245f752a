"""Law 2: a stream gives the same outputs, final state and gradients in one call and in several calls."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttstream.testing import Case, assert_close, cases, gradients, unroll

ROWS, UNITS = 3, 13

every_memory = pytest.mark.parametrize("case", cases(), ids=str)
cuts = st.sets(st.integers(1, UNITS - 1)).map(lambda at: [b - a for a, b in pairwise([0, *sorted(at), UNITS])])
resets = st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, UNITS - 1)), max_size=5)
ragged = st.lists(st.integers(0, UNITS), min_size=ROWS, max_size=ROWS)


def run_both(
    case: Case,
    splits: list[int],
    at: set[tuple[int, int]],
    lengths: list[int] | None,
    age: list[int],
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> tuple[list[object], list[object]]:
    """Outputs, final state and gradients of one call and of pieces, from a state whose rows are `age` units old."""
    memory = case.memory(dtype, seed)
    before = case.stream(ROWS, UNITS, dtype, seed + 1).requires_grad_()
    x = case.stream(ROWS, UNITS, dtype, seed + 2).requires_grad_()
    counted = None if lengths is None else torch.tensor(lengths) * case.unit
    reset = case.resets(ROWS, UNITS, at) if at else None
    results: list[list[object]] = []
    for sizes in ([UNITS], splits):
        _, state = memory(before, lengths=torch.tensor(age) * case.unit)
        result = unroll(memory, x, [size * case.unit for size in sizes], state, reset, counted)
        results.append([*result, gradients(memory, result, [before, x])])
    return results[0], results[1]


@every_memory
@settings(max_examples=12)
@given(splits=cuts, at=resets, lengths=st.none() | ragged, age=ragged, seed=st.integers(0, 999))
def test_any_partition(
    case: Case, splits: list[int], at: set[tuple[int, int]], lengths: list[int] | None, age: list[int], seed: int
) -> None:
    whole, pieces = run_both(case, splits, at, lengths, age, seed=seed)
    assert_close(pieces, whole)


@every_memory
@pytest.mark.parametrize("at", [set(), {(0, 0), (1, 4), (2, 12), (1, 9)}], ids=["plain", "resets"])
def test_one_at_a_time(case: Case, at: set[tuple[int, int]]) -> None:
    whole, pieces = run_both(case, [1] * UNITS, at, None, age=[0, 3, 7])
    assert_close(pieces, whole)


@every_memory
def test_one_at_a_time_in_float32(case: Case) -> None:
    whole, pieces = run_both(case, [1] * UNITS, {(1, 4)}, None, age=[0, 3, 7], dtype=torch.float32)
    assert_close(pieces, whole)


@every_memory
def test_earlier_tokens_matter(case: Case) -> None:
    """The other tests would pass for a memory that remembers nothing."""
    memory = case.memory()
    x = case.stream(1, UNITS)
    x.requires_grad_()
    y, state = memory(x)
    (reach,) = torch.autograd.grad(y[:, -1].square().sum(), x, retain_graph=True)
    assert reach[:, -case.unit - 3].abs().max() > 1e-6 * reach.abs().max()
    kept = [
        torch.autograd.grad(leaf.sum(), x, retain_graph=True)[0] for _, leaf in state.leaves() if leaf.requires_grad
    ]
    assert max(float(grad[:, -case.unit - 3].abs().max()) for grad in kept) > 0
