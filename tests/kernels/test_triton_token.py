"""Token mode on Triton against the definition and the reference: values and all gradients, at sizes for the interpreter
where there is no GPU, at real ones under `-m gpu`. Fresh memory and what lies around the inputs hold NaN, so that an
element which a kernel leaves unwritten, or reads where it must not, is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttstream_kernels import MLP, Inner, InnerState, Linear, Update, definition, init_state, triton_unavailable, ttt
from tttstream_kernels.testing import TOLERANCE, framed, poisoned

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels import token_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INNERS: list[Inner] = [Linear(), MLP()]
HEADS = {"linear": 2, "mlp": 1}  # the interpreter takes seconds for more
inners = pytest.mark.parametrize("inner", INNERS, ids=lambda inner: inner.name)
no_number = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy, on NaN
UPDATES: dict[str, dict[str, Any]] = {
    "plain": {},
    "numbers": {"forget": 0.1, "max_norm": 3.0},
    "per_head": {"forget": [0.0, 0.3], "max_norm": [7.0, 0.1]},
    "all_forgotten": {"forget": [1.0, 0.2]},
    "restore": {"forget": [0.0, 0.1], "max_norm": [3.0, 2.0], "restore": True},
}


class Case:
    """One call: random arguments in float64, of which each backend takes its own copy."""

    def __init__(
        self, inner: Inner, tokens: int, update: str = "plain", *, rows: int = 3, heads: int | None = None,
        width: int = 16, mini_batch: int = 16, phases: list[int] | None = None,
        reset: set[tuple[int, int]] | None = None, lengths: list[int] | None = None,
        dtype: torch.dtype = torch.float32, seed: int = 0,
    ) -> None:  # fmt: skip
        self.inner, self.mini_batch, self.dtype, self.settings = inner, mini_batch, dtype, UPDATES[update]
        heads = HEADS[inner.name] if heads is None else heads
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        size = inner.size(width)
        self.leaves = {name: random(rows, tokens, heads, width).to(dtype).double() for name in ("q", "k", "v")}
        self.leaves["eta"] = 0.2 * random(rows, tokens, heads).abs()
        self.leaves["start"] = 0.3 * random(heads, size)
        self.leaves["gamma"] = 1.0 + 0.2 * random(heads, width)
        self.leaves["beta"] = 0.2 * random(heads, width)
        self.leaves["tau"] = 0.1 + 0.5 * random(mini_batch).abs()
        for name, value in self.settings.items():
            if isinstance(value, list):
                self.leaves[name] = torch.tensor(value[:heads]).double()
        self.phase = None if phases is None else torch.tensor(phases[:rows]).double()
        if self.phase is not None:
            self.leaves["delta"], self.leaves["pending"] = 0.2 * random(2, rows, heads, size)
        self.reset = None
        if reset is not None:
            self.reset = torch.zeros(rows, tokens, dtype=torch.bool)
            for row, token in reset:
                self.reset[row, token] = True
        self.lengths = None if lengths is None else torch.tensor(lengths[:rows])
        inside = torch.ones(rows, tokens, dtype=torch.bool)
        if self.lengths is not None:
            inside = torch.arange(tokens) < self.lengths[:, None]
        self.inside = inside[..., None]

    def copy(self, exact: bool) -> dict[str, Tensor]:
        """Leaves for one backend."""
        if exact:
            return {name: x.clone().requires_grad_() for name, x in self.leaves.items()}
        copies = {}
        for name, x in self.leaves.items():
            x = x.to(self.dtype if name in ("q", "k", "v") else torch.float32).to(DEVICE)
            copies[name] = framed(x).requires_grad_()
        return copies

    def options(self, leaves: dict[str, Tensor], like: torch.dtype, device: str) -> dict[str, Any]:
        """What all backends take besides tensors."""
        numbers = {name: leaves.get(name, value) for name, value in self.settings.items()}
        state = None
        if self.phase is not None:
            rows, _, heads, width = self.leaves["q"].shape
            phase = self.phase.to(device, like)
            pending = torch.where(phase[:, None, None] > 0, leaves["pending"], 0.0)
            empty = init_state(self.inner, rows, heads, width, Update(), "token", phase)
            state = InnerState(leaves["delta"], pending, empty.momentum, phase)
        return {"mini_batch": self.mini_batch, "tau": leaves["tau"], "state": state, "update": Update(**numbers)}

    def op(
        self, backend: str, pieces: list[int] | None = None, return_loss: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(what the op gives, its leaves), the stream in pieces."""
        exact = backend == "torch"
        leaves = self.copy(exact)
        device = "cpu" if exact else DEVICE
        options = self.options(leaves, torch.float64 if exact else torch.float32, device)
        state = options.pop("state")
        outputs, begin = [], 0
        with poisoned():
            for size in pieces or [self.leaves["q"].shape[1]]:
                here = slice(begin, begin + size)
                y, state, loss = ttt(
                    self.inner, *(leaves[name][:, here] for name in ("q", "k", "v", "eta")),
                    *(leaves[name] for name in ("start", "gamma", "beta")), state=state,
                    reset=None if self.reset is None else self.reset[:, here].to(device),
                    lengths=None if self.lengths is None else (self.lengths - begin).clamp(0, size).to(device),
                    return_loss=return_loss, backend=backend, **options,
                )  # fmt: skip
                outputs.append((y, loss.before, loss.after) if loss is not None else (y,))
                begin += size
        names = ("outputs", "before", "after")
        results = {name: torch.cat(parts, 1) for name, parts in zip(names, zip(*outputs, strict=True), strict=False)}
        results["outputs"] = torch.where(self.inside[..., None].to(device), results["outputs"], 0.0)
        return results | {"delta": state.delta, "pending": state.grad_sum, "phase": state.phase}, leaves

    def defined(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What the definition gives."""
        leaves = self.copy(exact=True)
        arguments = [leaves[name] for name in ("q", "k", "v", "eta", "start", "gamma", "beta")]
        options = self.options(leaves, torch.float64, "cpu")
        y, state, loss = definition.ttt(self.inner, *arguments, causal="token", reset=self.reset, **options)
        results = {"outputs": y, "before": loss.before, "after": loss.after}
        return results | {"delta": state.delta, "pending": state.grad_sum, "phase": state.phase}, leaves

    def check(self, theirs: Any, ours: Any = None) -> None:
        """Values and all gradients of a fixed random projection of everything that a call gives."""
        ours = self.op("triton") if ours is None else ours
        close(ours[0], theirs[0], self.dtype)
        with poisoned():
            found = gradients(*ours)
        close(found, gradients(*theirs), self.dtype)


def gradients(results: dict[str, Tensor], leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99)
    total = torch.zeros((), dtype=torch.float64)
    for name, value in results.items():
        if name != "phase":
            weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            total = total + (value.double().cpu() * weight).sum()
    inputs = list(leaves.values())
    found = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    return {f"gradient of {name}": x for name, x in zip(leaves, found, strict=True)}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], dtype: torch.dtype) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        if expected.numel():
            largest = max(1.0, float(expected.detach().abs().amax()))
            torch.testing.assert_close(
                ours[name].double().cpu(), expected, rtol=0, atol=TOLERANCE[dtype] * largest,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip


PHASES = [3, 0, 15]
RESETS = {(0, 0), (0, 5), (1, 20), (1, 21), (2, 40), (2, 1)}


@inners
@pytest.mark.parametrize("update", ["plain", "per_head"])
def test_outputs_state_and_gradients_equal_the_definition(inner: Inner, update: str) -> None:
    case = Case(inner, 30, update, rows=2, phases=[5, 15], reset={(1, 3), (0, 29)})
    case.check(case.defined())


@inners
@pytest.mark.parametrize("update", ["numbers", "all_forgotten", "restore"])
def test_outputs_state_and_gradients_equal_the_torch_backend(inner: Inner, update: str) -> None:
    case = Case(inner, 41, update, phases=PHASES, reset=RESETS, lengths=[41, 0, 30])
    case.check(case.op("torch"))


@inners
def test_a_fresh_state_equals_the_torch_backend(inner: Inner) -> None:
    case = Case(inner, 34, rows=1)
    case.check(case.op("torch"))


@inners
def test_without_the_losses(inner: Inner) -> None:
    case = Case(inner, 20, phases=PHASES)
    case.check(case.op("torch", return_loss=False), case.op("triton", return_loss=False))


@pytest.mark.parametrize("sizes", [(32, 16), (16, 32), (32, 64)], ids=str)
@inners
def test_other_widths_and_mini_batches_equal_the_torch_backend(inner: Inner, sizes: tuple[int, int]) -> None:
    width, mini_batch = sizes
    case = Case(inner, mini_batch + 10, "per_head", rows=1, width=width, mini_batch=mini_batch, phases=[11])
    case.check(case.op("torch"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@inners
def test_half_types(inner: Inner, dtype: torch.dtype) -> None:
    case = Case(inner, 20, "per_head", rows=2, phases=[3, 15], reset={(1, 4)}, dtype=dtype)
    ours = case.op("triton")
    assert ours[0]["outputs"].dtype == dtype
    assert ours[0]["delta"].dtype == torch.float32
    case.check(case.op("torch"), ours)


@settings(max_examples=4)
@given(data=st.data())
@inners
def test_any_partition(inner: Inner, data: st.DataObject) -> None:
    """Random cuts, phases, resets and lengths, the gradient going through the states between the pieces."""
    pieces = data.draw(st.lists(st.integers(1, 19), min_size=1, max_size=3), "pieces")
    tokens = sum(pieces)
    places = st.tuples(st.integers(0, 1), st.integers(0, tokens - 1))
    case = Case(
        inner, tokens, data.draw(st.sampled_from(sorted(UPDATES)), "update"), rows=2, heads=1,
        phases=data.draw(st.none() | st.lists(st.integers(0, 15), min_size=2, max_size=2), "phases"),
        reset=data.draw(st.none() | st.sets(places, max_size=3), "reset"),
        lengths=data.draw(st.none() | st.lists(st.integers(0, tokens), min_size=2, max_size=2), "lengths"),
        seed=data.draw(st.integers(0, 99), "seed"),
    )  # fmt: skip
    case.check(case.op("torch"), case.op("triton", pieces))


@inners
@pytest.mark.parametrize("update", ["plain", "numbers", "per_head", "restore"])
def test_steps_are_one_call(inner: Inner, update: str) -> None:
    """The fused step, which no gradient runs, against the reference in one call."""
    case = Case(inner, 19, update, phases=PHASES, reset={(0, 0), (1, 7), (2, 18)}, lengths=[19, 9, 0])
    expected = {name: value.detach() for name, value in case.op("torch")[0].items()}
    with torch.no_grad():
        close(case.op("triton", [1] * 19)[0], expected, case.dtype)
        close(case.op("triton", [1, 17, 1], return_loss=False)[0],
              {name: x for name, x in expected.items() if name not in ("before", "after")}, case.dtype)  # fmt: skip


@inners
@pytest.mark.parametrize("pieces", [[40], [9, 1, 1, 1, 17, 1, 1, 9]], ids=["one call", "steps"])
@no_number
def test_a_value_that_is_not_finite_does_not_spread(inner: Inner, pieces: list[int]) -> None:
    """It reaches no other row or head, no earlier token, and nothing after a reset."""
    case, bad = (Case(inner, 40, heads=2, phases=PHASES, reset={(1, 30)}) for _ in range(2))
    bad.leaves["v"][1, 9, 0, 3] = torch.nan
    bad.leaves["eta"][0, 11, 1] = torch.inf
    bad.leaves["q"][2, 12, 0, 0] = torch.nan
    with torch.no_grad():
        clean, dirty, reference = (c.op(b, p)[0] for c, b, p in (
            (case, "triton", pieces), (bad, "triton", pieces), (bad, "torch", None)))  # fmt: skip
    for name, value in dirty.items():
        if name != "before":  # a bad learning rate is no part of it, but marks it in a call of many tokens
            assert torch.equal(value.isfinite().cpu(), reference[name].isfinite()), name
        same = value.isfinite()
        torch.testing.assert_close(value[same], clean[name][same], rtol=0, atol=1e-5)
    broken = ~dirty["outputs"].isfinite().all(-1).cpu()
    assert broken.nonzero()[:, 0].unique().tolist() == [0, 1, 2]
    assert broken[1, :, 0].nonzero().flatten().tolist() == list(range(9, 30))
    assert broken[2].nonzero().tolist() == [[12, 0]]
    assert dirty["delta"][1].isfinite().all()
    assert not dirty["delta"][0, 1].isfinite().any()


@inners
@no_number
def test_padding_and_states_with_nan_have_no_effect(inner: Inner) -> None:
    """NaN beyond a row's length, and a state of NaN before a reset, change neither values nor gradients."""
    case = Case(inner, 20, phases=PHASES, reset={(0, 0), (1, 0)}, lengths=[20, 7, 0])
    bad = Case(inner, 20, phases=PHASES, reset={(0, 0), (1, 0)}, lengths=[20, 7, 0])
    for name in ("q", "k", "v", "eta"):
        bad.leaves[name][1, 7:] = torch.nan
        bad.leaves[name][2] = torch.nan
    bad.leaves["delta"][:2] = torch.nan
    bad.leaves["pending"][:2] = torch.nan
    ours, theirs = case.op("triton"), bad.op("triton")
    for one, other in ((ours[0], theirs[0]), (gradients(*ours), gradients(*theirs))):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0)


