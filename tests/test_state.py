"""The state of every memory as a value: fresh, packed, saved, indexed, moved, and never changed in place."""

from collections import namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.fx._pytree import SUPPORTED_NODES
from torch.utils._pytree import tree_structure

from tttstream import TTTLayer
from tttstream.errors import CheckpointError, StateError
from tttstream.state import State, load, pack, save, unpack
from tttstream.testing import Case, assert_close, cases

every_memory = pytest.mark.parametrize("case", cases(), ids=str)
bounded = pytest.mark.parametrize("case", [case for case in cases() if case.name != "attention"], ids=str)


@every_memory
def test_fresh_is_all_zeros(case: Case) -> None:
    memory = case.memory()
    state = memory.init_state(3)
    assert state.rows == 3
    assert all(leaf.shape[0] == 3 and leaf.eq(0).all() for _, leaf in state.leaves())
    x = case.stream(3, 4)
    assert_close(memory(x, state), memory(x), tolerance=0)


@bounded
def test_zeroing_a_packed_state_is_a_reset(case: Case) -> None:
    memory = case.memory()
    _, state = memory(case.stream(3, 6))
    flat = pack(state)
    flat = torch.where(torch.tensor([True, False, True])[:, None], 0, flat)
    x = case.stream(3, 5)
    expected = memory(x, state, case.resets(3, 5, [(0, 0), (2, 0)]))
    assert_close(memory(x, unpack(flat, memory)), expected)


@bounded
def test_pack_and_unpack_are_lossless(case: Case) -> None:
    memory = case.memory(torch.float32)
    _, state = memory(case.stream(3, 6, torch.float32), lengths=torch.tensor([6, 3, 0]) * case.unit)
    flat = pack(state)
    assert flat.shape[0] == 3
    assert flat.dtype == torch.float32
    assert flat.nelement() * flat.element_size() == state.nbytes
    for like in (memory, memory.init_state(1), state):
        again = unpack(flat, like)
        assert type(again) is type(state)
        assert_close(again, state, tolerance=0)
    assert_close(unpack(flat[1:2], memory), state[1], tolerance=0)
    with pytest.raises(StateError, match=r"expected \[rows, "):
        unpack(flat[:, 1:], memory)


@every_memory
def test_a_saved_state_continues_bit_for_bit(case: Case, tmp_path: Path) -> None:
    memory = case.memory(torch.float32)
    _, state = memory(case.stream(2, 5, torch.float32))
    save(state, tmp_path / "state.safetensors")
    again = load(tmp_path / "state.safetensors", memory)
    assert type(again) is type(state)
    x = case.stream(2, 3, torch.float32, seed=1)
    assert_close(memory(x, again), memory(x, state), tolerance=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


@every_memory
def test_a_state_in_a_checkpoint_of_torch_is_read_without_executing_any(case: Case, tmp_path: Path) -> None:
    _, state = case.memory()(case.stream(2, 3))
    torch.save({"state": state}, tmp_path / "checkpoint.pt")
    again = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    assert type(again) is type(state)
    assert_close(again, state, tolerance=0)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[State, Path]]:
    """For every memory a state of another width, and the file with it."""
    folder, made = tmp_path_factory.mktemp("others"), {}
    for number, case in enumerate(cases()):
        memory = Case(case.name, case.options, case.unit, dim=24, heads=3).memory()
        _, state = memory(torch.zeros(1, case.unit, 24, dtype=torch.float64))
        made[str(case)] = state, folder / f"{number}.safetensors"
        save(*made[str(case)])
    return made


@every_memory
def test_another_memorys_state_is_refused(case: Case, others: dict[str, tuple[State, Path]]) -> None:
    memory, x = case.memory(), case.stream(1, 1)
    for other, (state, path) in others.items():
        if other == str(case):
            continue
        with pytest.raises(StateError, match="another memory"):
            load(path, memory)
        with pytest.raises(StateError, match=r"of another memory|of this memory"):
            memory(x, state)


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    memory = Case("gru").memory()
    with pytest.raises(CheckpointError, match="no saved state at"):
        load(tmp_path / "missing", memory)
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "text", memory)
    save(memory.init_state(4), tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "half", memory)


