"""Binding: taught examples are recognised, the state has a constant size, and the laws of all memories hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tttstream import state as states
from tttstream.errors import ConfigError, ShapeError, StateError
from tttstream.memory.binding import Binding, BindingState

KEYS, LABELS = 12, 5


def memory(**options: int) -> Binding:
    torch.manual_seed(0)
    return Binding(KEYS, LABELS, **options).double()


def stream(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """Keys with labels at two of three tokens."""
    rng = torch.Generator().manual_seed(seed)
    keys = torch.randn(rows, tokens, KEYS, generator=rng, dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.randint(LABELS, (rows, tokens), generator=rng), LABELS).double()
    return torch.cat([keys, labels * (torch.rand(rows, tokens, 1, generator=rng) < 0.66)], -1)


def definition(binding: Binding, keys: Tensor, labels: Tensor, q: Tensor) -> Tensor:
    """The evidence after all examples of one row, from the examples themselves."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    q = q / q.norm()
    means = torch.zeros(LABELS, KEYS, dtype=torch.float64)
    squares, repeats = torch.zeros(KEYS, KEYS, dtype=torch.float64), 0
    for label in range(LABELS):
        own = unit[labels == label]
        if len(own):
            means[label] = own.mean(0)
            squares += (own - own.mean(0)).T @ (own - own.mean(0))
            repeats += len(own) - 1
    spread = squares / max(repeats, 1)
    eye = torch.eye(KEYS, dtype=torch.float64)
    a = means.T @ means + binding.spread.exp() * spread + binding.ridge.exp() * eye
    like = means @ q / means.norm(dim=-1).clamp(min=1e-12)
    found = binding.scale.exp() * (like + binding.weight.exp() * (means @ a.inverse() @ q)) - binding.bar
    return torch.where(torch.bincount(labels, minlength=LABELS) > 0, found, Binding.NOTHING)


def test_evidence_is_that_of_all_examples_at_once() -> None:
    binding, x = memory(), stream(1, 40)
    told = x[0, :, KEYS:].sum(-1) > 0
    _, state = binding(x)
    q = torch.randn(KEYS, dtype=torch.float64)
    expected = definition(binding, x[0, told, :KEYS], x[0, told, KEYS:].argmax(-1), q)
    assert torch.allclose(binding.evidence(state, q[None, None])[0, 0], expected, atol=1e-10)
    assert state.counts[0].sum() == told.sum()


def test_many_examples_at_once_leave_the_state_that_they_leave_one_by_one() -> None:
    binding, x = memory(), stream(2, 30)
    x[..., KEYS:] = torch.nn.functional.one_hot(torch.randint(LABELS, (2, 30)), LABELS)
    _, state = binding(x)
    at_once = binding.told(*x.split((KEYS, LABELS), -1))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(at_once.tensors(), state.tensors(), strict=True))


def test_a_prototype_takes_the_gradient_step_of_the_inner_loss() -> None:
    binding, x = memory(), stream(1, 30)
    _, state = binding(x)
    key, label = torch.randn(1, KEYS, dtype=torch.float64), torch.eye(LABELS, dtype=torch.float64)[2:3]
    means = state.means.detach().requires_grad_()
    loss = 0.5 * (key / key.norm() - (label @ means[0])).square().sum()
    (gradient,) = torch.autograd.grad(loss, means)
    after = binding.bind(state, key, label)
    assert torch.allclose(after.means, means - gradient / (state.counts[0, 2] + 1), atol=1e-10)


def test_known_things_are_recognised_before_their_label_is_given() -> None:
    binding, x = memory(), stream(2, 20)
    other = x.clone()
    other[:, -1, KEYS:] = 0
    assert torch.equal(binding(x)[0], binding(other)[0])


def test_any_partition_gives_what_one_call_gives() -> None:
    binding, x = memory(), stream(3, 24).requires_grad_()
    reset = torch.zeros(3, 24, dtype=torch.bool)
    reset[1, 7] = reset[2, 0] = True
    y, state = binding(x, None, reset)
    parts, carried = [], None
    for first, last in ((0, 1), (1, 9), (9, 10), (10, 24)):
        part, carried = binding(x[:, first:last], carried, reset[:, first:last])
        parts.append(part)
    assert torch.allclose(torch.cat(parts, 1), y, atol=1e-10)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(carried.tensors(), state.tensors(), strict=True))
    whole = torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
    assert torch.allclose(torch.autograd.grad(torch.cat(parts, 1).square().sum(), x)[0], whole, atol=1e-8)


