"""Law 5: one meaning, whatever the backend, the type and the compiler; one tolerance table; nothing falls back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream import TTTLayer
from tttstream.inner import CATALOGUE
from tttstream_kernels import (
    BackendError,
    ConfigError,
    Conv,
    Inner,
    InnerState,
    Linear,
    Muon,
    SwiGLU,
    Update,
    choose_backend,
    init_state,
    triton_unavailable,
    ttt,
)
from tttstream_kernels.backend import route
from tttstream_kernels.testing import TOLERANCE

ROWS, HEADS, WIDTH, K = 2, 2, 8, 4
LONGEST = 3.0
UPDATES = {
    "plain": Update(),
    "all": Update(forget=0.1, momentum=0.5, max_norm=LONGEST),
    "normalised": Update(forget=0.1, step="normalised"),
    "margin": Update(forget=0.1, max_norm=LONGEST, margin=0.7),
}
FRAME_INNERS: list[Inner] = [model.make((2, 2)) for model in CATALOGUE.values()]
TOKEN_INNERS = [inner for inner in FRAME_INNERS if inner.token_causal]
MODES = [*((inner, "token") for inner in TOKEN_INNERS), *((inner, "frame") for inner in FRAME_INNERS)]
modes = pytest.mark.parametrize(("inner", "causal"), MODES, ids=lambda value: getattr(value, "name", value))
LAYERS: list[dict[str, Any]] = [
    {"inner": "linear", "conv": 3, "gate": True},
    {"inner": "mlp", "unit_qk": True, "insert": 0.1},
    {"inner": "linear", "causal": "frame", "grid": (2, 2)},
    {"inner": "mlp", "causal": "frame", "grid": (2, 2)},
    {"inner": "conv", "causal": "frame", "grid": (2, 2), "registers": 1},
    {"inner": "swiglu", "causal": "frame", "grid": (2, 2)},
    {"inner": "swiglu_dot", "causal": "frame", "grid": (2, 2)},
]
layers = pytest.mark.parametrize("options", LAYERS, ids=lambda o: f"{o['inner']}-{o.get('causal', 'token')}")
SHORT = [(Linear(), "token"), (Conv(2, 2), "frame")]
"""The cases that `make test` compiles to machine code; g++ takes ten seconds for each, so the others are in `make
soak`."""
codes = [pytest.param(*mode, marks=() if mode in SHORT else pytest.mark.soak) for mode in MODES]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def arguments(inner: Inner, tokens: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Keyword arguments of `ttt`; streams in `dtype`, weights in float32 (or float64)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.float64 if dtype == torch.float64 else torch.float32

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    given = {name: random(ROWS, tokens, HEADS, WIDTH).to(dtype) for name in ("q", "k", "v")}
    given["eta"] = (0.1 * random(ROWS, tokens, HEADS, inner.rates).abs()).to(dtype)
    given["start"] = (0.3 * random(HEADS, inner.size(WIDTH))).to(weights)
    given["gamma"] = (1.0 + 0.1 * random(HEADS, WIDTH)).to(weights)
    given["beta"] = (0.1 * random(HEADS, WIDTH)).to(weights)
    return given


def updates(inner: Inner) -> list[Update]:
    """Those of `UPDATES` that this inner model has."""
    return [update for update in UPDATES.values() if inner.residual or not (update.normalised or update.has_margin)]


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Nested tuples of tensors, each to `tolerance` times its largest value (at least 1)."""
    if isinstance(theirs, tuple):
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, tolerance)
    elif theirs is not None and theirs.numel():
        largest = float(theirs.detach().abs().amax())
        torch.testing.assert_close(
            ours.double(), theirs.double(), rtol=0, atol=tolerance * max(1.0, largest), check_dtype=False
        )


