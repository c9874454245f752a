"""The rows of the benchmark: their common interface, and the TTT ops on each of their backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from measure import Call, graphed
from torch import Tensor

from tttstream.inner import find
from tttstream_kernels import Inner, InnerState, Update, init_state, triton_unavailable, ttt

WIDTH, MINI_BATCH, GRID = 64, 16, (16, 16)
BACKWARD = 2
"""Operations of a backward pass divided by those of the forward pass: each product has two gradients."""


class Case(NamedTuple):
    """One line-up. what: forward, forward+backward or step. tokens: of each row; 1 for a step."""

    what: str
    tokens: int
    rows: int
    heads: int


class Work(NamedTuple):
    """The least that a call must move and compute."""

    bytes: float
    operations: float

    def floor(self, ceilings: dict[str, float]) -> tuple[float, str]:
        """(the least milliseconds for this work on the device, the resource that limits it)."""
        moving = self.bytes / ceilings["copy_gb_s"] / 1e6
        computing = self.operations / ceilings["matrix_tflop_s"] / 1e9
        return max(moving, computing), "bytes" if moving >= computing else "operations"


class Unable(Exception):
    """A contestant cannot run this case; the message says why."""


def captured(call: Call) -> Call:
    """The call in a CUDA graph. Raises Unable if the capture fails."""
    try:
        return graphed(call)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Unable(f"cannot be captured in a CUDA graph: {' '.join(str(error).split())[:200]}") from error


class Tokens:
    """Random streams that the contestants of a case share: q, k, v [B, T, H, D], rate [B, T, H] in 0 .. 1, and for
    cases with a backward pass the gradient of the outputs."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.case, self.device, self.dtype = case, device, dtype
        self.learning = case.what == "forward+backward"
        size = (case.rows, case.tokens, case.heads, WIDTH)
        self.q, self.k, self.v = (self.random(*size) for _ in range(3))
        self.rate = torch.rand(size[:3], device=device)
        self.upstream = self.random(*size).detach() if self.learning else None

    def random(self, *size: int) -> Tensor:
        """Random numbers in the type of the case; they require gradients if the case has a backward pass."""
        x = torch.empty(size, dtype=self.dtype, device=self.device).normal_()
        return x.requires_grad_(self.learning)

    def timed(self, forward: Callable[[], Tensor], wanted: list[Tensor]) -> Call:
        """The call that is timed: forward alone without a graph, or forward and the gradients of `wanted`.
        `forward` returns [B, T, H, D], or as many numbers in another shape."""
        if not self.learning:
            return torch.no_grad()(forward)

        def both() -> object:
            y = forward()
            assert self.upstream is not None
            return torch.autograd.grad(y, wanted, self.upstream.view(y.shape), allow_unused=True)

        return both


@dataclass
class Contestant:
    """One row of the table. name: as printed. family: the inner model, or the kind of another op."""

    name: str
    family: str

    def prepare(self, tokens: Tokens) -> Call:
        """The call to time. Raises Unable if this contestant cannot run the case."""
        raise NotImplementedError(f"{type(self).__name__} must define prepare")

    def work(self, case: Case, dtype: torch.dtype) -> Work | None:
        """The least work of the case, None if it is not counted."""
        return None

    def predicted(self, tokens: int, milliseconds: float, more: int) -> float:
        """Expected milliseconds for `more` tokens, from the time for `tokens`."""
        return milliseconds * more / tokens


class Recipe(NamedTuple):
    """An inner model with the default options of a layer; size: tokens of a mini-batch or frame."""

    inner: Inner
    causal: str
    size: int
    update: Update
    base_lr: float
    start: Tensor
    gamma: Tensor
    beta: Tensor

    @classmethod
    def of(cls, family: str, heads: int, device: torch.device) -> Recipe:
        """The recipe of an inner model by its name, with initial weights that are the same each time."""
        entry = find(family)
        inner = entry.make(GRID)
        causal = "frame" if entry.frame_only else "token"
        size = math.prod(GRID) if causal == "frame" else MINI_BATCH
        update = entry.update(entry.base_lr, WIDTH, size, causal)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = entry.init(inner, heads, WIDTH).to(device)
        gamma, beta = torch.ones(heads, WIDTH, device=device), torch.zeros(heads, WIDTH, device=device)
        return cls(inner, causal, size, update, entry.base_lr, start, gamma, beta)

    def eta(self, rate: Tensor) -> Tensor:
        """The inner learning rate of every token."""
        return rate.detach() * (self.base_lr / WIDTH)