def test_rows_are_alone() -> None:
    binding, x = memory(), stream(3, 16)
    reset = torch.zeros(3, 16, dtype=torch.bool)
    reset[0, 5] = True
    lengths = torch.tensor([16, 9, 0])
    y, state = binding(x, None, reset, lengths)
    alone, kept = binding(x[:1, 5:])
    assert torch.allclose(y[:1, 5:], alone, atol=1e-12)
    assert torch.allclose(state[0].means, kept.means, atol=1e-12)
    short, kept = binding(x[1:2, :9])
    assert torch.equal(y[1:2, :9], short)
    assert all(torch.equal(a, b) for a, b in zip(state[1].tensors(), kept.tensors(), strict=True))
    assert not y[1, 9:].any()
    assert not any(leaf[2].any() for leaf in state.tensors())


def test_a_query_with_nan_gives_nan_and_is_not_learned() -> None:
    binding, x = memory(), stream(2, 10)
    bad = x.clone()
    bad[0, 4, 1] = torch.nan
    y, state = binding(bad)
    assert y[0, 4].isnan().all()
    assert y.isnan().any(-1).sum() == 1
    clean, kept = binding(torch.cat([x[:1, :4], x[:1, 5:]], 1))
    assert torch.equal(torch.cat([y[:1, :4], y[:1, 5:]], 1), clean)
    assert all(torch.equal(a, b) for a, b in zip(state[0].tensors(), kept.tensors(), strict=True))


def test_the_state_keeps_its_size_and_accuracy_over_a_long_stream() -> None:
    """3,000 examples of four labels do not hide a fifth one that is taught three times."""
    binding = Binding(KEYS, LABELS, horizon=200)
    rng = np.random.default_rng(0)
    homes = torch.from_numpy(np.linalg.qr(rng.normal(size=(KEYS, KEYS)))[0][:LABELS]).float()
    key = lambda label: homes[label] + 0.1 * torch.from_numpy(rng.normal(size=KEYS)).float()  # noqa: E731
    state, told = binding.init_state(1), torch.eye(LABELS)
    size = state.nbytes
    with torch.no_grad():
        for number in range(3_000):
            state = binding.bind(state, key(number % 4)[None], told[number % 4][None])
        for _ in range(3):
            state = binding.bind(state, key(4)[None], told[4][None])
        questions = torch.stack([key(label) for label in range(LABELS) for _ in range(20)])
        answers = binding.evidence(state, questions[None])[0].argmax(-1)
    assert state.nbytes == size
    assert (answers == torch.arange(LABELS).repeat_interleave(20)).float().mean() > 0.98
    assert state.counts.max() == binding.horizon


def test_forgetting_a_label_leaves_the_others() -> None:
    binding, x = memory(), stream(1, 40)
    _, state = binding(x)
    less = binding.forget(state, 2)
    q = torch.randn(1, 3, KEYS, dtype=torch.float64)
    assert (binding.evidence(less, q)[..., 2] == Binding.NOTHING).all()
    assert torch.equal(less.means[:, [0, 1, 3, 4]], state.means[:, [0, 1, 3, 4]])


def test_a_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    binding, x = Binding(KEYS, LABELS), stream(2, 30).float()
    _, state = binding(x[:, :17])
    states.save(state, tmp_path / "state.safetensors")
    again: BindingState = states.load(tmp_path / "state.safetensors", binding)
    y, end = binding(x[:, 17:], state)
    y_again, end_again = binding(x[:, 17:], again)
    assert torch.equal(y, y_again)
    assert all(torch.equal(a, b) for a, b in zip(end.tensors(), end_again.tensors(), strict=True))
    assert torch.equal(states.unpack(states.pack(state), binding).means, state.means)
    with pytest.raises(StateError, match="another memory"):
        states.load(tmp_path / "state.safetensors", Binding(KEYS, LABELS + 1))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Binding(0, 3)
    with pytest.raises(ShapeError, match="rows >= 1, tokens >= 1"):
        memory()(torch.zeros(1, 2, KEYS))
    with pytest.raises(ShapeError, match="keys"):
        memory().evidence(memory().init_state(1), torch.zeros(1, KEYS))
