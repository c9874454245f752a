"""The one-token step without a graph gives what the layer's forward gives, leaves its arguments alone, and is short."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from tttstream import TTTLayer
from tttstream.errors import StateError
from tttstream.memory import ttt
from tttstream.memory.step import step
from tttstream.testing import assert_close
from tttstream_kernels import Update

DIM, HEADS, K = 12, 2, 4
LEARNED = Update(
    forget=nn.Parameter(torch.tensor([0.1, 0.3])), max_norm=nn.Parameter(torch.tensor([1.0, 2.0])), restore=True
)
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {"update": Update(), "base_lr": 1.0},
    "learned numbers": {"update": LEARNED},
    "no rotary, unit_qk, gate, insert": {"rotary": False, "unit_qk": True, "gate": True, "insert": 0.3},
    "convolution": {"conv": 3},
    "convolution of one token, unit_qk": {"conv": 1, "unit_qk": True},
}
inner_models = pytest.mark.parametrize("inner", ["linear", "mlp"])


def build(inner: str, options: dict[str, Any], dtype: torch.dtype = torch.float64) -> TTTLayer:
    """A layer with parameters away from their special initial values; one token scale below 0, so it is clamped."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = TTTLayer(DIM, HEADS, inner, mini_batch=K, **options)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.rand_like(parameter))
            assert layer.scale is not None
            layer.scale[2] = -0.8
    return layer.to(dtype)


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@contextmanager
def forward_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the step: single tokens take the path of many."""
    with monkeypatch.context() as patch:
        patch.setattr(ttt, "step", lambda *arguments: None)
        yield


@inner_models
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_is_a_forward_of_one_token(
    inner: str, options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = build(inner, options), tokens(rows, 3 * K)
    state = layer.init_state(rows)
    state = other = state._replace(phase=torch.arange(rows, dtype=torch.float64) % K)
    reset = torch.zeros(rows, 3 * K, dtype=torch.bool)
    reset[-1, K] = True
    with torch.no_grad():
        for t in range(3 * K):
            arguments = x[:, t : t + 1], state, reset[:, t : t + 1]
            assert step(layer, *arguments) is not None, "the step must cover this"
            y, state = layer(*arguments)
            with forward_only(monkeypatch):
                expected, other = layer(x[:, t : t + 1], other, reset[:, t : t + 1])
            assert_close((y, state), (expected, other), 1e-12)


@inner_models
def test_a_step_writes_to_nothing_that_it_is_given(inner: str) -> None:
    layer, x = build(inner, {"gate": True, "conv": 3}), tokens(2, 2 * K)
    state = layer.init_state(2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    with torch.no_grad():
        for t in range(2 * K):
            token = x[:, t : t + 1]
            copies = token.clone(), state.map(Tensor.clone)
            _, new = layer(token, state)
            assert torch.equal(token, copies[0])
            assert all(torch.equal(a, b) for a, b in zip(state.tensors(), copies[1].tensors(), strict=True))
            state = new
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), before, strict=True))


@inner_models
def test_parameters_may_change_between_steps(inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of them is kept: load_state_dict, writing past autograd, an optimizer, another type, another module."""
    layer, x, other = build(inner, {}), tokens(1, 6), build(inner, {})
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)

    def optimise() -> None:
        with torch.enable_grad():
            layer(x)[0].square().sum().backward()
        optimizer.step()

    def write() -> None:
        layer.project.weight.data.mul_(1.5)

    def replace() -> None:
        layer.out = nn.Sequential(layer.out, nn.Tanh())  # type: ignore[assignment]

    changes = [
        lambda: layer.load_state_dict(other.state_dict()),
        write,
        optimise,
        lambda: layer.float().double(),
        replace,
    ]
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        state = layer.init_state(1)
        for t, change in enumerate(changes):
            change()
            y, new = layer(x[:, t : t + 1], state)
            with forward_only(monkeypatch):
                assert_close((y, new), layer(x[:, t : t + 1], state), 1e-12)
            state = new


@pytest.mark.parametrize("conv", [0, 3])
def test_hooks_of_the_layers_inside_are_called(conv: int) -> None:
    layer, called = build("linear", {"conv": conv}), []
    names = ["project", *(["conv"] if conv else []), "rate", "norm", "out"]
    for name in names:
        getattr(layer, name).register_forward_hook(lambda *_, name=name: called.append(name))
    with torch.no_grad():
        layer(tokens(1, 1), layer.init_state(1))
    assert called == names


