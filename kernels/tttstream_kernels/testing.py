"""The oracle: TTT by its literal definition, with autograd for every inner gradient, one token and one head at a time.

Slow and plain on purpose, and independent of the ops: it shares no formula with them. Weights are a list of separate
(W, b, ...) tensors, the loss is written as in the paper, and the gradient is whatever autograd says. Below it, memory
of NaN around and under what a kernel is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream_kernels.inner import Conv, Inner
from tttstream_kernels.state import InnerState
from tttstream_kernels.update import Update

TOLERANCE: dict[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 3e-2,
}
"""The one tolerance table of all backends: largest error relative to the largest value, by compute type."""

Weights = list[Tensor]


class Definition(NamedTuple):
    """What the oracle returns: outputs [B, T, H, D], weights [B, H, P] at the start of the unfinished mini-batch,
    pending sums [B, H, P], momentum [B, H, P], phases [B], loss before and after [B, T, H]."""

    outputs: Tensor
    weights: Tensor
    pending: Tensor
    momentum: Tensor
    phase: list[int]
    before: Tensor
    after: Tensor


def separate(inner: Inner, flat: Tensor, width: int) -> Weights:
    """[P] -> W and b of each layer as tensors of their own."""
    weights: Weights = []
    begin = 0
    for rows, columns in inner.shapes(width):
        matrix = flat[begin : begin + rows * columns].view(rows, columns)
        begin += rows * columns
        weights += [matrix] if inner.name.startswith("swiglu") else [matrix[:-1], matrix[-1]]
    return weights


def joined(weights: Weights) -> Tensor:
    """The inverse of `separate`."""
    return torch.cat([weight.reshape(-1) for weight in weights])


def tanh_gelu(x: Tensor) -> Tensor:
    """Tanh-GELU, written out."""
    return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def layer_norm(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN with eps 1e-6, written out."""
    centred = z - z.mean(-1, keepdim=True)
    return gamma * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + beta


def g(inner: Inner, x: Tensor, weights: Weights) -> Tensor:
    """The inner model of maths.md on the tokens of one frame or on one token: [K, D] -> [K, D]."""
    if inner.name == "linear":
        w, b = weights
        return x @ w + b
    if inner.name == "mlp":
        w1, b1, w2, b2 = weights
        return tanh_gelu(x @ w1 + b1) @ w2 + b2
    if isinstance(inner, Conv):
        kernel, b1, w2, b2 = weights
        height, width = inner.height, inner.width
        grid = x[: height * width].view(height, width, -1)
        padded = F.pad(grid, (0, 0, 1, 1, 1, 1))
        taps = [padded[dy : dy + height, dx : dx + width] * kernel[3 * dy + dx] for dy in range(3) for dx in range(3)]
        z = torch.cat([sum(taps, torch.zeros_like(grid)).flatten(0, 1), x[height * width :] * kernel[4]])
        return tanh_gelu(z + b1) @ w2 + b2
    w0, w2, w1 = weights
    gate = x @ w0
    return (gate * torch.sigmoid(gate) * (x @ w2)) @ w1


def f(inner: Inner, x: Tensor, weights: Weights, gamma: Tensor, beta: Tensor) -> Tensor:
    """f = x + LN(g(x)), or f = g without residual."""
    z = g(inner, x, weights)
    return x + layer_norm(z, gamma, beta) if inner.residual else z


def losses(inner: Inner, k: Tensor, v: Tensor, weights: Weights, gamma: Tensor, beta: Tensor) -> Tensor:
    """The inner loss of each token [K]."""
    y = f(inner, k, weights, gamma, beta)
    return 0.5 * (y - v).square().sum(-1) if inner.residual else -(y * v).sum(-1)


def _number(value: float | Tensor, head: int) -> float | Tensor:
    return value[head] if isinstance(value, Tensor) else value


