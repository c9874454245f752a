"""Messages for users: every error is a TTTStreamError in one line, with the given and the expected value."""

import inspect
import pickle

import pytest
import torch

from tttstream import errors
from tttstream.errors import ConfigError, ShapeError, StateError, TTTStreamError
from tttstream.memory import build, names
from tttstream.testing import Case, cases

every_memory = pytest.mark.parametrize("case", cases(), ids=str)
every_kind = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", every_kind)
def test_one_root(kind: type[Exception]) -> None:
    assert issubclass(kind, TTTStreamError)
    assert kind.__doc__
    assert str(pickle.loads(pickle.dumps(kind("why")))) == "why"


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        ("ShapeError", ValueError),
        ("StateError", ValueError),
        ("SourceError", OSError),
        ("DependencyError", ImportError),
    ],
)
def test_also_the_error_of_python(kind: str, builtin: type[Exception]) -> None:
    assert issubclass(getattr(errors, kind), builtin)


@every_memory
def test_bad_arguments(case: Case) -> None:
    memory, tokens = case.memory(), 2 * case.unit
    x = case.stream(2, 2)
    rows = torch.zeros(2, dtype=torch.long)
    calls = {
        r"\[rows >= 1, tokens >= 1, 16\], got \(2, 0, 16\)": lambda: memory(x[:, :0]),
        rf"\[rows >= 1, tokens >= 1, 16\], got \(0, {tokens}, 16\)": lambda: memory(x[:0]),
        "x as a tensor, got ndarray": lambda: memory(x.numpy()),
        "reset as a tensor, got list": lambda: memory(x, reset=[[True] * tokens] * 2),
        "lengths as a tensor, got list": lambda: memory(x, lengths=[tokens, tokens]),
        rf"16\], got \(2, {tokens}, 15\)": lambda: memory(x[..., :15]),
        r"16\], got \(\d+, 16\)": lambda: memory(x[0]),
        "floating type, got torch.int64": lambda: memory(x.long()),
        rf"reset of shape \[2, {tokens}\].*got \(2,\)": lambda: memory(x, reset=torch.zeros(2, dtype=torch.bool)),
        "type bool.*torch.float64": lambda: memory(x, reset=torch.zeros(2, tokens, dtype=torch.float64)),
        r"lengths of shape \[2\].*got \(3,\)": lambda: memory(x, lengths=torch.zeros(3, dtype=torch.long)),
        "whole-number type.*float32": lambda: memory(x, lengths=torch.zeros(2)),
        f"between 0 and {tokens}, got": lambda: memory(x, lengths=rows + tokens + 1),
        "between 0 and .*, got .*-": lambda: memory(x, lengths=rows - case.unit),
    }
    for message, call in calls.items():
        with pytest.raises(ShapeError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.raises(StateError, match="3 rows, x has 2"):
        memory(x, memory.init_state(3))
    with pytest.raises(StateError, match=r"expected a state of this memory \(\w+\), got Tensor"):
        memory(x, torch.zeros(2, 3))


@pytest.mark.parametrize("case", [case for case in cases() if case.unit > 1], ids=str)
def test_frames_are_whole(case: Case) -> None:
    memory = case.memory()
    x = case.stream(2, 2)
    with pytest.raises(ShapeError):
        memory(x[:, 1:])
    with pytest.raises(ShapeError):
        memory(x, lengths=torch.tensor([case.unit + 1, case.unit]))
    reset = torch.zeros(2, 2 * case.unit, dtype=torch.bool)
    reset[1, 1] = True
    with pytest.raises(ShapeError):
        memory(x, reset=reset)


def test_unknown_memory() -> None:
    with pytest.raises(ConfigError, match="no memory 'mamba': expected one of ") as caught:
        build("mamba", dim=16)
    assert all(name in str(caught.value) for name in names())


@pytest.mark.parametrize("name", names())
def test_unknown_option(name: str) -> None:
    with pytest.raises(ConfigError, match=f"memory '{name}' has no option colour: it takes "):
        build(name, dim=16, heads=2, colour="red")


@pytest.mark.parametrize("name", [name for name in names() if name not in ("lstm", "gru")])
def test_heads_must_divide(name: str) -> None:
    options = {"grid": (2, 2)} if name in ("ttt_conv", "ttt_swiglu") else {}
    with pytest.raises(ConfigError, match="heads"):
        build(name, dim=16, heads=3, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("window", {"window": 1}, "at least 2 tokens, got 1"),
        ("lstm", {"layers": 0}, "layers = 0"),
        ("ttt_conv", {}, "grid"),
        ("ttt_swiglu", {}, "grid"),
        ("ttt_conv", {"causal": "token"}, "frame"),
        ("ttt_linear", {"mini_batch": 0}, "mini_batch"),
        ("mixed", {"rules": ["delta", "delta"]}, "without repetition"),
        ("mixed", {"rules": ["delta", "attention"]}, "constant memory"),
        ("ttt", {"rules": ["delta", "ttt_mlp"]}, "side by side in 'mixed'"),
        ("ttt_nested", {"block": 0}, "at least 1 token, got 0"),
        ("ttt_slots", {"slots": 0}, "at least 1 slot"),
        ("mamba2", {"state": 0}, "at least 1, got state = 0"),
        ("rwkv7", {"rank": 0}, "rank must be at least 1, got 0"),
        ("additive", {"conv": -1}, "conv is the width of a convolution, 0 for none, got -1"),
        ("delta", {"reach": 2.5}, "at most 2, got 2.5"),
        ("kernel_delta", {"features": 7}, "an even number of features and sharp above 0, got 7 and 1"),
        ("kernel_delta", {"sharp": 0.0}, "sharp above 0, got 64 and 0"),
        ("gated_delta", {"decay": "both"}, 'decay="scalar" or "channel", got \'both\''),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(name, dim=16, heads=2, **options)
