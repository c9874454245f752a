"""The laws of a memory (streaming, reset and isolation, constant memory, one meaning, restart) over layers in frame
mode on Triton, in float32. Law 1 is `test_triton_frame.py`; law 6, youth, is a matter of updates, not of backends."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttstream.state import load, pack, save, unpack
from tttstream.testing import Case, assert_close, gradients, unroll
from tttstream_kernels.testing import TOLERANCE

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = {"grid": (1, 2), "backend": "triton"}
LINEAR = Case("ttt_linear", {"causal": "frame", **GRID}, unit=2, heads=1)
CASES = [
    LINEAR,
    Case("ttt_mlp", {"causal": "frame", **GRID}, unit=2, heads=1),
    Case("ttt_conv", {"registers": 1, **GRID}, unit=3, heads=1),
]
every_memory = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
FRAMES, ROWS = 3, 2
places = st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, FRAMES - 1)), max_size=3)
counts = st.lists(st.integers(0, FRAMES), min_size=ROWS, max_size=ROWS)
cuts = st.sets(st.integers(1, FRAMES - 1)).map(lambda at: [b - a for a, b in pairwise([0, *sorted(at), FRAMES])])


def memory(case: Case) -> Any:
    return case.memory(torch.float32).to(DEVICE)


def stream(case: Case, rows: int, frames: int, seed: int = 0) -> Tensor:
    return case.stream(rows, frames, torch.float32, seed).to(DEVICE)


def resets(case: Case, rows: int, frames: int, at: Any) -> Tensor:
    return case.resets(rows, frames, at).to(DEVICE)


def run(layer: Any, case: Case, splits: list[int], reset: Tensor | None, lengths: Tensor | None) -> list[Any]:
    """Outputs, final state and gradients when a stream comes in pieces, from a state that has seen a frame."""
    before, x = (stream(case, ROWS, n, seed).requires_grad_() for n, seed in ((1, 1), (sum(splits), 2)))
    result = unroll(layer, x, [size * case.unit for size in splits], layer(before)[1], reset, lengths)
    return [*result, gradients(layer, result, [before, x])]


@every_memory
def test_law_2_frame_by_frame(case: Case) -> None:
    layer, reset = memory(case), resets(case, ROWS, 2, {(1, 1)})
    assert_close(run(layer, case, [1, 1], reset, None), run(layer, case, [2], reset, None))


@settings(max_examples=3)
@given(splits=cuts, at=places, counted=st.none() | counts)
def test_law_2_any_partition(splits: list[int], at: set[tuple[int, int]], counted: list[int] | None) -> None:
    layer = memory(LINEAR)
    lengths = None if counted is None else LINEAR.unit * torch.tensor(counted, device=DEVICE)
    reset = resets(LINEAR, ROWS, FRAMES, at) if at else None
    whole = run(layer, LINEAR, [FRAMES], reset, lengths)
    assert_close(run(layer, LINEAR, splits, reset, lengths), whole)


@every_memory
def test_law_3_every_segment_equals_itself_alone(case: Case) -> None:
    """Beside other rows, after a reset, cut short, idle."""
    layer, unit = memory(case), case.unit
    with torch.no_grad():
        _, old = layer(stream(case, 3, 1, seed=1))
        x = stream(case, 3, 3)
        reset = resets(case, 3, 3, {(0, 1), (1, 0), (2, 2)})
        y, state = layer(x, old, reset, torch.tensor([3, 0, 2], device=DEVICE) * unit)
        first, _ = layer(x[:1, :unit], old[:1])
        fresh, end = layer(x[:1, unit:])
        short, short_end = layer(x[2:, : 2 * unit], old[2:])
    assert_close(y[:1], torch.cat([first, fresh], 1))
    assert_close(state[:1], end)
    assert_close(y[2:, : 2 * unit], short)
    assert_close(state[2:], short_end)
    assert_close(state[1:2], old[1:2], tolerance=0)
    assert not y[1].any()
    assert not y[2, 2 * unit :].any()


@every_memory
def test_law_3_a_nan_does_not_spread(case: Case) -> None:
    """In a state that is reset, and in padding: values and gradients are those without it."""
    layer, unit = memory(case), case.unit
    _, old = layer(stream(case, 2, 1, seed=1))
    old = old.detach()
    lengths = torch.tensor([2, 1], device=DEVICE) * unit
    padding = torch.arange(2 * unit, device=DEVICE) >= lengths[:, None]
    reset = resets(case, 2, 2, {(0, 0), (1, 0)})
    results = []
    for fill in (0.0, math.nan):
        x = stream(case, 2, 2)
        x[padding] = fill
        result = layer(x.requires_grad_(), old.map(lambda leaf: leaf + fill), reset, lengths)  # noqa: B023
        results.append([*result, gradients(layer, result, [x])])
    assert_close(results[1], results[0])
    assert all(gradient.isfinite().all() for gradient in results[1][2])


@every_memory
def test_law_3_no_gradient_crosses_a_reset(case: Case) -> None:
    layer = memory(case)
    old = layer(stream(case, 2, 1))[1].detach().map(lambda leaf: leaf.requires_grad_())
    x = stream(case, 2, 2).requires_grad_()
    y, _ = layer(x, old, resets(case, 2, 2, {(0, 1)}))
    into_old, into_x = torch.autograd.grad(y[:, case.unit :].square().sum(), (old.delta, x))
    assert not into_old[0].any()
    assert not into_x[0, : case.unit].any()
    assert into_old[1].any()
    assert into_x[1, : case.unit].any()


@every_memory
def test_law_4_the_state_does_not_grow(case: Case) -> None:
    layer = memory(case)
    with torch.no_grad():
        _, state = layer(stream(case, 1, 1))
        _, later = layer(stream(case, 1, 3), state)
    assert later.nbytes == state.nbytes == layer.init_state(1).nbytes


@every_memory
def test_law_5_layers_on_both_backends(case: Case) -> None:
    """Outputs, states, losses, and the gradients of everything that is learned."""
    results = []
    for backend in ("triton", "torch"):
        layer = memory(dataclasses.replace(case, options={**case.options, "backend": backend}))
        x = stream(case, ROWS, 2).requires_grad_()
        result = layer(x, return_loss=True)
        results.append([*result, gradients(layer, result, [x])])
    assert_close(*results, tolerance=2 * TOLERANCE[torch.float32])


@every_memory
def test_law_5_mixed_precision(case: Case) -> None:
    layer, x = memory(case), stream(case, ROWS, 2)
    exact, end = layer(x)
    with torch.autocast(DEVICE, torch.bfloat16):
        y, state = layer(x)
    assert y.dtype == torch.bfloat16
    assert all(leaf.dtype == torch.float32 for _, leaf in state.leaves())
    for ours, theirs in ((y, exact), (state.delta, end.delta)):
        error, size = (value.detach().double().square().mean().sqrt() for value in (ours - theirs, theirs))
        assert error < 2 * TOLERANCE[torch.bfloat16] * size
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


@every_memory
def test_law_7_restart(case: Case, tmp_path: Path) -> None:
    """Packed or saved between two frames, the stream continues bit for bit."""
    layer, unit = memory(case), case.unit
    x = stream(case, 1, 3)
    with torch.no_grad():
        _, state = layer(x[:, : 2 * unit])
        expected, end = layer(x[:, 2 * unit :], state)
        save(state, tmp_path / "state.safetensors")
        for restored in (unpack(pack(state), layer), load(tmp_path / "state.safetensors", layer).to(DEVICE)):
            y, after = layer(x[:, 2 * unit :], restored)
            assert_close([y, after], [expected, end], tolerance=0)