def test_strides_of_the_inputs_have_no_effect() -> None:
    """For any order of the inputs in memory."""
    for tokens in (1, 18):
        case = Case(Linear(), tokens, phases=PHASES, reset={(1, 0)}, lengths=[tokens, 1, tokens])
        leaves = case.copy(exact=False)
        turned = {name: x.mT.contiguous().mT if x.dim() > 1 else x for name, x in leaves.items()}
        masks = [None if x is None else x.to(DEVICE) for x in (case.reset, case.lengths)]
        results = []
        for leaf, (reset, lengths) in (
            (leaves, masks),
            (turned, (masks[0].mT.contiguous().mT, torch.stack([masks[1]] * 2, 1)[:, 0])),
        ):
            with torch.no_grad():
                y, state, _ = ttt(
                    Linear(), *(leaf[name] for name in ("q", "k", "v", "eta", "start", "gamma", "beta")),
                    **case.options(leaf, torch.float32, DEVICE), reset=reset, lengths=lengths, backend="triton",
                )  # fmt: skip
            results.append((y, *state))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_idle_row_keeps_its_state_bit_for_bit() -> None:
    for tokens in (1, 20):
        case = Case(Linear(), tokens, "numbers", phases=PHASES, lengths=[0, tokens, 0])
        with torch.no_grad():
            found, leaves = case.op("triton")
        for name in ("delta", "pending"):
            assert torch.equal(found[name][0], leaves[name][0])
        assert found["phase"].tolist()[::2] == PHASES[::2]
        assert not found["outputs"][0].any()