@every_memory
def test_rows(case: Case) -> None:
    memory = case.memory()
    _, state = memory(case.stream(4, 5), lengths=torch.tensor([5, 1, 0, 3]) * case.unit)
    picked = {
        "int": (1, [1]),
        "last": (-1, [3]),
        "slice": (slice(1, 3), [1, 2]),
        "list": ([3, 0], [3, 0]),
        "indices": (torch.tensor([2, 2]), [2, 2]),
        "mask": (torch.tensor([True, False, False, True]), [0, 3]),
    }
    x = case.stream(4, 3)
    expected, _ = memory(x, state)
    for name, (index, rows) in picked.items():
        assert state[index].rows == len(rows), name
        y, _ = memory(x[rows], state[index])
        assert_close(y, expected[rows])
    with pytest.raises(IndexError, match="row 4 of a state with 4 rows"):
        state[4]


@every_memory
def test_where_selects_rows(case: Case) -> None:
    memory = case.memory()
    _, old = memory(case.stream(2, 5))
    broken = old.map(lambda leaf: torch.full_like(leaf, torch.nan))
    mixed = broken.where(torch.tensor([False, True]), old)
    assert_close(mixed[0], old[0])
    x = case.stream(2, 3)
    mixed = old.where(torch.tensor([False, True]), memory.init_state(2))
    assert_close(memory(x, mixed), memory(x, old, case.resets(2, 3, [(0, 0)])))


@every_memory
def test_the_graph_lasts_until_detach(case: Case) -> None:
    memory = case.memory()
    _, state = memory(case.stream(2, 5).requires_grad_())
    assert any(leaf.requires_grad for _, leaf in state.leaves())
    assert not any(leaf.requires_grad for _, leaf in state.detach().leaves())
    assert_close(state.detach(), state, tolerance=0)


@every_memory
def test_a_call_changes_none_of_its_arguments(case: Case) -> None:
    memory = case.memory()
    _, state = memory(case.stream(2, 5))
    arguments = [case.stream(2, 4), state, case.resets(2, 4, [(0, 2)]), torch.tensor([3, 4]) * case.unit]
    copies = [a.clone() if isinstance(a, torch.Tensor) else a.map(torch.clone) for a in arguments]
    buffers = [tensor.clone() for tensor in memory.state_dict().values()]
    memory(*arguments)
    memory(*arguments[:2])
    for after, before in zip([*arguments, *memory.state_dict().values()], [*copies, *buffers], strict=True):
        assert_close(after, before, tolerance=0)


@every_memory
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_types(case: Case, dtype: torch.dtype) -> None:
    memory = case.memory(dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    x = case.stream(2, 3, dtype)
    for reset in (None, case.resets(2, 3, [(1, 1)])):
        y, state = memory(x, memory.init_state(2), reset)
        y, state = memory(x, state)
        assert y.dtype == dtype
        assert {leaf.dtype for _, leaf in state.leaves()} == {expected}


@every_memory
def test_autocast_keeps_the_state_in_float32(case: Case) -> None:
    memory = case.memory(torch.float32)
    x = case.stream(2, 6, torch.float32)
    expected, _ = memory(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = memory(x)
        y, _ = memory(x)
        behind, half = memory(x.bfloat16())  # as behind a linear layer
    assert {leaf.dtype for _, leaf in (*state.leaves(), *half.leaves())} == {torch.float32}
    assert_close(y.float(), expected, tolerance=0.1)
    assert_close(behind.float(), expected, tolerance=0.1)


@every_memory
def test_to_moves_every_tensor(case: Case) -> None:
    state = case.memory().init_state(2).to("meta", torch.float32)
    assert {(leaf.device.type, leaf.dtype) for _, leaf in state.leaves()} == {("meta", torch.float32)}


def test_named_tuples_that_are_no_states_keep_the_rule_of_torch_fx() -> None:
    """That rule unpacks named tuples by index; only the index of a state selects rows."""

    class Reversed(NamedTuple):
        a: int
        b: int

        def __getitem__(self, index: Any) -> Any:
            return tuple.__getitem__(self, 1 - index)

    rule = SUPPORTED_NODES[namedtuple]  # type: ignore[index]
    assert rule(Reversed(1, 2), tree_structure((0, 0))) == [2, 1]
    state = TTTLayer(8, 2, mini_batch=2).init_state(3)
    assert all(a is b for a, b in zip(rule(state, tree_structure(tuple(state))), tuple(state), strict=True))
