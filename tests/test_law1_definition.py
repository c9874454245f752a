"""Law 1: every op equals the literal autograd definition, float64: outputs, losses, final states and all gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttstream.inner import CATALOGUE
from tttstream_kernels import (
    MLP,
    RMS,
    Conv,
    Inner,
    InnerState,
    Linear,
    Muon,
    Update,
    definition,
    init_state,
    ttt,
)
from tttstream_kernels.testing import TOLERANCE

ROWS, HEADS, WIDTH = 2, 2, 6


class Mode(NamedTuple):
    """An inner model, with mini-batches or frames of `tokens` tokens."""

    inner: Inner
    causal: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.inner.name}-{self.causal}-{self.tokens}"

    @property
    def unit(self) -> int:
        """The number of tokens of a call is a multiple of this."""
        return 1 if self.causal == "token" else self.tokens


TOKEN_MODES = [Mode(Linear(), "token", 4), Mode(MLP(), "token", 4)]
FRAME_MODES = [
    Mode(Conv(2, 3), "frame", 6),
    Mode(Conv(2, 2), "frame", 7),  # three registers
    Mode(Conv(1, 1), "frame", 1),
    *(Mode(inner, "frame", 4) for name, model in CATALOGUE.items() if (inner := model.make((2, 2))) and name != "conv"),
]
UPDATES: dict[str, dict[str, Any]] = {
    "plain": {},
    "forget": {"forget": 0.1},
    "momentum": {"momentum": 0.6},
    "max_norm": {"max_norm": 3.0},
    "never_below_the_start": {"max_norm": 0.1},
    "restore": {"max_norm": 2.0, "restore": True},
    "per_head": {"forget": [0.1, 0.2], "momentum": [0.3, 0.6], "max_norm": [1.0, 1.2]},
    "all": {"forget": [0.1, 0.0], "momentum": 0.5, "max_norm": [3.0, 0.5], "restore": True},
    "columns": {"columns": True},
    "margin": {"margin": 0.7},
    "margin_per_head": {"forget": 0.1, "momentum": 0.5, "max_norm": 2.0, "step": "normalised", "margin": [0.5, 1.5]},
    "normalised": {"step": "normalised"},
    "all_normalised": {
        "forget": [0.1, 0.0],
        "momentum": 0.5,
        "max_norm": [3.0, 0.5],
        "restore": True,
        "step": "normalised",
    },
    "muon": {"direction": Muon()},
    "muon_of_a_size": {"direction": Muon(size=0.5), "max_norm": 2.0},
    "rms": {"direction": RMS(decay=0.8)},
    "all_muon": {"direction": Muon(), "momentum": 0.5, "forget": [0.1, 0.0], "max_norm": 2.0, "step": "normalised"},
    "all_rms": {"direction": RMS(), "momentum": [0.3, 0.6], "forget": 0.1, "max_norm": [3.0, 0.5], "restore": True},
    "large_chunks": {"direction": Muon(size=1.0, steps=5), "momentum": 0.5, "columns": True},
}
MIXED = [
    "plain",
    "all",
    "all_normalised",
    "all_muon",
    "all_rms",
    "large_chunks",
    "margin",
    "margin_per_head",
]

modes = pytest.mark.parametrize("mode", TOKEN_MODES + FRAME_MODES, ids=str)


class Case:
    """Random arguments of one call; every float is a leaf that requires a gradient."""

    def __init__(
        self, mode: Mode, tokens: int, update: str = "plain", seed: int = 0, phase: list[int] | None = None
    ) -> None:
        self.mode, inner = mode, mode.inner
        self.generator = torch.Generator().manual_seed(seed)
        sizes = {name: [ROWS, tokens, HEADS, WIDTH] for name in ("q", "k", "v")}
        self.leaves = {name: self.random(*size) for name, size in sizes.items()}
        self.leaves["eta"] = 0.3 * self.random(ROWS, tokens, HEADS, inner.rates).abs()
        self.leaves["start"] = 0.4 * self.random(HEADS, inner.size(WIDTH))
        self.leaves["gamma"] = 1.0 + 0.2 * self.random(HEADS, WIDTH)
        self.leaves["beta"] = 0.2 * self.random(HEADS, WIDTH)
        self.positional = list(self.leaves)
        if mode.causal == "token":
            self.leaves["tau"] = 0.1 + self.random(mode.tokens).abs()
        options = UPDATES[update]
        learned = {name: torch.tensor(value).double() for name, value in options.items() if isinstance(value, list)}
        self.leaves |= learned
        self.update = Update(**{**options, **learned})
        self.state = self.old(phase) if phase is not None else None
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def random(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def old(self, phase: list[int]) -> InnerState:
        """A state that has seen something, its rows at these phases; a mini-batch without tokens has no sums."""
        zeros = init_state(self.mode.inner, ROWS, HEADS, WIDTH, self.update, self.mode.causal, self.leaves["q"])
        for name in ("delta", "grad_sum", "momentum"):
            self.leaves[name + "_in"] = 0.3 * self.random(*getattr(zeros, name).shape)
        if self.update.normalised:
            self.leaves["grad_sum_in"][..., -1:].abs_()  # a sum of losses
        if self.update.has_moment:
            self.leaves["momentum_in"][..., -self.mode.inner.size(WIDTH) :].abs_()  # a sum of squares
        phases = torch.tensor(phase).double()
        delta, grad_sum, momentum = (self.leaves[name + "_in"] for name in ("delta", "grad_sum", "momentum"))
        for leaf in (delta, grad_sum, momentum):
            leaf.requires_grad_()
        return InnerState(delta, torch.where(phases[:, None, None] > 0, grad_sum, 0.0), momentum, phases)

    def op(self, pieces: list[int] | None = None, reset: Tensor | None = None) -> dict[str, Tensor]:
        """The result of the op for a stream in `pieces`."""
        state, outputs, begin = self.state, [], 0
        streams, weights = self.positional[:4], [self.leaves[name] for name in self.positional[4:]]
        for size in pieces or [self.leaves["q"].shape[1]]:
            here = slice(begin, begin + size)
            y, state, loss = ttt(
                self.mode.inner,
                *(self.leaves[name][:, here] for name in streams),
                *weights,
                mini_batch=self.mode.tokens,
                causal=self.mode.causal,
                tau=self.leaves.get("tau"),
                state=state,
                reset=None if reset is None else reset[:, here],
                update=self.update,
                return_loss=True,
            )
            assert loss is not None
            outputs.append((y, loss.before, loss.after))
            begin += size
        assert state is not None
        y, before, after = (torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True))
        return {"outputs": y, "before": before, "after": after, **state._asdict()}

    def defined(self, reset: Tensor | None = None) -> dict[str, Tensor]:
        """The result of the definition."""
        y, state, loss = definition.ttt(
            self.mode.inner,
            *(self.leaves[name] for name in self.positional),
            mini_batch=self.mode.tokens,
            causal=self.mode.causal,
            tau=self.leaves.get("tau"),
            state=self.state,
            reset=reset,
            update=self.update,
        )
        return {"outputs": y, "before": loss.before, "after": loss.after, **state._asdict()}

    def gradients(self, results: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradient of a fixed random projection of all results of a call, with respect to all its arguments."""
        generator = torch.Generator().manual_seed(99)
        total = torch.zeros((), dtype=torch.float64)
        for value in results.values():
            total = total + (value * torch.randn(value.shape, generator=generator, dtype=torch.float64)).sum()
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        return dict(zip(self.leaves, found, strict=True))

    def check(self, pieces: list[int] | None = None, reset: Tensor | None = None) -> None:
        """Op against definition, values and gradients."""
        ours, theirs = self.op(pieces, reset), self.defined(reset)
        close(ours, theirs)
        close(self.gradients(ours), self.gradients(theirs))


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        assert expected.isfinite().all(), name
        largest = float(expected.detach().abs().amax()) if expected.numel() else 0.0
        tolerance = TOLERANCE[torch.float64] * max(1.0, largest)
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def resets(tokens: int, at: set[tuple[int, int]]) -> Tensor:
    """A mask with the (row, token)s of `at` set."""
    mask = torch.zeros(ROWS, tokens, dtype=torch.bool)
    for row, token in at:
        mask[row, token] = True
    return mask


