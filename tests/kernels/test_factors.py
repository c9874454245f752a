"""A state whose mini-batch is kept as factors is the same state: its sum, its copies, forks, and writes to it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tttstream import TTTLayer
from tttstream.memory.ttt import TTTState
from tttstream.state import pack, unpack
from tttstream.testing import assert_close
from tttstream_kernels.factors import GradSum

DIM, K, TOKENS = 16, 8, 5
inner_models = pytest.mark.parametrize("inner", ["linear", "mlp"])


def build(inner: str) -> TTTLayer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TTTLayer(DIM, 2, inner, mini_batch=K).double()


def tokens(length: int, seed: int = 1) -> Tensor:
    return torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped(layer: TTTLayer, x: Tensor, state: TTTState | None = None) -> tuple[Tensor, TTTState]:
    """All tokens one by one: the last output and the state."""
    state = layer.init_state(len(x)) if state is None else state
    y = x
    with torch.no_grad():
        for t in range(x.shape[1]):
            y, state = layer(x[:, t : t + 1], state)
    return y, state


def at_once(layer: TTTLayer, x: Tensor) -> tuple[Tensor, TTTState]:
    """The same in one call."""
    with torch.no_grad():
        y, state = layer(x)
    return y[:, -1:], state


def stored(grad_sum: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(grad_sum, file)
    file.seek(0)
    loaded: Tensor = torch.load(file)
    return loaded


LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": Tensor.clone,
    "detach": Tensor.detach,
    "pickle": lambda g: pickle.loads(pickle.dumps(g)),
    "deepcopy": copy.deepcopy,
    "torch.save": stored,
    "numpy": lambda g: torch.from_numpy(g.numpy()),
    "tolist": lambda g: torch.tensor(g.tolist(), dtype=torch.float64),
    "asarray": lambda g: torch.from_numpy(np.asarray(g)),
    "dlpack": torch.utils.dlpack.from_dlpack,
    "where": lambda g: torch.where(torch.tensor(True), g, 0.0),
    "index": lambda g: g[:],
    "rows": lambda g: torch.stack(list(g)),
    "vmap": lambda g: torch.func.vmap(lambda row: row * 1)(g),
}


@inner_models
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_reading_the_factors_gives_their_sum(inner: str, look: Callable[[Tensor], Tensor]) -> None:
    layer, x = build(inner), tokens(TOKENS)
    expected = at_once(layer, x)[1].grad_sum
    grad_sum = stepped(layer, x)[1].grad_sum
    assert isinstance(grad_sum, GradSum)
    assert (grad_sum.shape, grad_sum.dtype, grad_sum.nbytes) == (expected.shape, expected.dtype, expected.nbytes)
    assert grad_sum.unfinished is not None, "shape and type can be asked for without the sum"
    assert_close(look(grad_sum) * 1.0, expected, 1e-12)


@inner_models
def test_a_state_continues_after_a_read_like_its_copy(inner: str) -> None:
    layer, x = build(inner), tokens(3 * K)
    state = stepped(layer, x[:, :TOKENS])[1]
    again: TTTState = unpack(pack(state), layer)
    assert torch.equal(pack(stepped(layer, x[:, TOKENS:], state)[1]), pack(stepped(layer, x[:, TOKENS:], again)[1]))


@inner_models
def test_two_streams_from_one_state_are_independent(inner: str) -> None:
    layer, x, other = build(inner), tokens(2 * K), tokens(2 * K, seed=2)
    state = stepped(layer, x[:, :TOKENS])[1]
    for t in range(TOKENS, 2 * K):  # in turns, so that the second finds the first in its slots
        assert isinstance(state.grad_sum, GradSum)
        branch = stepped(layer, other[:, t:], state)
        expected = at_once(layer, torch.cat([x[:, :t], other[:, t:]], dim=1))
        assert_close(branch, expected, 1e-12)
        _, state = stepped(layer, x[:, t : t + 1], state)
    assert_close(state, at_once(layer, x)[1], 1e-12)


@inner_models
@pytest.mark.parametrize("write", ["start", "start.data", "delta", "grad_sum"])
def test_changes_of_weights_between_steps_take_effect(inner: str, write: str) -> None:
    layer, x = build(inner), tokens(TOKENS + 1)
    state = stepped(layer, x[:, :TOKENS])[1]
    with torch.no_grad():
        if write == "start":
            layer.start.mul_(1.5)
        elif write == "start.data":
            layer.start.data.mul_(1.5)
        else:
            getattr(state, write)[0].mul_(0.5)
        y, new = layer(x[:, TOKENS:], state)
        plain = TTTState(*(part.clone() for part in state.tensors()))
    expected, other = layer(x[:, TOKENS:], plain)
    assert_close((y, new), (expected, other), 1e-12)


@inner_models
def test_a_read_leaves_the_factors(inner: str) -> None:
    layer, x = build(inner), tokens(TOKENS + 1)
    state = stepped(layer, x[:, :TOKENS])[1]
    plain = at_once(layer, x[:, :TOKENS])[1]
    with torch.no_grad():
        y, expected = (layer(x[:, TOKENS:], held, learn=False)[0] for held in (state, plain))
    assert isinstance(state.grad_sum, GradSum)
    assert state.grad_sum.unfinished is not None
    assert_close(y, expected, 1e-12)


@inner_models
def test_inference_mode_and_a_graph_after_it(inner: str) -> None:
    layer, x = build(inner), tokens(2 * K + TOKENS)
    with torch.inference_mode():
        state = layer.init_state(2)
        for t in range(2 * K + TOKENS - 1):
            _, state = layer(x[:, t : t + 1], state)
    assert isinstance(state.grad_sum, GradSum)
    y, new = layer(x[:, -1:], state)
    assert_close((y, new), at_once(layer, x), 1e-12)
    y.sum().backward()
    assert layer.start.grad is not None


def test_a_compiled_layer_takes_the_state() -> None:
    layer, x = build("mlp"), tokens(TOKENS + 1)
    state = stepped(layer, x[:, :TOKENS])[1]
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(layer, backend="eager", fullgraph=True)(x[:, TOKENS:], state)
    assert_close(compiled, at_once(layer, x), 1e-12)
