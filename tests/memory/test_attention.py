"""Attention memories against plain attention over every pair of tokens, and their own guarantees."""

import math

import pytest
import torch
from torch import Tensor

from tttstream.memory import Attention, Window
from tttstream.memory.attention import rotate
from tttstream.testing import assert_close, gradients


def by_pairs(memory: Attention | Window, x: Tensor, piece: Tensor) -> Tensor:
    """The definition: token t sees token s <= t of its own piece [B, T], scores by their rotary distance t - s."""
    q, k, v = memory.qkv(x).unflatten(-1, (3, memory.heads, -1)).unbind(2)
    token = torch.arange(x.shape[1])
    distance = token[:, None] - token
    seen = (distance >= 0) & (piece[:, :, None] == piece[:, None])
    if isinstance(memory, Window):
        seen = seen & (distance < memory.window)
    width = q.shape[-1]
    rates = 10000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = distance[..., None] * rates
    real, imaginary = torch.complex(*q.chunk(2, -1)), torch.complex(*k.chunk(2, -1))
    turned = torch.polar(torch.ones_like(angle), angle)
    score = torch.einsum("bthd,bshd,tsd->bhts", real, imaginary.conj(), turned).real / math.sqrt(width)
    weight = score.masked_fill(~seen[:, None], -math.inf).softmax(-1)
    return memory.out(torch.einsum("bhts,bshd->bthd", weight, v).flatten(2))


@pytest.mark.parametrize("memory", [Attention(16, 2), Window(16, 2, 2), Window(16, 2, 7), Window(16, 2, 64)], ids=repr)
@pytest.mark.parametrize("tokens", [1, 6, 7, 8, 30])
@pytest.mark.parametrize("cut", [False, True], ids=["plain", "resets"])
def test_outputs_and_gradients_equal_attention_over_every_pair(
    memory: Attention | Window, tokens: int, cut: bool
) -> None:
    memory = memory.double()
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(3, tokens, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(3, tokens, generator=generator) < 0.15 if cut else torch.zeros(3, tokens, dtype=torch.bool)
    y, _ = memory(x, reset=reset if cut else None)
    expected = by_pairs(memory, x, reset.cumsum(1))
    assert_close(y, expected)
    assert_close(gradients(memory, y, [x]), gradients(memory, expected, [x]))


def test_queries_run_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Attention(16, 2).double()
    x = torch.randn(2, 23, 16, dtype=torch.float64)
    reset = torch.zeros(2, 23, dtype=torch.bool)
    reset[1, 9] = True
    expected = by_pairs(memory, x, reset.cumsum(1))
    monkeypatch.setattr("tttstream.memory.attention.QUERY_BLOCK", 4)
    assert_close(memory(x, reset=reset)[0], expected)


def test_rotation_depends_on_differences_of_positions_only() -> None:
    x = torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(0))  # a product near 0 has no relative error
    near = rotate(x, torch.tensor([[0, 7]]))
    far = rotate(x, torch.tensor([[2**40, 2**40 + 7]]))
    assert_close((far[:, 0] * far[:, 1]).sum(), (near[:, 0] * near[:, 1]).sum(), tolerance=1e-4)


def test_a_window_ignores_older_tokens() -> None:
    """What left the window has no trace: the state after a long stream is that of its last tokens."""
    memory = Window(16, 2, 6).double()
    x = torch.randn(2, 100, 16, dtype=torch.float64)
    assert_close(memory(x)[1], memory(x[:, -5:])[1])
    y, _ = memory(x)
    assert_close(y[:, -1], memory(x[:, -6:])[0][:, -1])


def test_a_growing_cache_is_as_long_as_its_oldest_row() -> None:
    memory = Attention(16, 2)
    x = torch.randn(3, 10, 16)
    _, state = memory(x, lengths=torch.tensor([10, 4, 0]))
    assert state.keys.shape[1] == 10
    assert state.valid.sum(1).tolist() == [10, 4, 0]
    assert state[1:].keys.shape[1] == 4
    assert state[2].nbytes == 0
    reset = torch.zeros(3, 2, dtype=torch.bool)
    reset[0, 1] = True
    _, state = memory(x[:, :2], state, reset)
    assert state.valid.sum(1).tolist() == [1, 6, 2]
    assert state.keys.shape[1] == 6
    mixed = state.where(torch.tensor([True, False, True]), memory.init_state(3))
    assert mixed.valid.sum(1).tolist() == [1, 0, 2]
    assert mixed.keys.shape[1] == 2


def test_a_token_that_is_not_finite_counts_as_zeros_later() -> None:
    memory = Attention(16, 2).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    dirty, zeroed = x.clone(), x.clone()
    dirty[0, 2, 5], zeroed[0, 2] = math.nan, 0
    y, state = memory(dirty)
    expected, expected_state = memory(zeroed)
    assert y[0, 2].isnan().all()
    assert_close(y[:, 3:], expected[:, 3:])
    assert_close(state, expected_state)


@pytest.mark.parametrize("window", [2, 16])
def test_work_is_linear_in_tokens(window: int) -> None:
    """20,000 tokens at once, and no tensor near T x T, even of bools."""
    memory = Window(16, 2, window)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for leaf in torch.utils._pytree.tree_leaves(out):
                if isinstance(leaf, Tensor):
                    largest = max(largest, leaf.untyped_storage().nbytes())
            return out

    with torch.no_grad(), Watch():
        memory(torch.randn(1, 20_000, 16))
    assert largest < 20_000**2 / 10
