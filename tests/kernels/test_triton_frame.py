"""Frame mode on Triton against the definition and the reference: values and all gradients, at sizes for the interpreter
where there is no GPU, at real ones under `-m gpu`. Fresh memory and what lies around the tokens hold NaN, so that what
a kernel leaves unwritten, or reads where it must not, is seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttstream_kernels import MLP, Conv, Inner, InnerState, Linear, Update, definition, init_state, ttt
from tttstream_kernels.testing import TOLERANCE, framed, poisoned

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels import frame_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES: list[tuple[Inner, int]] = [(Linear(), 5), (MLP(), 4), (Conv(2, 2), 7)]  # conv: three registers
LARGER: list[tuple[Inner, int]] = [(Linear(), 70), (MLP(), 40), (Conv(7, 5), 40)]  # frames of several tiles
modes = pytest.mark.parametrize(("inner", "tokens"), MODES, ids=lambda value: getattr(value, "name", value))
UPDATES: dict[str, dict[str, Any]] = {
    "plain": {},
    "number": {"forget": 0.1, "max_norm": 3.0},
    "per_head": {"forget": [0.1, 0.3], "max_norm": [7.0, 0.1]},
    "restore": {"forget": [0.0, 0.1], "max_norm": [3.0, 2.0], "restore": True},
}


class Case:
    """One call: random arguments in float64, of which each backend takes its own copy."""

    def __init__(
        self,
        inner: Inner,
        tokens: int,
        frames: int = 3,
        update: str = "plain",
        *,
        rows: int = 2,
        heads: int = 2,
        width: int = 16,
        resets: set[tuple[int, int]] = frozenset(),  # type: ignore[assignment]
        lengths: list[int] | None = None,
        aged: bool = True,
        seed: int = 0,
    ) -> None:
        self.inner, self.tokens = inner, tokens
        self.generator = torch.Generator().manual_seed(seed)
        stream = [rows, frames * tokens, heads]
        self.leaves = {name: self.random(*stream, width) for name in ("q", "k", "v")}
        self.leaves["eta"] = self.random(*stream).abs()
        self.leaves["start"] = 0.3 * self.random(heads, inner.size(width))
        self.leaves["gamma"] = 1.0 + 0.2 * self.random(heads, width)
        self.leaves["beta"] = 0.2 * self.random(heads, width)
        options = dict(UPDATES[update])
        self.learned = [name for name, value in options.items() if isinstance(value, list)]
        self.leaves |= {name: torch.tensor(options.pop(name)[:heads]).double() for name in self.learned}
        self.options = options
        self.leaves["delta"] = (0.2 if aged else 0.0) * self.random(rows, heads, inner.size(width))
        self.reset = None
        if resets:
            self.reset = torch.zeros(rows, frames * tokens, dtype=torch.bool)
            for row, frame in resets:
                self.reset[row, frame * tokens] = True
        self.lengths = None if lengths is None else torch.tensor(lengths) * tokens

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def copies(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        """The leaves with q, k and v in a type, the rest in float32, or all in float64."""
        found = {}
        for name, leaf in self.leaves.items():
            rounded = leaf.to(dtype) if name in ("q", "k", "v") else leaf.float()
            found[name] = (leaf if dtype == torch.float64 else rounded).to(device).detach().requires_grad_()
        return found

    def update(self, leaves: dict[str, Tensor]) -> Update:
        return Update(**self.options, **{name: leaves[name] for name in self.learned})

    def state(self, leaves: dict[str, Tensor]) -> InnerState:
        rows, heads, _ = leaves["delta"].shape
        width = leaves["q"].shape[-1]
        fresh = init_state(self.inner, rows, heads, width, self.update(leaves), "frame", leaves["start"])
        return fresh._replace(delta=leaves["delta"])

    def run(
        self, leaves: dict[str, Tensor], backend: str, pieces: list[int] | None = None, losses: bool = True
    ) -> dict[str, Tensor]:
        """What the op gives when the stream comes in pieces of so many frames."""
        state, outputs, begin = self.state(leaves), [], 0
        device = leaves["q"].device
        total = leaves["q"].shape[1]
        for size in pieces or [total // self.tokens]:
            here = slice(begin, begin + size * self.tokens)
            left = None if self.lengths is None else (self.lengths - begin).clamp(0, size * self.tokens).to(device)
            y, state, loss = ttt(
                self.inner,
                *(leaves[name][:, here] for name in ("q", "k", "v", "eta")),
                *(leaves[name] for name in ("start", "gamma", "beta")),
                mini_batch=self.tokens,
                causal="frame",
                state=state,
                reset=None if self.reset is None else self.reset[:, here].to(device),
                lengths=left,
                update=self.update(leaves),
                return_loss=losses,
                backend=backend,
            )
            outputs.append((y, *loss) if loss is not None else (y,))
            begin = here.stop
        parts = [torch.cat(part, dim=1) for part in zip(*outputs, strict=True)]
        return {**dict(zip(("y", "before", "after"), parts, strict=False)), "delta": state.delta, "phase": state.phase}

    def kernels(self, dtype: torch.dtype = torch.float32, pieces: list[int] | None = None) -> dict[str, Tensor]:
        """Values and gradients on Triton."""
        leaves = self.copies(dtype, DEVICE)
        for name in ("q", "k", "v", "eta"):
            leaves[name] = framed(leaves[name].detach()).requires_grad_()
        with poisoned():
            values = self.run(leaves, "triton", pieces)
            return self.with_gradients(leaves, values)

    def reference(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The same from the reference in float64, on the inputs as they are in `dtype`."""
        leaves = {name: x.detach().double().requires_grad_() for name, x in self.copies(dtype).items()}
        return self.with_gradients(leaves, self.run(leaves, "torch"))

    def defined(self) -> dict[str, Tensor]:
        """The same from the definition; it knows no lengths."""
        leaves = {name: x.detach().double().requires_grad_() for name, x in self.copies(torch.float32).items()}
        y, state, loss = definition.ttt(
            self.inner,
            *(leaves[name] for name in ("q", "k", "v", "eta", "start", "gamma", "beta")),
            mini_batch=self.tokens,
            causal="frame",
            state=self.state(leaves),
            reset=self.reset,
            update=self.update(leaves),
        )
        values = {"y": y, "before": loss.before, "after": loss.after, "delta": state.delta, "phase": state.phase}
        return self.with_gradients(leaves, values)

    @staticmethod
    def with_gradients(leaves: dict[str, Tensor], values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The values, and gradients of a fixed random projection of all of them."""
        generator = torch.Generator().manual_seed(99)
        total = torch.zeros((), dtype=torch.float64)
        for name in ("y", "before", "after", "delta"):
            weight = torch.randn(values[name].shape, generator=generator, dtype=torch.float64)
            total = total + (values[name].double().cpu() * weight).sum()
        wanted = list(leaves.values())
        found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        return {**values, **{f"d_{name}": g for name, g in zip(leaves, found, strict=True)}}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = TOLERANCE[torch.float32]) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert expected.isfinite().all(), name
        largest = float(expected.detach().abs().amax())
        torch.testing.assert_close(
            ours[name].detach().cpu().double(),
            expected.detach().cpu().double(),
            rtol=0,
            atol=tolerance * max(1.0, largest),
            msg=lambda m, n=name: f"{n}: {m}",  # type: ignore[misc]
        )


@modes
def test_outputs_state_and_gradients_equal_the_definition(inner: Inner, tokens: int) -> None:
    """Rows that have learned, one of which is reset, and heads with updates of their own."""
    for case in (
        Case(inner, tokens, 2, heads=1, resets={(1, 1)}),
        Case(inner, tokens, 2, "per_head", rows=1),
    ):
        close(case.kernels(), case.defined())


@pytest.mark.parametrize("resets", [{(0, 0)}, {(0, 1)}, {(0, 2), (0, 4)}], ids=["first", "inside", "later"])
def test_groups_of_frames(resets: set[tuple[int, int]]) -> None:
    """Weights made again from checkpoints, with resets at the start of a group and inside."""
    case = Case(Linear(), 3, 5, "number", rows=1, heads=1, resets=resets)
    assert frame_triton.group_of(5) == 2
    close(case.kernels(), case.defined())


@pytest.mark.parametrize(("inner", "tokens"), MODES[1:], ids=lambda value: getattr(value, "name", value))
def test_groups_of_frames_that_settle_in_memory(inner: Inner, tokens: int) -> None:
    case = Case(inner, tokens, 4, "restore", rows=1, heads=1, resets={(0, 3)})
    close(case.kernels(), case.defined())


@pytest.mark.parametrize("update", ["plain", "number", "restore"])
@modes
def test_every_update(inner: Inner, tokens: int, update: str) -> None:
    case = Case(inner, tokens, 1, update, rows=1, heads=1)
    close(case.kernels(), case.reference())


@modes
def test_lengths(inner: Inner, tokens: int) -> None:
    """A row cut short with a reset beyond its end, an idle one, and one that is reset where it is idle."""
    case = Case(inner, tokens, 2, "per_head", rows=3, heads=1, lengths=[1, 0, 2], resets={(0, 1), (1, 0)})
    found = case.kernels()
    close(found, case.reference())
    assert torch.equal(found["delta"][1].detach().cpu(), case.leaves["delta"][1].float())


@pytest.mark.parametrize(("inner", "tokens"), LARGER, ids=lambda value: getattr(value, "name", value))
def test_frames_of_several_tiles(inner: Inner, tokens: int) -> None:
    case = Case(inner, tokens, 1, "number", rows=1, heads=1)
    for way in ("forward", "backward"):
        assert frame_triton.launch_options(inner.name, way, 16, tokens, torch.float32)["TILE"] < tokens
    close(case.kernels(), case.reference())


@pytest.mark.parametrize(("inner", "tokens", "width"), [(Linear(), 3, 64), (MLP(), 3, 32), (Conv(2, 1), 3, 32)])
def test_wider_heads(inner: Inner, tokens: int, width: int) -> None:
    case = Case(inner, tokens, 1, "number", rows=1, heads=1, width=width)
    close(case.kernels(), case.reference())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@modes
def test_half_precision(inner: Inner, tokens: int, dtype: torch.dtype) -> None:
    case = Case(inner, tokens, 1, "number", rows=1, heads=1)
    found = case.kernels(dtype)
    close(found, case.reference(dtype), TOLERANCE[dtype])
    assert found["y"].dtype == found["d_q"].dtype == found["d_v"].dtype == dtype
    assert all(found[name].dtype == torch.float32 for name in ("delta", "before", "d_eta", "d_start", "d_delta"))


@settings(max_examples=6)
@given(data=st.data())
def test_random_calls_and_their_partitions_equal_the_torch_backend(data: st.DataObject) -> None:
    """Random sizes, lengths, resets and partitions: pieces of a stream equal one call and the torch backend."""
    inner, tokens = data.draw(st.sampled_from([(Linear(), 1), (Linear(), 17), (MLP(), 3)]), "mode")
    pieces = data.draw(st.lists(st.integers(1, 2), min_size=1, max_size=2), "pieces")
    rows = data.draw(st.integers(1, 2), "rows")
    frames = sum(pieces)
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, frames - 1))
    resets = data.draw(st.sets(places, max_size=2), "resets")
    lengths = data.draw(st.none() | st.lists(st.integers(0, frames), min_size=rows, max_size=rows), "lengths")
    update = data.draw(st.sampled_from(sorted(UPDATES)), "update")
    case = Case(inner, tokens, frames, update, rows=rows, heads=1, resets=resets, lengths=lengths)
    close(case.kernels(pieces=pieces), case.reference())


@modes
def test_frame_by_frame(inner: Inner, tokens: int) -> None:
    """The step of a stream, without gradients: the same values, and the inputs stay as they are."""
    case = Case(inner, tokens, 3, "number", rows=1, heads=1, resets={(0, 1)})
    leaves = case.copies(torch.float32, DEVICE)
    before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    with torch.no_grad(), poisoned():
        whole, steps = case.run(leaves, "triton"), case.run(leaves, "triton", [1, 1, 1])
    close(steps, {name: value.cpu() for name, value in whole.items()})
    assert all(torch.equal(leaf, before[name]) for name, leaf in leaves.items())


@modes
def test_rows_do_not_mix_and_a_reset_ends_a_nan(inner: Inner, tokens: int) -> None:
    """NaN in the state of row 0 until its reset, and in the last frame of row 1."""
    case = Case(inner, tokens, 2, "number", rows=2, heads=1, resets={(0, 1)})
    leaves = case.copies(torch.float32, DEVICE)
    with torch.no_grad(), poisoned():
        good = case.run(leaves, "triton")
        leaves["delta"][0] = torch.nan
        leaves["k"][1, -1] = torch.nan
        bad = case.run(leaves, "triton")
    for name in ("y", "before", "after"):
        assert bad[name][0, :tokens].isnan().any()
        assert torch.equal(bad[name][0, tokens:], good[name][0, tokens:])
        assert torch.equal(bad[name][1, :-tokens], good[name][1, :-tokens])
    assert bad["y"][1, -tokens:].isnan().all()
    assert bad["delta"][1].isnan().all()
    assert torch.equal(bad["delta"][0], good["delta"][0])


def test_a_nan_state_of_a_row_that_is_reset_keeps_no_phase() -> None:
    case = Case(Linear(), 2, 2, rows=2, heads=1, resets={(0, 1)})
    leaves = case.copies(torch.float32, DEVICE)
    state = case.state(leaves)._replace(phase=torch.full((2,), torch.nan, device=DEVICE))
    given = [leaves[name] for name in ("q", "k", "v", "eta", "start", "gamma", "beta")]
    assert case.reset is not None
    for backend in ("triton", "torch"):
        options: dict[str, Any] = {"mini_batch": 2, "causal": "frame", "reset": case.reset.to(DEVICE)}
        phase = ttt(Linear(), *given, state=state, backend=backend, **options)[1].phase
        assert phase[0] == 0.0
        assert phase[1].isnan()


def test_views_of_any_stride() -> None:
    case = Case(Conv(2, 2), 5, 1, rows=2)
    leaves = case.copies(torch.float32, DEVICE)
    with torch.no_grad(), poisoned():
        expected = case.run(leaves, "triton")
        stacked = torch.stack([leaves[name] for name in ("q", "k", "v")], dim=3)
        views = dict(zip(("q", "k", "v"), stacked.unbind(3), strict=True))
        views["v"] = leaves["v"].transpose(0, 2).contiguous().transpose(0, 2)
        views["q"] = leaves["q"].mT.contiguous().mT
        views |= {name: leaves[name].mT.contiguous().mT for name in ("eta", "start", "gamma", "delta")}
        found = case.run({**leaves, **views}, "triton")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("part", ["y", "before", "after", "delta"])
def test_gradients_through_one_result_alone(part: str) -> None:
    case = Case(MLP(), 3, 1, "number", rows=1, heads=1)
    found = []
    for backend in ("triton", "torch"):
        leaves = case.copies(torch.float32, DEVICE if backend == "triton" else "cpu")
        value = case.run(leaves, backend, losses=part in ("before", "after"))[part]
        asked = [leaf for name, leaf in leaves.items() if (part, name) not in (("before", "q"), ("after", "q"))]
        grads = torch.autograd.grad((value * value).sum(), asked, allow_unused=True, materialize_grads=True)
        found.append({str(i): g for i, g in enumerate(grads)})
    close(*found)


def test_the_same_bits_again() -> None:
    """No atomic sums: a run repeats itself, so that a stream that was saved continues as it would have."""
    case = Case(Linear(), 5, 2, "number", rows=1)
    first, second = case.kernels(), case.kernels()
    assert all(torch.equal(second[name], value) for name, value in first.items())


REAL: list[tuple[Inner, int, int]] = [
    (Linear(), 64, 64),
    (Linear(), 200, 128),
    (MLP(), 64, 64),
    (MLP(), 33, 128),
    (Conv(14, 14), 200, 64),
    (Conv(8, 8), 64, 128),
    (Conv(16, 16), 256, 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("inner", "tokens", "width"), REAL, ids=lambda value: getattr(value, "name", value))
def test_real_sizes(inner: Inner, tokens: int, width: int, dtype: torch.dtype) -> None:
    case = Case(
        inner, tokens, 6, "per_head", rows=4, width=width, lengths=[6, 5, 0, 6], resets={(0, 2), (1, 4), (3, 0)}
    )
    case.leaves["eta"] = case.leaves["eta"] / width
    close(case.kernels(dtype), case.reference(dtype), TOLERANCE[dtype])


@pytest.mark.gpu
@modes
def test_the_step_in_a_cuda_graph(inner: Inner, tokens: int) -> None:
    """One frame, captured once and replayed over a stream with a reset: no allocation, no look at a value."""
    case = Case(inner, tokens, 6, "number", rows=2, resets={(1, 3)})
    leaves = case.copies(torch.float32, DEVICE)
    assert case.reset is not None
    reset = case.reset.to(DEVICE)
    with torch.no_grad():
        expected = case.run(leaves, "triton")
        state = case.state(leaves)
        tokens_in = [leaves[name][:, :tokens].clone() for name in ("q", "k", "v", "eta")]
        mask = reset[:, :tokens].clone()
        weights = [leaves[name] for name in ("start", "gamma", "beta")]
        old = InnerState(*(part.clone() for part in state))
        options: dict[str, Any] = {"mini_batch": tokens, "causal": "frame", "update": case.update(leaves)}

        def step() -> tuple[Tensor, InnerState]:
            y, new, _ = ttt(inner, *tokens_in, *weights, state=old, reset=mask, backend="triton", **options)
            return y, new

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, new = step()
        outputs = []
        for frame in range(6):
            here = slice(frame * tokens, (frame + 1) * tokens)
            for place, name in zip(tokens_in, ("q", "k", "v", "eta"), strict=True):
                place.copy_(leaves[name][:, here])
            mask.copy_(reset[:, here])
            graph.replay()
            outputs.append(y.clone())
            for part, value in zip(old, new, strict=True):
                part.copy_(value)
    torch.testing.assert_close(torch.cat(outputs, 1), expected["y"], rtol=0, atol=1e-5)
    torch.testing.assert_close(old.delta, expected["delta"], rtol=0, atol=1e-5)
