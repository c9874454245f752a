"""The laws of a memory (streaming, reset and isolation, constant memory, one meaning, restart) over layers in token
mode on Triton, in float32. Law 1 is `test_triton_token.py`; law 6, youth, is a matter of updates, not of backends."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream.state import load, save
from tttstream.testing import Case, assert_close, gradients, unroll
from tttstream_kernels.testing import TOLERANCE

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [
    Case("ttt_linear", {"conv": 3, "gate": True, "backend": "triton"}, heads=1),
    Case("ttt_mlp", {"backend": "triton"}, heads=1),
]
every_memory = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ROWS, TOKENS = 3, 37
AGES = [0, 5, 15]
"""Tokens that each row has seen before: their phases."""


def memory(case: Case) -> Any:
    """One whose last token has a scale above 0, so that its weights move at the end of a mini-batch."""
    layer: Any = case.memory(torch.float32)
    with torch.no_grad():
        layer.scale.clamp_(min=0.0)
    return layer.to(DEVICE)


def stream(case: Case, tokens: int, seed: int = 0) -> Tensor:
    return case.stream(ROWS, tokens, torch.float32, seed).to(DEVICE)


def old(layer: Any, case: Case) -> Any:
    """A state with rows at different phases."""
    return layer(stream(case, 15, seed=1), lengths=torch.tensor(AGES, device=DEVICE))[1]


def run(layer: Any, case: Case, splits: list[int]) -> list[Any]:
    """Outputs, final state and gradients when a stream with resets comes in pieces."""
    x = stream(case, TOKENS, seed=2).requires_grad_()
    reset = case.resets(ROWS, TOKENS, {(0, 20), (1, 0), (1, 33)}).to(DEVICE)
    result = unroll(layer, x, splits, old(layer, case), reset)
    return [*result, gradients(layer, result, [x])]


@every_memory
def test_law_2_any_partition_and_law_5_both_backends(case: Case) -> None:
    whole = run(memory(case), case, [TOKENS])
    pieces = run(memory(case), case, [3, 17, 1, 16])
    assert_close(pieces, whole)
    reference = dataclasses.replace(case, options={**case.options, "backend": "torch"})
    assert_close(whole, run(memory(reference), reference, [TOKENS]))


@every_memory
def test_law_2_one_at_a_time_without_gradients(case: Case) -> None:
    """The fused step against one call, with the losses."""
    layer, x = memory(case), stream(case, 20, seed=2)
    with torch.no_grad():
        state = before = old(layer, case)
        y, after, loss = layer(x, before, return_loss=True)
        steps = []
        for token in range(20):
            out, state, lost = layer(x[:, token : token + 1], state, return_loss=True)
            steps.append((out, lost.before, lost.after))
    outputs, *losses = zip(*steps, strict=True)
    assert_close([torch.cat(outputs, 1), *(torch.cat(part, 2) for part in losses)], [y, loss.before, loss.after])
    assert_close(state, after)
    assert state.nbytes == before.nbytes == layer.init_state(ROWS).nbytes  # law 4


@every_memory
def test_law_3_rows_are_alone(case: Case) -> None:
    layer, x = memory(case), stream(case, 20, seed=2)
    lengths, reset = torch.tensor([20, 7, 0], device=DEVICE), case.resets(ROWS, 20, {(0, 4), (1, 9)}).to(DEVICE)
    with torch.no_grad():
        state = old(layer, case)
        y, new = layer(x, state, reset, lengths)
        expected, _ = layer(x[:1, :4], state[0])
        assert_close(y[:1, :4], expected)
        expected, alone = layer(x[:1, 4:])
        assert_close(y[:1, 4:], expected)
        assert_close(new[0], alone)
        expected, alone = layer(x[1:2, :7], state[1])  # its reset lies beyond its length
        assert_close(y[1:2, :7], expected)
        assert_close(new[1], alone)
    assert_close(new[2], state[2], tolerance=0)
    assert not y[1, 7:].any()
    assert not y[2].any()


@every_memory
def test_law_3_no_gradient_crosses_a_reset(case: Case) -> None:
    layer = memory(case)
    state = old(layer, case).detach().map(lambda leaf: leaf.requires_grad_())
    x = stream(case, 20).requires_grad_()
    y, new = layer(x, state, case.resets(ROWS, 20, {(0, 8), (1, 8), (2, 8)}).to(DEVICE))
    inputs = [x, *(leaf for _, leaf in state.leaves())]
    reach, *reach_state = gradients(layer, [y[:, 8:], new], inputs)[: len(inputs)]
    assert reach[:, :8].eq(0).all()
    assert all(part.eq(0).all() for part in reach_state)
    assert reach[:, 8:].ne(0).any()


@every_memory
def test_law_5_mixed_precision(case: Case) -> None:
    layer, x = memory(case), stream(case, 20)
    exact, state = layer(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, low = layer(x)
    assert y.dtype == torch.bfloat16
    assert low.delta.dtype == torch.float32
    for ours, theirs in ((y, exact), (low.delta, state.delta)):
        error, size = (value.detach().double().square().mean().sqrt() for value in (ours - theirs, theirs))
        assert error < 2 * TOLERANCE[torch.bfloat16] * size
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


@every_memory
def test_law_7_restart(case: Case, tmp_path: Path) -> None:
    layer, x = memory(case), stream(case, 24)
    with torch.no_grad():
        _, state = layer(x[:, :10])
        save(state, tmp_path / "state.safetensors")
        y, end = layer(x[:, 10:], state)
        again, same = layer(x[:, 10:], load(tmp_path / "state.safetensors", layer).to(DEVICE))
    assert torch.equal(again, y)
    assert_close(same, end, tolerance=0)