def unrolled(
    call: Callable[..., Any], inner: Inner, causal: str, given: dict[str, Tensor], update: Update, piece: int
) -> tuple[Tensor, InnerState, Tensor, Tensor]:
    """Outputs, final state and losses when the stream comes in pieces, with a reset of row 1 at half time."""
    tokens = given["q"].shape[1]
    reset = torch.zeros(ROWS, tokens, dtype=torch.bool)
    reset[1, tokens // 2 if causal == "token" else tokens // 2 // K * K] = True
    state = init_state(inner, ROWS, HEADS, WIDTH, update, causal, given["start"])
    outputs, before, after = [], [], []
    for begin in range(0, tokens, piece):
        here = slice(begin, begin + piece)
        streams = {name: given[name][:, here] for name in ("q", "k", "v", "eta")}
        y, state, loss = call(
            inner,
            **streams,
            **{name: given[name] for name in ("start", "gamma", "beta")},
            mini_batch=K,
            causal=causal,
            state=state,
            reset=reset[:, here],
            update=update,
            return_loss=True,
        )
        outputs.append(y)
        before.append(loss.before)
        after.append(loss.after)
    return torch.cat(outputs, 1), state, torch.cat(before, 1), torch.cat(after, 1)


def check_compiled(inner: Inner, causal: str, update: Update, compiler: str) -> None:
    """One token or one frame a call, compiled as one graph, with a reset on the way."""
    tokens, piece = (10, 1) if causal == "token" else (4 * K, K)
    given = arguments(inner, tokens)
    compiled = torch.compile(ttt, fullgraph=True, backend=compiler)
    with torch.no_grad():
        expected = unrolled(ttt, inner, causal, given, update, piece)
        close(unrolled(compiled, inner, causal, given, update, piece), expected, TOLERANCE[torch.float32])


@modes
def test_the_step_as_one_graph(inner: Inner, causal: str) -> None:
    check_compiled(inner, causal, UPDATES["plain"], "aot_eager")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs g++ on a CPU")
@pytest.mark.parametrize(("inner", "causal"), codes, ids=lambda value: getattr(value, "name", value))
def test_the_step_as_machine_code(inner: Inner, causal: str) -> None:
    check_compiled(inner, causal, UPDATES["all"], "inductor")


@modes
def test_gradients_of_the_compiled_step(inner: Inner, causal: str) -> None:
    """With respect to every input and the incoming state, through the outgoing one."""
    given = {name: value.requires_grad_() for name, value in arguments(inner, 1 if causal == "token" else K).items()}
    update = UPDATES["all"]
    fresh = init_state(inner, ROWS, HEADS, WIDTH, update, causal, given["start"])
    generator = torch.Generator().manual_seed(1)
    state = InnerState(*(0.2 * torch.randn(part.shape, generator=generator) for part in fresh[:3]), fresh.phase + K - 1)
    if causal == "frame":
        state = state._replace(phase=fresh.phase)
    old = [part.requires_grad_() for part in state[:3] if part.numel()]
    results = []
    for call in (ttt, torch.compile(ttt, fullgraph=True, backend="aot_eager")):
        y, new, loss = call(inner, **given, mini_batch=K, causal=causal, state=state, update=update, return_loss=True)
        total = sum(part.square().sum() for part in (y, *new[:3], *loss))
        wanted = [value for name, value in given.items() if inner.residual or name not in ("gamma", "beta")]
        results.append(torch.autograd.grad(total, [*wanted, *old]))
    close(tuple(results[1]), tuple(results[0]), TOLERANCE[torch.float32])


@pytest.mark.parametrize("inner", TOKEN_INNERS, ids=lambda inner: inner.name)
def test_the_compiled_op_over_any_tokens(inner: Inner) -> None:
    """The general op plans on the host, so the compiler may break its graph; the result is the same."""
    given = arguments(inner, 6)
    compiled = torch.compile(ttt, backend="aot_eager")
    with torch.no_grad():
        expected = unrolled(ttt, inner, "token", given, UPDATES["plain"], 6)
        close(unrolled(compiled, inner, "token", given, UPDATES["plain"], 6), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@modes
def test_half_precision_streams_with_a_float32_state(inner: Inner, causal: str, dtype: torch.dtype) -> None:
    """Only inputs and outputs are rounded to half precision, never the memory."""
    given = arguments(inner, 3 * K, dtype)
    exact = {name: value.double() for name, value in given.items()}
    for update in updates(inner):
        y, state, *losses = unrolled(ttt, inner, causal, given, update, K)
        expected = unrolled(ttt, inner, causal, exact, update, K)
        assert y.dtype == dtype
        assert all(part.dtype == torch.float32 for part in (*state, *losses))
        close(y, expected[0], TOLERANCE[dtype])
        close((state, *losses), expected[1:], TOLERANCE[torch.float32])


@modes
def test_float32_against_float64(inner: Inner, causal: str) -> None:
    given = arguments(inner, 5 * K)
    exact = {name: value.double() for name, value in given.items()}
    for update in updates(inner):
        expected = unrolled(ttt, inner, causal, exact, update, K)
        close(unrolled(ttt, inner, causal, given, update, K), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@modes
def test_autocast_leaves_the_op_alone(inner: Inner, causal: str, dtype: torch.dtype) -> None:
    given = arguments(inner, 2 * K)
    for piece in (1, 2 * K) if causal == "token" else (K,):
        expected = unrolled(ttt, inner, causal, given, UPDATES["all"], piece)
        with torch.autocast("cpu", dtype):
            ours = unrolled(ttt, inner, causal, given, UPDATES["all"], piece)
        close(ours, expected, 0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@layers
def test_a_mixed_precision_training_step(options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = TTTLayer(16, HEADS, mini_batch=K, **options)
    units = 11 if layer.causal == "token" else 3
    x = torch.randn(ROWS, units * (1 if layer.causal == "token" else layer.tokens), 16)
    exact, end = layer(x)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    with torch.autocast("cpu", dtype):
        y, state = layer(x)
        loss = y.float().square().mean()
    assert y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for _, leaf in state.leaves())
    for ours, theirs in ((y, exact), (state.delta, end.delta)):  # the projections round, and learning adds it up
        error, size = (value.detach().double().square().mean().sqrt() for value in (ours - theirs, theirs))
        assert error < 2 * TOLERANCE[dtype] * size
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    scaler.step(optimizer)
    scaler.update()
    changed = [not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True) if b.requires_grad]
    assert all(changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@layers
def test_the_op_gets_the_type_that_autocast_computes_in(
    options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that kernels multiply in it; rates, weights and state stay float32. The same for a layer in that type."""
    seen: list[tuple[set[torch.dtype], set[torch.dtype]]] = []

    def spy(inner: Inner, *tensors: Tensor, **options: Any) -> Any:
        seen.append(({x.dtype for x in tensors[:3]}, {x.dtype for x in tensors[3:]}))
        return ttt(inner, *tensors, **options)

    monkeypatch.setattr("tttstream.memory.ttt.ttt", spy)
    layer = TTTLayer(16, HEADS, mini_batch=K, **options)
    x = torch.randn(ROWS, 2 * layer.tokens, 16)
    with torch.autocast("cpu", dtype):
        layer(x)
    layer(x)
    layer.to(dtype)(x.to(dtype))
    full = {torch.float32}
    assert seen == [({dtype}, full), (full, full), ({dtype}, full | {dtype})]


@layers
def test_training_in_mixed_precision_goes_as_in_float32(options: dict[str, Any]) -> None:
    """The training loss under autocast, step after step, is that of float32 but for one percent."""

    def train(enabled: bool) -> Tensor:
        torch.manual_seed(0)
        layer = TTTLayer(32, HEADS, mini_batch=K, **options)
        optimizer = torch.optim.Adam(layer.parameters(), lr=2e-2)
        losses = []
        for _ in range(15):
            x = torch.randn(ROWS, 4 * layer.tokens, 32)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                y, _ = layer(x)
                loss = (y.float() - x.roll(layer.tokens, 1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)

    exact, mixed = train(False), train(True)
    assert exact[-3:].mean() < exact[:3].mean(), "it trains at all"
    assert not torch.equal(exact, mixed)
    torch.testing.assert_close(mixed, exact, rtol=1e-2, atol=0)


@layers
def test_the_step_exports_with_its_state(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = TTTLayer(16, HEADS, mini_batch=K, **options)
    unit = 1 if layer.causal == "token" else layer.tokens
    x = torch.randn(ROWS, 10 * unit, 16)
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[0, 3 * unit] = True
    state = layer.init_state(ROWS)
    exported = torch.export.export(layer, (x[:, :unit], state, reset[:, :unit])).module()
    ours = theirs = state
    for begin in range(0, x.shape[1], unit):
        here = slice(begin, begin + unit)
        expected, theirs = layer(x[:, here], theirs, reset[:, here])
        y, ours = exported(x[:, here], ours, reset[:, here])
        assert type(ours) is type(state)
        close((y, *ours), (expected, *theirs), TOLERANCE[torch.float32])


def test_an_exported_step_is_saved_and_read_with_its_state(tmp_path: Any) -> None:
    layer = TTTLayer(16, HEADS, mini_batch=K)
    x, state = torch.randn(6, ROWS, 1, 16), layer.init_state(ROWS)
    torch.export.save(torch.export.export(layer, (x[0], state)), tmp_path / "step.pt2")
    loaded = torch.export.load(tmp_path / "step.pt2").module()
    ours = theirs = state
    for token in x:
        y, ours = loaded(token, ours)
        expected, theirs = layer(token, theirs)
        assert type(ours) is type(theirs)
        close((y, *ours), (expected, *theirs), TOLERANCE[torch.float32])


@modes
def test_an_explicit_backend_is_explicit(inner: Inner, causal: str) -> None:
    for tokens in (1, 2 * K) if causal == "token" else (K,):
        given = arguments(inner, tokens)
        reference = ttt(inner, **given, mini_batch=K, causal=causal, backend="torch")
        close(ttt(inner, **given, mini_batch=K, causal=causal), reference, TOLERANCE[torch.float32])
        with torch.no_grad():
            defined = ttt(inner, **given, mini_batch=K, causal=causal, backend="definition", return_loss=True)
        ours = ttt(inner, **given, mini_batch=K, causal=causal, backend="torch", return_loss=True)
        close(ours, defined, TOLERANCE[torch.float32])
        reason = triton_unavailable(inner, causal, width=WIDTH, mini_batch=K)
        assert reason is not None, "no kernel is for heads as narrow as these"
        with pytest.raises(BackendError, match=re.escape(f"backend='triton' cannot run: {reason}; use backend='auto'")):
            ttt(inner, **given, mini_batch=K, causal=causal, backend="triton")
        with pytest.raises(ConfigError, match="unknown backend 'gpu': expected one of auto, definition, torch, triton"):
            ttt(inner, **given, mini_batch=K, causal=causal, backend="gpu")


@modes
def test_the_choice_of_a_backend(inner: Inner, causal: str) -> None:
    assert choose_backend("torch", inner, causal) == "torch"
    assert choose_backend("auto", inner, causal, device="cpu") == "torch"
    reason = triton_unavailable(inner, causal, device="cpu")
    if reason is None:
        assert choose_backend("triton", inner, causal, device="cpu") == "triton"
    else:
        assert "\n" not in reason
        with pytest.raises(BackendError, match=r"use backend='auto' or 'torch'$"):
            choose_backend("triton", inner, causal, device="cpu")


REASONS: list[tuple[dict[str, Any], str]] = [
    ({"inner": SwiGLU(), "causal": "frame"}, "no Triton kernel for the swiglu inner model with causal='frame'"),
    ({"update": Update(momentum=torch.tensor([0.1, 0.2]))}, "no Triton kernel with update.momentum"),
    ({"update": Update(step="normalised")}, "no Triton kernel with update.step='normalised'"),
    ({"update": Update(direction=Muon())}, "no Triton kernel with update.direction"),
    ({"update": Update(margin=0.5)}, "no Triton kernel with update.margin"),
    ({"width": 24}, "heads are 24 wide, and the Triton kernels are for 16, 32, 64 and 128"),
    ({"mini_batch": 8}, "mini_batch is 8, and the Triton kernels are for 16, 32 and 64"),
    ({"dtype": torch.float64}, "the state is float64"),
]


@pytest.mark.parametrize(("call", "reason"), REASONS, ids=[reason for _, reason in REASONS])
def test_what_has_no_kernel_says_so(call: dict[str, Any], reason: str) -> None:
    call = {"inner": Linear(), "causal": "token", "device": "cuda", **call}
    found = triton_unavailable(**call)
    assert found is not None
    assert reason in found
    assert choose_backend("auto", **call) == "torch"
    with pytest.raises(BackendError, match=re.escape(reason)):
        choose_backend("triton", **call)


def test_a_call_says_how_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    calls: dict[str, dict[str, Any]] = {
        "one token": {"tokens": 1},
        "mini-batch by mini-batch": {"tokens": 2},
        "frame by frame": {"tokens": 4, "causal": "frame"},
    }
    for form, call in calls.items():
        assert str(route("auto", Linear(), device="cpu", **call)) == (
            f"torch (auto takes Triton on CUDA devices only), {form}"
        )
    assert route("definition", Linear()).form == "token by token"
    with caplog.at_level("DEBUG", logger="tttstream_kernels"):
        ttt(Linear(), **arguments(Linear(), 1), mini_batch=K, backend="torch")
    assert caplog.messages == ["ttt linear, token mode, 1 tokens: torch (asked for), one token"]