@inners
def test_inputs_stay_as_they_are(inner: Inner) -> None:
    for tokens in (1, 20):
        case = Case(inner, tokens, "per_head", phases=PHASES)
        with torch.no_grad():
            _, leaves = case.op("triton")
        for name, value in case.copy(exact=False).items():
            assert torch.equal(leaves[name], value), name


@inners
def test_a_mini_batch_in_several_blocks(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a whole one does not fit into a multiprocessor: its sums continue from block to block."""
    monkeypatch.setattr(token_triton, "block_of", lambda *_: 16)
    options: dict[str, Any] = {"mini_batch": 32, "heads": 1}
    resets = {(0, 40), (1, 16), (1, 20), (1, 37)}
    case = Case(inner, 75, "per_head", rows=2, phases=[21, 5], reset=resets, lengths=[70, 75], **options)
    case.check(case.op("torch"))
    case = Case(inner, 60, "restore", rows=1, phases=[31], **options)
    case.check(case.op("torch"), case.op("triton", [7, 53]))


@inners
@no_number
def test_a_value_that_is_not_finite_in_several_blocks(inner: Inner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_triton, "block_of", lambda *_: 16)
    case = Case(inner, 40, rows=2, heads=1, mini_batch=32, phases=[3, 0], reset={(0, 35)})
    case.leaves["v"][0, 9, 0, 3] = torch.nan
    case.leaves["k"][1, 20, 0, 0] = torch.inf
    with torch.no_grad():
        ours, reference = case.op("triton")[0], case.op("torch")[0]
    for name, value in ours.items():
        assert torch.equal(value.isfinite().cpu(), reference[name].isfinite()), name
    bad = ~ours["outputs"].isfinite().all(-1)[..., 0].cpu()
    assert [row.nonzero().flatten().tolist() for row in bad] == [list(range(9, 35)), list(range(20, 40))]


REAL = [(64, 16, 2048), (128, 16, 512), (64, 64, 1024), (128, 64, 512), (16, 32, 4096), (32, 16, 1024)]


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", REAL, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@inners
def test_real_sizes(inner: Inner, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    width, mini_batch, tokens = sizes
    if triton_unavailable(inner, width=width, mini_batch=mini_batch) is not None:
        pytest.skip("no kernel of this size")
    options: dict[str, Any] = {"width": width, "mini_batch": mini_batch, "heads": 2, "rows": 3, "dtype": dtype}
    case = Case(inner, tokens, "per_head", phases=PHASES, reset=RESETS, lengths=[tokens, 0, tokens - 30], **options)
    if inner.name == "mlp" and width == 16:  # the reference itself, in float32, misses the tolerance at full steps
        case.leaves["eta"] /= 8
    case.check(case.op("torch"))