@dataclass
class Op(Contestant):
    """`ttt` with the update and the initial weights that a layer has by default.

    way: reference (the torch backend), compiled (the same under torch.compile) or triton. captured: in a CUDA graph.
    longest: the largest number of tokens that is compiled; a step has one.
    """

    way: str
    captured: bool = False
    longest: int = 0

    def prepare(self, tokens: Tokens) -> Call:
        """See Contestant."""
        case = tokens.case
        recipe = Recipe.of(self.family, case.heads, tokens.device)
        reason = self._reason(recipe, case, tokens.device)
        if reason is not None:
            raise Unable(reason)
        op = torch.compile(ttt) if self.way == "compiled" else ttt
        backend = "triton" if self.way == "triton" else "torch"
        streams = [tokens.q, tokens.k, tokens.v, recipe.eta(tokens.rate)]
        learned = [*streams, *(x.clone() for x in (recipe.start, recipe.gamma, recipe.beta))]
        for x in learned:
            x.requires_grad_(tokens.learning)

        def run(state: InnerState | None) -> tuple[Tensor, InnerState]:
            y, new, _ = op(
                recipe.inner, *learned, mini_batch=recipe.size, causal=recipe.causal, state=state, update=recipe.update,
                backend=backend,
            )  # fmt: skip
            return y, new

        if case.what != "step":
            return tokens.timed(lambda: run(None)[0], learned)
        held = init_state(recipe.inner, case.rows, case.heads, WIDTH, recipe.update, recipe.causal, recipe.start)

        def step() -> Tensor:
            y, new = run(held)
            for old, part in zip(held, new, strict=True):
                old.copy_(part)  # the state is updated in place, as a CUDA graph requires
            return y

        call = torch.no_grad()(step)
        return captured(call) if self.captured else call

    def _reason(self, recipe: Recipe, case: Case, device: torch.device) -> str | None:
        """The reason why this case cannot run, None if it can."""
        if self.captured and device.type != "cuda":
            return "no GPU, so no CUDA graph"
        if self.way == "compiled" and (1 if case.what == "step" else case.tokens) > self.longest:
            return "compiling takes minutes, because the loop over mini-batches is unrolled: see --compile-tokens"
        if self.way != "triton":
            return None
        if device.type != "cuda":
            return "no GPU; Triton's interpreter checks correctness, not speed"
        return triton_unavailable(
            recipe.inner, recipe.causal, update=recipe.update, width=WIDTH, mini_batch=recipe.size, device=device
        )

    def work(self, case: Case, dtype: torch.dtype) -> Work:
        """Bytes: q, k, v and the rates are read and the outputs are written once, as are their gradients if needed, and
        the weights once in each call; a step of one token reads the weights, and reads and writes its sums. Operations:
        see `operations`."""
        entry = find(self.family)
        cells, parameters = case.rows * case.heads, entry.make(GRID).size(WIDTH)
        stream, rates = WIDTH * dtype.itemsize, 4
        moved = case.tokens * (4 * stream + rates) + 4 * parameters
        computed = case.tokens * operations(self.family)
        if case.what == "step":
            moved += 4 * parameters * (1 if entry.frame_only else 2)
        if case.what == "forward+backward":
            moved += case.tokens * (7 * stream + 2 * rates) + 4 * parameters
            computed *= 1 + BACKWARD
        return Work(cells * moved, cells * computed)


def operations(family: str) -> float:
    """Multiplications and additions for one token and head in the forward pass: keys and queries through the layers,
    steps back through all layers except the first, sums of inputs times steps; in token mode also the products of
    inputs with inputs in a mini-batch, and of these with the steps (equations 5 and 8 of kernels/README.md)."""
    d = WIDTH
    layers = {"linear": [(d, d)], "mlp": [(d, 4 * d), (4 * d, d)], "conv": [(9, d), (d, d)]}[family]
    products = [2.0 * rows * columns for rows, columns in layers]
    dual = 0.0 if family == "conv" else sum(2.0 * MINI_BATCH * (rows + columns) for rows, columns in layers)
    return 3 * sum(products) + sum(products[1:]) + dual


def difference(family: str, device: torch.device, dtype: torch.dtype) -> float:
    """Compare outputs and state of the Triton kernels with the torch backend in float32 on the same tokens: the largest
    difference divided by the largest value."""
    tokens = Tokens(Case("forward", 2 * math.prod(GRID), 1, 2), device, dtype)
    recipe = Recipe.of(family, tokens.case.heads, device)

    def run(backend: str, kind: torch.dtype) -> list[Tensor]:
        q, k, v = (x.to(kind) for x in (tokens.q, tokens.k, tokens.v))
        y, state, _ = ttt(
            recipe.inner, q, k, v, recipe.eta(tokens.rate), recipe.start, recipe.gamma, recipe.beta,
            mini_batch=recipe.size, causal=recipe.causal, update=recipe.update, backend=backend,
        )  # fmt: skip
        return [y.float(), state.delta]

    with torch.no_grad():
        pairs = zip(run("triton", dtype), run("torch", torch.float32), strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
