"""The door of the op: every argument that does not fit is named; types, layouts and inputs are kept."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream.inner import CATALOGUE
from tttstream_kernels import (
    MLP,
    ConfigError,
    Conv,
    Inner,
    InnerState,
    Linear,
    ShapeError,
    SwiGLU,
    SwiGLUDot,
    TTTStreamError,
    Update,
    init_state,
    read,
    ttt,
)

B, T, H, D = 2, 8, 2, 6
INNERS: list[Inner] = [model.make((2, 2)) for model in CATALOGUE.values()]
every_inner = pytest.mark.parametrize("inner", INNERS, ids=lambda inner: inner.name)


def arguments(inner: Inner, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    streams = {name: random(B, T, H, D) for name in ("q", "k", "v")}
    eta = 0.1 * random(B, T, H, inner.rates).abs()
    return {**streams, "eta": eta, "start": random(H, inner.size(D)), "gamma": random(H, D), "beta": random(H, D)}


def call(inner: Inner, causal: str = "frame", **changed: Any) -> tuple[Tensor, InnerState, Any]:
    return ttt(inner, **{**arguments(inner), "mini_batch": 4, "causal": causal, **changed})


def state(inner: Inner, causal: str = "frame", update: Update | None = None) -> InnerState:
    return init_state(inner, B, H, D, update or Update(), causal, torch.zeros((), dtype=torch.float64))


@every_inner
@pytest.mark.parametrize("name", ["k", "v", "eta", "start", "gamma", "beta"])
def test_a_wrong_tensor_is_named(inner: Inner, name: str) -> None:
    good = arguments(inner)[name]
    for bad in (good[..., :-1], good[:-1], good[None]):
        with pytest.raises(ShapeError, match=rf"^{name}: expected shape .*{re.escape(str(list(bad.shape)))}"):
            call(inner, **{name: bad if name != "eta" or bad.dim() != 3 else bad[..., None]})
    with pytest.raises(ShapeError, match=rf"^{name}: expected a floating type, got torch.int64"):
        call(inner, **{name: good.long()})


TENSORS: list[tuple[Inner, dict[str, Any], str]] = [
    (Linear(), {"q": torch.zeros(B, T, H)}, "q: expected a floating tensor"),
    (Linear(), {"q": torch.zeros(B, T, H, D, dtype=torch.long)}, "q: expected a floating tensor"),
    (Linear(), {"q": torch.zeros(B, 0, H, D)}, "q: expected a floating tensor"),
    (Linear(), {"q": torch.zeros(0, T, H, D)}, "q: expected a floating tensor"),
    (Linear(), {"reset": torch.zeros(B, T + 1, dtype=torch.bool)}, "reset: expected shape"),
    (Linear(), {"reset": torch.zeros(B, T)}, "reset: expected bool"),
    (Linear(), {"lengths": torch.zeros(B + 1, dtype=torch.long)}, "lengths: expected shape"),
    (Linear(), {"lengths": torch.zeros(B)}, "lengths: expected whole numbers"),
    (Linear(), {"lengths": torch.tensor([4, 3])}, "lengths must be multiples of 4"),
    (Linear(), {"mini_batch": 3}, "whole frames: 8 tokens are no multiple of 3"),
    (Linear(), {"tau": torch.ones(5), "causal": "token"}, "tau: expected shape"),
    (Linear(), {"reset": torch.eye(B, T, dtype=torch.bool)}, "resets at frame starts only"),
    (Conv(3, 3), {}, "mini_batch: a grid of 3 x 3 tokens"),
    (Linear(), {"update": Update(max_norm=torch.ones(3))}, r"update.max_norm: expected a number or a tensor \[2\]"),
    (Linear(), {"update": Update(forget=torch.tensor(0.1))}, r"update.forget: expected a number or a tensor \[2\]"),
    (Linear(), {"state": state(MLP())}, "state.delta"),
    (Linear(), {"state": state(Linear(), "token")}, "state.grad_sum"),
    (Linear(), {"state": state(Linear(), update=Update(momentum=0.1))}, "state.momentum"),
    (Linear(), {"state": InnerState(*(x.float() for x in state(Linear())))}, "state.delta: expected torch.float64"),
    (Linear(), {"state": InnerState(*(x[:1] for x in state(Linear())))}, "state.delta"),
]
OPTIONS: list[tuple[Inner, dict[str, Any], str]] = [
    (Linear(), {"mini_batch": 0}, "mini_batch: expected at least 1"),
    (Linear(), {"causal": "block"}, 'causal: expected "token" or "frame", got \'block\''),
    (Linear(), {"tau": torch.ones(4)}, "tau: frame mode"),
    (Conv(2, 2), {"causal": "token"}, 'use causal="frame"'),
    (SwiGLU(), {"causal": "token"}, 'use causal="frame"'),
    (Linear(), {"update": Update(columns=True)}, "update.columns"),
    (Conv(2, 2), {"update": Update(columns=True)}, "update.columns"),
    (Linear(), {"update": Update(restore=True)}, "update.restore"),
    (Linear(), {"update": Update(step="fast")}, 'update.step: expected "plain" or "normalised"'),  # type: ignore[arg-type]
    (SwiGLUDot(), {"update": Update(margin=0.5)}, "update.margin: the loss of the swiglu_dot inner model"),
    (Linear(), {"update": Update(margin=-0.5)}, "update.margin: expected at least 0, got -0.5"),
    (SwiGLUDot(), {"update": Update(step="normalised")}, "update.step: the loss of the swiglu_dot inner model"),
    (Linear(), {"update": Update(direction="muon")}, "update.direction: expected Muon"),  # type: ignore[arg-type]
    (Linear(), {"update": Update(forget=1.5)}, "update.forget: expected 0 to 1, got 1.5"),
    (Linear(), {"update": Update(momentum=-0.1)}, "update.momentum: expected 0 to 1"),
    (Linear(), {"update": Update(max_norm=0.0)}, "update.max_norm: expected more than 0"),
    (Linear(), {"backend": "cuda"}, "unknown backend 'cuda': expected one of auto, definition, torch, triton"),
]
MISTAKES = [(*mistake, ShapeError) for mistake in TENSORS] + [(*mistake, ConfigError) for mistake in OPTIONS]


@pytest.mark.parametrize(("inner", "changed", "message", "kind"), MISTAKES, ids=[row[2] for row in MISTAKES])
def test_a_mistake_is_named(inner: Inner, changed: dict[str, Any], message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=message) as raised:
        call(inner, **changed)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, TTTStreamError)


def test_a_conv_needs_a_grid() -> None:
    with pytest.raises(ConfigError, match="0 x 3"):
        Conv(0, 3)


@every_inner
def test_inputs_are_not_changed_and_may_be_views(inner: Inner) -> None:
    for causal in ("frame", "token") if inner.token_causal else ("frame",):
        given = arguments(inner)
        old = InnerState(*(torch.ones_like(part) * 0.1 for part in state(inner, causal)))._replace(
            phase=torch.full([B], 2.0 if causal == "token" else 0.0, dtype=torch.float64)
        )
        before = [x.clone() for x in (*given.values(), *old)]
        y, new, loss = call(inner, causal, state=old, return_loss=True)
        assert all(torch.equal(a, b) for a, b in zip((*given.values(), *old), before, strict=True))
        turned = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in given.items()}
        views = call(inner, causal, state=old, return_loss=True, **turned)
        for a, b in zip((y, *new, *loss), (views[0], *views[1], *views[2]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_inner
def test_one_learning_rate_may_come_without_its_dimension(inner: Inner) -> None:
    if inner.rates == 1:
        given = arguments(inner)
        assert torch.equal(call(inner)[0], call(inner, eta=given["eta"][..., 0])[0])


@every_inner
def test_the_default_scale_is_one_over_i(inner: Inner) -> None:
    if inner.token_causal:
        tau = torch.tensor([1.0, 1 / 2, 1 / 3, 1 / 4], dtype=torch.float64)
        torch.testing.assert_close(call(inner, "token")[0], call(inner, "token", tau=tau)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_many_tokens_are_one_graph_for_the_compiler(inner: Inner) -> None:
    """Nothing is read on the host while a compiler looks on; NaN finds its way all the same."""
    given = arguments(inner)
    given["v"][0, 5] = torch.nan
    given = {name: x.requires_grad_() for name, x in given.items()}
    options: dict[str, Any] = {"mini_batch": 4, "update": Update(forget=0.1, max_norm=1.0), "return_loss": True}
    compiled = torch.compile(ttt, fullgraph=True, backend="eager")
    for learning in (False, True):
        with torch.set_grad_enabled(learning):
            results = [op(inner, **given, **options) for op in (ttt, compiled)]
        parts = [(y, *state, *(loss or ())) for y, state, loss in results]
        for expected, came in zip(*parts, strict=True):
            torch.testing.assert_close(came, expected, rtol=0, atol=1e-12, equal_nan=True)


@every_inner
def test_reading_is_what_the_next_token_sees_before_it_learns(inner: Inner) -> None:
    given = arguments(inner)
    _, now, _ = call(inner)
    weights = [given[name] for name in ("q", "k", "v", "start", "gamma", "beta")]
    y, loss = read(inner, *weights, state=now, mini_batch=4)
    still, _, unlearned = call(inner, state=now, eta=0.0 * given["eta"], return_loss=True)
    torch.testing.assert_close(y, still, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.before, unlearned.before, rtol=1e-10, atol=1e-10)
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[0, 4] = True
    y, _ = read(inner, *weights, state=now, mini_batch=4, reset=reset)
    fresh, _, _ = call(inner, eta=0.0 * given["eta"])
    torch.testing.assert_close(y[0, 4:], fresh[0, 4:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(y[1], still[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_reading_inside_a_mini_batch_is_what_its_last_token_saw(inner: Inner) -> None:
    given, update = arguments(inner), Update(momentum=0.5)
    cut = {name: given[name][:, :6] for name in ("q", "k", "v", "eta")}
    y, now, learned = call(inner, "token", **cut, update=update, return_loss=True)
    last = [given[name][:, 5:6] for name in ("q", "k", "v")]
    tau = 1.0 / torch.arange(1, 5, dtype=torch.float64)
    weights = [given[name] for name in ("start", "gamma", "beta")]
    read_y, loss = read(inner, *last, *weights, state=now, mini_batch=4, tau=tau, update=update)
    torch.testing.assert_close(read_y, y[:, 5:], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.after, learned.after[:, 5:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_an_idle_row_gives_zeros_and_keeps_its_state(inner: Inner, tokens: int) -> None:
    _, now, _ = call(inner, "token")
    streams = {name: arguments(inner)[name][:, :tokens] for name in ("q", "k", "v", "eta")}
    idle = torch.tensor([0, tokens])
    y, after, loss = call(inner, "token", **streams, state=now, lengths=idle, return_loss=True)
    for part in (y, loss.before, loss.after):
        assert part[0].abs().max() == 0.0
        assert part[1].abs().min() > 0.0
    for a, b in zip(after, now, strict=True):
        assert torch.equal(a[0], b[0])
