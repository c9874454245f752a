"""`Memory.read`: answers of a state that stays as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tttstream.memory import KernelDelta, build
from tttstream.testing import Case, assert_close, cases

TOKENS = [case for case in cases() if case.unit == 1]


@pytest.mark.parametrize("case", TOKENS, ids=str)
def test_the_state_stays_and_rows_do_not_matter_to_each_other(case: Case) -> None:
    memory = case.memory()
    x = torch.randn(2, 7, memory.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, state = memory(x)
    kept = state.map(torch.clone)
    asked = torch.randn(2, 5, memory.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = memory.read(asked, state)
    assert y.shape == asked.shape
    assert_close(state, kept)
    assert_close(y[1:], memory.read(asked[1:], state[torch.tensor([1])]))


@pytest.mark.parametrize("name", ["delta", "gru", "window"])
def test_a_token_is_read_as_the_next_one(name: str) -> None:
    memory = build(name, dim=8, heads=2).double() if name != "gru" else build(name, dim=8).double()
    x, asked = (torch.randn(2, n, 8, dtype=torch.float64) for n in (6, 3))
    _, state = memory(x)
    y = memory.read(asked, state)
    for place in range(3):
        assert_close(y[:, place], memory(asked[:, place : place + 1], state)[0][:, 0])


def test_a_kernel_delta_rule_is_read_without_learning() -> None:
    """As with a step size of zero; a token that is not finite has no answer; nothing was written, so zero is read."""
    torch.manual_seed(0)
    memory: Any = build("kernel_delta", dim=8, heads=2, conv=0).double()
    assert isinstance(memory, KernelDelta)
    x, asked = (torch.randn(2, n, 8, dtype=torch.float64) for n in (6, 3))
    _, state = memory(x)
    y = memory.read(asked, state)
    assert not memory.read(asked).any()
    asked[1, 1, 3] = torch.nan
    assert memory.read(asked, state).isnan().all(-1).tolist() == [[False] * 3, [False, True, False]]
    with torch.no_grad():
        memory.rate.weight.zero_()
        memory.rate.bias.fill_(-torch.inf)
    asked[1, 1, 3] = 0.0
    expected = memory(asked, state)[0]
    assert_close(memory.read(asked, state), expected)
    assert_close(y[0], expected[0])


def test_a_kernel_delta_rule_recalls_more_pairs_than_keys_have_channels() -> None:
    """Of 40 pairs with keys of 8 channels it recalls all; the best linear map has most of the error left."""
    torch.manual_seed(0)
    memory: Any = build("kernel_delta", dim=16, heads=1, conv=0, features=256, sharp=3.0).double()
    keys, values = torch.randn(2, 40, 8, dtype=torch.float64)
    pairs = torch.cat([torch.nn.functional.normalize(keys, dim=-1), values], -1)[None]
    with torch.no_grad():
        memory.project.weight.zero_()
        for place in range(8):
            memory.project.weight[place, place] = memory.project.weight[16 + place, place] = 1.0  # q and k
            memory.project.weight[32 + place, 8 + place] = 1.0  # v
        memory.out.weight.copy_(torch.eye(16))
        memory.rate.weight.zero_()
        state = None
        for _ in range(20):
            _, state = memory(pairs, state)
        read = memory.read(pairs, state)[0, :, :8]
    left = (read - values).square().sum() / values.square().sum()
    linear = keys @ torch.linalg.lstsq(keys, values).solution
    assert left < 0.01
    assert (linear - values).square().sum() / values.square().sum() > 0.5