def _last_norm(inner: Inner, weights: Weights) -> Tensor:
    last = weights[-1:] if inner.name.startswith("swiglu") else weights[-2:]
    return torch.sqrt(sum((w.square().sum() for w in last), torch.zeros(()).to(last[0])))


class _Memory:
    """One head of one row, as the paper has it: weights that take gradient steps."""

    def __init__(self, inner: Inner, start: Tensor, width: int, update: Update, head: int) -> None:
        self.arguments = inner, start, width, update, head
        self.inner, self.update, self.head = inner, update, head
        self.start = separate(inner, start, width)
        self.weights = list(self.start)
        self.pending = [torch.zeros_like(w) for w in self.start]
        self.momentum = [torch.zeros_like(w) for w in self.start]
        self.phase = 0

    def fresh(self) -> _Memory:
        """One that has seen nothing."""
        return _Memory(*self.arguments)

    def resume(self, state: InnerState, row: int) -> None:
        """Go on from a row of a state."""
        inner, start, width, update, head = self.arguments
        self.weights = separate(inner, start + state.delta[row, head], width)
        if state.pending.shape[-1]:
            self.pending = separate(inner, state.pending[row, head], width)
        if update.has_momentum:
            self.momentum = separate(inner, state.momentum[row, head], width)
        self.phase = int(state.phase[row])

    def rate_factor(self) -> float | Tensor:
        if not self.update.follow:
            return 1.0
        return (_last_norm(self.inner, self.weights) / _last_norm(self.inner, self.start)) ** 2

    def gradient(self, loss: Callable[[Weights], Tensor]) -> Weights:
        """d loss / d weights at the weights that stand, differentiable in its turn."""
        weights = [w + torch.zeros_like(w).requires_grad_() for w in self.weights]
        return list(torch.autograd.grad(loss(weights), weights, create_graph=True))

    def seen(self, scale: float | Tensor) -> Weights:
        """The weights that queries see: W - mu M - scale S."""
        mu = _number(self.update.momentum, self.head)
        return [w - mu * m - scale * s for w, m, s in zip(self.weights, self.momentum, self.pending, strict=True)]

    def end(self, scale: float | Tensor) -> None:
        """A mini-batch is full: step, forgetting, norms."""
        update, head = self.update, self.head
        mu, forget = _number(update.momentum, head), _number(update.forget, head)
        self.momentum = [mu * m + scale * s for m, s in zip(self.momentum, self.pending, strict=True)]
        weights = [w - m for w, m in zip(self.weights, self.momentum, strict=True)]
        weights = [s + (1.0 - forget) * (w - s) for w, s in zip(weights, self.start, strict=True)]
        if update.longest is not None:
            length, own = _number(update.longest, head), _last_norm(self.inner, self.start)
            ratio = (length if update.restore or length > own else own) / _last_norm(self.inner, weights)
            if update.restore or ratio < 1.0:
                last = 1 if self.inner.name.startswith("swiglu") else 2
                weights = weights[:-last] + [ratio * w for w in weights[-last:]]
        if update.columns:
            weights = [w * s.norm(dim=0) / w.norm(dim=0) for w, s in zip(weights, self.start, strict=True)]
        self.weights = weights
        self.pending = [torch.zeros_like(w) for w in weights]
        self.phase = 0