def test_a_row_with_nan_does_not_affect_others() -> None:
    layer, x = build("linear", {}), tokens(2, K)
    x[0, 1] = torch.nan
    with torch.no_grad():
        state, alone = layer.init_state(2), layer.init_state(1)
        for t in range(K):
            y, state = layer(x[:, t : t + 1], state)
            expected, alone = layer(x[1:, t : t + 1], alone)
            assert_close(y[1:], expected, 1e-12)
            assert bool(y[0].isnan().all()) == (t > 0)
        lost = state.map(
            lambda part: part.where(torch.tensor([False, True]).view(-1, *[1] * (part.dim() - 1)), torch.nan)
        )
        y, state = layer(x[:, :1], lost)
        assert y[0].isnan().all()
        assert y[1].isfinite().all()
        y, _ = layer(x[:, :1], state, torch.tensor([[True], [False]]))
        assert_close(y[:1], layer(x[:1, :1], layer.init_state(1))[0], 1e-12)


@pytest.mark.parametrize("options", [{"update": Update(momentum=0.5)}, {"backend": "triton"}])
def test_what_a_step_does_not_cover_goes_through_forward(options: dict[str, Any]) -> None:
    layer, x = build("linear", options), tokens(1, 1)
    with torch.no_grad():
        assert step(layer, x, layer.init_state(1), None) is None
    covered = build("linear", {})
    assert step(covered, x, covered.init_state(1), None) is None, "a graph is wanted"


@pytest.mark.parametrize("place", ["project", "rate", "norm", "out", "conv"])
@pytest.mark.parametrize("how", ["forward", "subclass"])
def test_a_module_that_computes_something_else_is_called(place: str, how: str) -> None:
    """Libraries set another `forward` on a module, or put a subclass in its place (quantisation, adapters)."""
    layer, x = build("linear", {"conv": 3}), tokens(2, 1)
    module = layer.get_submodule(place)
    plain = module.forward

    def doubled(*arguments: Any) -> Any:
        found = plain(*arguments)
        return tuple(2 * one for one in found) if isinstance(found, tuple) else 2 * found

    if how == "forward":
        module.forward = doubled
    else:
        module.__class__ = type("Doubled", (type(module),), {"forward": lambda self, *arguments: doubled(*arguments)})
    state = layer.init_state(2)
    expected = layer(x, state)
    with torch.no_grad():
        assert_close(layer(x, state), tuple(expected), 1e-12)
        assert_close(layer(x, state)[0], torch.compile(layer, backend="eager")(x, state)[0], 1e-12)


def test_a_state_of_another_layer_is_refused() -> None:
    layer, other = build("linear", {}), build("mlp", {})
    with torch.no_grad(), pytest.raises(StateError, match="of another memory"):
        layer(tokens(1, 1), other.init_state(1))
    with torch.no_grad(), pytest.raises(StateError, match="of another memory"):
        layer(tokens(1, 1), layer.init_state(1).to(torch.float32))


class Count(TorchDispatchMode):
    """How many operations reach a backend."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("inner", "most"), [("linear", 52), ("mlp", 72)])
def test_a_step_is_short(inner: str, most: int) -> None:
    """A step of this size takes as long as its calls, so they are what a change must not add to."""
    layer, x = build(inner, {}, torch.float32), tokens(1, K).float()
    with torch.no_grad():
        _, state = layer(x[:, :1], layer.init_state(1))
        with Count() as count:
            layer(x[:, 1:2], state)
    assert count.calls <= most


def test_a_step_leaves_what_it_keeps_at_addresses_of_its_own() -> None:
    """A view into the tokens seen would keep all of them alive, and lie where products round otherwise."""
    layer = build("linear", {"conv": 3}, torch.float32)
    with torch.no_grad():
        _, state = layer(tokens(2, 1).float(), layer.init_state(2))
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in state.tensors())


@inner_models
@pytest.mark.parametrize("rows", [1, 3])
def test_a_compiled_step_is_the_step(inner: str, rows: int) -> None:
    """One graph for every phase, whether a mini-batch ends or not."""
    layer, x = build(inner, {"gate": True, "insert": 0.3}), tokens(rows, 2 * K)
    torch._dynamo.reset()  # what other tests compiled of the same code
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    state = layer.init_state(rows)
    state = other = state._replace(phase=torch.arange(rows, dtype=torch.float64) % K)
    with torch.no_grad():
        for t in range(2 * K):
            y, state = compiled(x[:, t : t + 1].clone(), state)
            expected, other = layer(x[:, t : t + 1], other)
            assert_close((y, state), (expected, other), 1e-12)
    assert graphs.frame_count == 1
    names = [str(node.target) for graph in graphs.graphs for node in graph.graph.nodes]
    assert "tttstream.step.default" in names, "the compiler must meet the step, not the forward of many tokens"