def fits(mode: Mode, update: str) -> bool:
    """Only matrices without biases have columns with norms; only a square has a normalised step or a margin."""
    options = UPDATES[update]
    if options.get("columns"):
        return not mode.inner.bias
    return mode.inner.residual or not {"step", "margin"} & options.keys()


@pytest.mark.parametrize("update", UPDATES)
@modes
def test_fresh(mode: Mode, update: str) -> None:
    if not fits(mode, update):
        return
    Case(mode, 11 if mode.unit == 1 else 3 * mode.unit, update).check()


@pytest.mark.parametrize("update", ["per_head", *MIXED])
@modes
def test_from_a_state(mode: Mode, update: str) -> None:
    if not fits(mode, update):
        return
    token = mode.causal == "token"
    for seed, phase in enumerate([[3, 1], [2, 2]] if token else [[0, 0]]):
        Case(mode, 11 if token else 2 * mode.unit, update, seed, phase).check()


@pytest.mark.parametrize("update", MIXED)
@modes
def test_resets(mode: Mode, update: str) -> None:
    if not fits(mode, update):
        return
    unit = mode.unit
    tokens = 11 if unit == 1 else 4 * unit
    at = {(0, 0), (0, 3), (1, 5), (1, 6), (1, 10)} if unit == 1 else {(0, 0), (0, 2 * unit), (1, 3 * unit)}
    Case(mode, tokens, update, phase=[3, 1] if mode.causal == "token" else [0, 0]).check(reset=resets(tokens, at))


