"""Law 3: a row that is reset, padded, or processed beside other rows gives the same results as the row alone."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tttstream.testing import Case, assert_close, cases, gradients, unroll

ROWS, UNITS = 3, 11

every_memory = pytest.mark.parametrize("case", cases(), ids=str)
resets = st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, UNITS - 1)), max_size=8)
ragged = st.lists(st.integers(0, UNITS), min_size=ROWS, max_size=ROWS)


@every_memory
@settings(max_examples=12)
@given(at=resets, lengths=ragged, age=ragged, seed=st.integers(0, 999))
def test_every_segment_equals_itself_alone(
    case: Case, at: set[tuple[int, int]], lengths: list[int], age: list[int], seed: int
) -> None:
    memory = case.memory(seed=seed)
    _, old = memory(case.stream(ROWS, UNITS, seed=seed + 1), lengths=torch.tensor(age) * case.unit)
    x = case.stream(ROWS, UNITS, seed=seed + 2)
    y, state = memory(x, old, case.resets(ROWS, UNITS, at), torch.tensor(lengths) * case.unit)
    for row in range(ROWS):
        counted = lengths[row]
        bounds = sorted({0, counted} | {unit for r, unit in at if r == row and unit < counted})
        alone = old[row]
        for start, end in pairwise(bounds):
            piece = slice(start * case.unit, end * case.unit)
            given_state = None if (row, start) in at else alone
            expected, alone = memory(x[row : row + 1, piece], given_state)
            assert_close(y[row : row + 1, piece], expected)
        assert_close(state[row], alone)
        assert y[row, counted * case.unit :].eq(0).all()


@every_memory
def test_an_idle_row_passes_its_state_on(case: Case) -> None:
    memory = case.memory()
    _, old = memory(case.stream(2, 5))
    x = case.stream(2, 4)
    y, state = memory(x, old, case.resets(2, 4, [(0, 0), (0, 2)]), torch.tensor([0, 4 * case.unit]))
    assert y[0].eq(0).all()
    assert_close(state[0], old[0], tolerance=0)
    _, state = memory(x, old, lengths=torch.tensor([0, 0]))
    assert_close(state, old, tolerance=0)


@every_memory
def test_no_gradient_crosses_a_reset(case: Case) -> None:
    memory = case.memory()
    old = memory(case.stream(2, 5))[1].detach()
    old = old.map(lambda leaf: leaf.requires_grad_())
    x = case.stream(2, 8).requires_grad_()
    y, state = memory(x, old, case.resets(2, 8, [(0, 4), (1, 4)]))
    inputs = [x, *(leaf for _, leaf in old.leaves())]
    reach_x, *reach_state = gradients(memory, [y[:, 4 * case.unit :], state], inputs)[: len(inputs)]
    assert reach_x[:, : 4 * case.unit].eq(0).all()
    assert all(reach.eq(0).all() for reach in reach_state)
    assert reach_x[:, 4 * case.unit :].ne(0).any()


@every_memory
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("splits", [[9], [1] * 9], ids=["one call", "step by step"])
def test_a_value_that_is_not_finite_does_not_spread(case: Case, bad: float, splits: list[int]) -> None:
    """In row 1, unit 3; row 1 is reset at unit 6, row 0 at unit 4; row 2 never is."""
    memory, unit = case.memory(), case.unit
    reset = case.resets(3, 9, [(1, 6), (0, 4)])
    sizes = [size * unit for size in splits]
    _, old = memory(case.stream(3, 5), lengths=torch.tensor([0, 3, 5]) * unit)
    clean = case.stream(3, 9)
    dirty = clean.clone()
    dirty[1, 3 * unit, 0] = bad
    expected, expected_state = unroll(memory, clean, sizes, old, reset)
    y, state = unroll(memory, dirty, sizes, old, reset)
    assert not math.isnan(bad) or y[1, 3 * unit].isnan().any(), "the token itself must show it"
    assert_close(y[[0, 2]], expected[[0, 2]])
    assert_close(y[1, : 3 * unit], expected[1, : 3 * unit])
    assert_close(y[1, 6 * unit :], expected[1, 6 * unit :])
    assert_close(state, expected_state)


@every_memory
def test_a_reset_removes_a_nan_from_the_state(case: Case) -> None:
    memory, unit = case.memory(), case.unit
    _, old = memory(case.stream(2, 5))
    x = case.stream(2, 6)
    reset = case.resets(2, 6, [(0, 0), (1, 3)])
    expected, expected_state = memory(x, old, reset)
    y, state = memory(x, old.map(lambda leaf: torch.full_like(leaf, math.nan)), reset)
    assert_close(y[0], expected[0])
    assert_close(y[1, 3 * unit :], expected[1, 3 * unit :])
    assert_close(state, expected_state)


@every_memory
def test_padding_has_no_effect(case: Case) -> None:
    """NaN after a row's length: outputs, state and gradients are those with zeros there."""
    memory = case.memory()
    lengths = torch.tensor([4, 0, 7]) * case.unit
    padding = torch.arange(7 * case.unit) >= lengths[:, None]
    results = []
    for fill in (0.0, math.nan):
        x = case.stream(3, 7)
        x[padding] = fill
        x.requires_grad_()
        result = memory(x, reset=case.resets(3, 7, [(2, 2)]), lengths=lengths)
        results.append([*result, gradients(memory, result, [x])])
    assert_close(results[1], results[0])
    assert all(gradient.isfinite().all() for gradient in results[1][2])