def definition(
    inner: Inner,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    mini_batch: int,
    causal: str,
    tau: Tensor | None = None,
    state: InnerState | None = None,
    reset: Tensor | None = None,
    update: Update | None = None,
) -> Definition:
    """The literal definition. Arguments as those of `ttt`; q, k, v [B, T, H, D], float64."""
    update = Update() if update is None else update
    eta = eta[..., None] if eta.dim() == 3 else eta
    rows, _, heads, width = q.shape
    tau = 1.0 / torch.arange(1, mini_batch + 1).to(q) if tau is None else tau
    cells: list[tuple[Tensor, Tensor, Tensor, _Memory]] = []
    for row in range(rows):
        for head in range(heads):
            tokens = q[row, :, head], k[row, :, head], v[row, :, head], eta[row, :, head]
            resets = None if reset is None else reset[row]
            run = _tokens if causal == "token" else _frames
            memory = _Memory(inner, start[head], width, update, head)
            if state is not None:
                memory.resume(state, row)
            cells.append(run(memory, *tokens, gamma[head], beta[head], mini_batch, tau, resets))

    def stack(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).unflatten(0, (rows, heads))

    memories = [cell[3] for cell in cells]
    return Definition(
        outputs=stack([cell[0] for cell in cells]).transpose(1, 2),
        weights=stack([joined(memory.weights) for memory in memories]),
        pending=stack([joined(memory.pending) for memory in memories]),
        momentum=stack([joined(memory.momentum) for memory in memories]),
        phase=[memory.phase for memory in memories[::heads]],
        before=stack([cell[1] for cell in cells]).transpose(1, 2),
        after=stack([cell[2] for cell in cells]).transpose(1, 2),
    )


def _tokens(
    memory: _Memory,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mini_batch: int,
    tau: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, _Memory]:
    """One head of one row, token-causal: q, k, v [T, D], eta [T, 1]."""
    inner = memory.inner
    outputs, before, after = [], [], []
    for t in range(q.shape[0]):
        if reset is not None and bool(reset[t]):
            memory = memory.fresh()
        here = slice(t, t + 1)
        before.append(losses(inner, k[here], v[here], memory.weights, gamma, beta)[0])
        gradient = memory.gradient(lambda w: losses(inner, k[here], v[here], w, gamma, beta).sum())  # noqa: B023
        rate = eta[t, 0] * memory.rate_factor()
        memory.pending = [s + rate * d for s, d in zip(memory.pending, gradient, strict=True)]
        seen = memory.seen(tau[memory.phase])
        outputs.append(f(inner, q[here], seen, gamma, beta)[0])
        after.append(losses(inner, k[here], v[here], seen, gamma, beta)[0])
        memory.phase += 1
        if memory.phase == mini_batch:
            memory.end(tau[-1])
    return torch.stack(outputs), torch.stack(before), torch.stack(after), memory


def _frames(
    memory: _Memory,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mini_batch: int,
    tau: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, _Memory]:
    """One head of one row, frame-causal: q, k, v [T, D], eta [T, rates]."""
    inner = memory.inner
    outputs, before, after = [], [], []
    for begin in range(0, q.shape[0], mini_batch):
        if reset is not None and bool(reset[begin]):
            memory = memory.fresh()
        here = slice(begin, begin + mini_batch)
        before.append(losses(inner, k[here], v[here], memory.weights, gamma, beta))
        factor = memory.rate_factor()
        sums = [torch.zeros_like(w) for w in memory.weights]
        for j in range(mini_batch):
            gradient = memory.gradient(lambda w: losses(inner, k[here], v[here], w, gamma, beta)[j])  # noqa: B023
            rates = eta[begin + j].expand(len(sums)) if eta.shape[1] == 1 else eta[begin + j]
            sums = [s + factor * rate * d for s, rate, d in zip(sums, rates, gradient, strict=True)]
        memory.pending = sums
        seen = memory.seen(1.0 / mini_batch)
        outputs.append(f(inner, q[here], seen, gamma, beta))
        after.append(losses(inner, k[here], v[here], seen, gamma, beta))
        memory.end(1.0 / mini_batch)
    return torch.cat(outputs), torch.cat(before), torch.cat(after), memory


@contextmanager
def poisoned() -> Iterator[None]:
    """Whatever torch allocates here holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def framed(x: Tensor) -> Tensor:
    """The same numbers as a view into a larger tensor of NaN: no two dimensions lie side by side."""
    buffer = x.new_full([size + 4 for size in x.shape], torch.nan)
    view = buffer[tuple(slice(2, -2) for _ in x.shape)]
    view.copy_(x)
    return view