@pytest.mark.parametrize("update", ["per_head", *MIXED])
@pytest.mark.parametrize("mode", TOKEN_MODES, ids=str)
def test_one_token(mode: Mode, update: str) -> None:
    if not fits(mode, update):
        return
    Case(mode, 1, update).check()
    for phase in ([0, 2], [3, 1], [3, 3]):  # a full mini-batch in none, one and both of the rows
        Case(mode, 1, update, phase=phase).check()
    Case(mode, 1, update, phase=[3, 2]).check(reset=resets(1, {(0, 0)}))


@pytest.mark.parametrize("mini_batch", [1, 2, 16])
@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_mini_batches_of_other_sizes(inner: Inner, mini_batch: int) -> None:
    Case(Mode(inner, "token", mini_batch), 19, "all", phase=[mini_batch - 1, mini_batch // 2]).check()


def test_long_rows_of_a_usual_size() -> None:
    for inner in (Linear(), MLP()):
        Case(Mode(inner, "token", 16), 50, "forget").check([17, 1, 20, 12])


@settings(max_examples=25)
@given(data=st.data(), mode=st.sampled_from(TOKEN_MODES + FRAME_MODES), update=st.sampled_from(sorted(UPDATES)))
def test_any_call(data: st.DataObject, mode: Mode, update: str) -> None:
    """Random lengths, cuts, phases and resets: the states between the pieces carry their gradient."""
    if not fits(mode, update):
        return
    token = mode.causal == "token"
    if token:
        mode = mode._replace(tokens=data.draw(st.integers(1, 5), "mini_batch"))
    pieces = [mode.unit * n for n in data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3), "pieces")]
    starts = list(range(0, sum(pieces), mode.unit))
    places = st.tuples(st.integers(0, ROWS - 1), st.sampled_from(starts))
    at = data.draw(st.sets(places, max_size=3), "resets")
    phases = st.lists(st.integers(0, mode.tokens - 1 if token else 0), min_size=ROWS, max_size=ROWS)
    phase = data.draw(st.none() | phases, "phase")
    seed = data.draw(st.integers(0, 999), "seed")
    Case(mode, sum(pieces), update, seed, phase).check(pieces, resets(sum(pieces), at) if at else None)


def test_lengths_are_rows_cut_short() -> None:
    for mode in TOKEN_MODES + FRAME_MODES:
        unit = mode.unit
        case = Case(mode, 5 * unit, "all")
        arguments = [case.leaves[name] for name in case.positional]
        options: dict[str, Any] = {"mini_batch": mode.tokens, "causal": mode.causal, "update": case.update}
        options["tau"] = case.leaves.get("tau")
        lengths = torch.tensor([3 * unit, 0])
        y, state, _ = ttt(mode.inner, *arguments, lengths=lengths, **options)
        cut = [x[:1, : 3 * unit] for x in arguments[:4]]
        expected, alone, _ = definition.ttt(mode.inner, *cut, *arguments[4:], **options)
        close({"y": y[:1, : 3 * unit], "delta": state.delta[:1]}, {"y": expected, "delta": alone.delta})
        assert not y[1].any()
        assert not y[0, 3 * unit :].any()
        assert not state.delta[1].any()
        assert state.phase.tolist() == [*alone.phase.tolist(), 0]
