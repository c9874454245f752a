"""TTT by its definition: one row and one head at a time, the inner gradient of every token by autograd.

This module is meant to be read beside the paper, Sun et al., "Learning to (Learn at Test Time)", arXiv 2407.04620
(equations 1 to 6, sections 2.1 to 2.7), and it is the oracle of the tests. It shares no formula with the fast backends:
the weights are separate (W, b) tensors, the loss is written as in the paper, the gradient is what autograd returns.

    z_t = f(x_t; W_t)                                    (1)  output rule
    W_t = W_{t-1} - eta_t grad l(W_{t-1}; x_t)           (2)  update rule
    l(W; x_t) = |f(theta_K x_t; W) - theta_V x_t|^2      (3, 4)  the inner loss; here times 1/2
    z_t = f(theta_Q x_t; W_t)                            (5)
    W_t = W' - sum_s eta_s grad l(W'; x_s)               (6)  mini-batch TTT, W' the weights where the mini-batch began

q, k, v are the views theta_Q x, theta_K x, theta_V x. Section 2.7 sets f(x; W) = x + LN(g(x; W)).
`backend="definition"` runs it; it is slow.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream_kernels.direction import QUINTIC, RMS, Muon
from tttstream_kernels.inner import Conv, Inner
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Update

Weights = list[Tensor]


# ---- the inner models (section 2.7) ----------------------------------------------------------------------------------


def g(inner: Inner, x: Tensor, weights: Weights) -> Tensor:
    """The inner model on the tokens of one frame or on one token: [K, D] -> [K, D]."""
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
    if inner.name in ("swiglu", "swiglu_dot"):
        w0, w2, w1 = weights
        gate = x @ w0
        return (gate * torch.sigmoid(gate) * (x @ w2)) @ w1
    raise NotImplementedError(f"the definition does not know the {inner.name} inner model: add it here")


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form."""
    return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def layer_norm(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LN over the last dimension with eps 1e-6."""
    centred = z - z.mean(-1, keepdim=True)
    return gamma * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + beta


def f(inner: Inner, x: Tensor, weights: Weights, gamma: Tensor, beta: Tensor) -> Tensor:
    """f(x; W) = x + LN(g(x; W)); f = g for an inner model without residual."""
    z = g(inner, x, weights)
    return x + layer_norm(z, gamma, beta) if inner.residual else z


def losses(inner: Inner, k: Tensor, v: Tensor, weights: Weights, gamma: Tensor, beta: Tensor) -> Tensor:
    """The inner loss of each token [K] (equation 4): 1/2 |f(k) - v|^2; -<f(k), v> without residual."""
    y = f(inner, k, weights, gamma, beta)
    return 0.5 * (y - v).square().sum(-1) if inner.residual else -(y * v).sum(-1)


def newton_schulz(x: Tensor, steps: int) -> Tensor:
    """Apply polynomials a s + b s^3 + c s^5, one after another, to the singular values s of a matrix."""
    for a, b, c in QUINTIC[-steps:]:
        cube = x @ x.T @ x
        x = a * x + b * cube + c * (cube @ x.T @ x)
    return x


def objective(error: Tensor, margin: float | Tensor) -> Tensor:
    """1/2 D max(0, r - margin)^2, r the root mean square of the error [..., D] of a token (`Update.margin`)."""
    return 0.5 * (error.norm(dim=-1) - margin * error.shape[-1] ** 0.5).clamp(min=0.0).square()


# ---- the two modes ---------------------------------------------------------------------------------------------------


def token_mode(cell: Cell, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, reset: list[bool], tau: Tensor) -> Outputs:
    """One head of one row: q, k, v [T, D], eta [T, 1], tau [K]. Token i of a mini-batch sees the gradients of tokens
    1 .. i, all taken at the weights W' where the mini-batch began (equation 6)."""
    outputs, before, after = [], [], []
    for t in range(len(q)):
        if reset[t]:
            cell.restart()
        here = slice(t, t + 1)
        loss = cell.losses(k[here], v[here], cell.weights)[0]
        (descended,), (gradient,) = cell.gradients(k[here], v[here])
        cell.add([eta[t, 0] * part for part in gradient], eta[t, 0] * descended)
        seen = cell.seen(tau[cell.place])  # W_t = W' - tau_i sum_s eta_s grad l(W'; s)
        outputs.append(cell.output(q[here], seen)[0])  # z_t = f(q_t; W_t)
        before.append(loss)
        after.append(cell.losses(k[here], v[here], seen)[0])
        cell.place += 1
        if cell.place == len(tau):
            cell.end(cell.step(tau[-1]))
    return torch.stack(outputs), torch.stack(before), torch.stack(after)


def frame_mode(cell: Cell, q: Tensor, k: Tensor, v: Tensor, eta: Tensor, reset: list[bool], tokens: int) -> Outputs:
    """One head of one row: q, k, v [T, D], eta [T, rates]. A frame is one mini-batch of N tokens without an order:
    W_t = W_{t-1} - 1/N sum_j eta_j grad l(W_{t-1}; j), and every token of frame t sees W_t."""
    outputs, before, after = [], [], []
    for begin in range(0, len(q), tokens):
        if reset[begin]:
            cell.restart()
        here = slice(begin, begin + tokens)
        loss = cell.losses(k[here], v[here], cell.weights)
        descended, gradients = cell.gradients(k[here], v[here])
        for j, gradient in enumerate(gradients):
            rates = eta[begin + j].expand(len(gradient)) if eta.shape[1] == 1 else eta[begin + j]
            steps = [rate * part for rate, part in zip(rates, gradient, strict=True)]
            cell.add(steps, eta[begin + j, 0] * descended[j])
        seen = cell.step(1.0 / tokens)
        outputs.append(cell.output(q[here], seen))
        before.append(loss)
        after.append(cell.losses(k[here], v[here], seen))
        cell.end(seen)
    return torch.cat(outputs), torch.cat(before), torch.cat(after)


Outputs = tuple[Tensor, Tensor, Tensor]
"""Outputs [T, D], loss before and loss after [T]."""


class Cell:
    """The inner model of one head of one row: its weights, and what happens to them (`Update`).

    weights: W', where the mini-batch began. grad_sum: S, the sum of eta grad l(W') over the tokens of the mini-batch.
    momentum: M. place: tokens in the mini-batch so far.
    """

    def __init__(self, inner: Inner, start: Tensor, gamma: Tensor, beta: Tensor, update: Update, head: int) -> None:
        self.inner, self.gamma, self.beta, self.head = inner, gamma, beta, head
        self.update, self.mu = update, _number(update.momentum, head)
        self.start = separate(inner, start, len(gamma))
        self.restart()

    def restart(self) -> None:
        """Forget everything: the learned start."""
        self.weights = list(self.start)
        self.grad_sum = [torch.zeros_like(w) for w in self.start]
        self.loss_sum = self.start[0].new_zeros(())
        self.momentum = [torch.zeros_like(w) for w in self.start]
        self.moment = [torch.zeros_like(w) for w in self.start]
        self.place = 0

    def losses(self, k: Tensor, v: Tensor, weights: Weights) -> Tensor:
        """The loss of each token [K] at these weights."""
        return losses(self.inner, k, v, weights, self.gamma, self.beta)

    def objectives(self, k: Tensor, v: Tensor, weights: Weights) -> Tensor:
        """The loss of each token [K] whose gradient is the step: `losses`, or with a margin that of `objective`."""
        if not self.update.has_margin:
            return self.losses(k, v, weights)
        return objective(f(self.inner, k, weights, self.gamma, self.beta) - v, _number(self.update.margin, self.head))

    def output(self, q: Tensor, weights: Weights) -> Tensor:
        """f(q) at these weights."""
        return f(self.inner, q, weights, self.gamma, self.beta)

    def gradients(self, k: Tensor, v: Tensor) -> tuple[Tensor, list[Weights]]:
        """The objective of each token [K] at W', and the gradient of each by itself, which is differentiable."""
        with torch.enable_grad():
            weights = [w + torch.zeros_like(w).requires_grad_() for w in self.weights]
            each = self.objectives(k, v, weights)
            return each, [list(torch.autograd.grad(one, weights, create_graph=True)) for one in each]

    def add(self, step: Weights, loss: Tensor) -> None:
        """S <- S + eta grad l of one token; the sum of eta l likewise."""
        self.loss_sum = self.loss_sum + loss
        self.grad_sum = [s + part for s, part in zip(self.grad_sum, step, strict=True)]

    def scale(self, tau: float | Tensor) -> float | Tensor:
        """The factor of S: tau, or for a normalised step tau / (1 + tau |S|^2 / (2 sum eta l))."""
        if self.update.step == "plain":
            return tau
        square = torch.stack([s.square().sum() for s in self.grad_sum]).sum()
        return tau / (1.0 + tau * square / (2.0 * self.loss_sum + 1e-6))

    def seen(self, tau: float | Tensor) -> Weights:
        """The weights that queries see inside the mini-batch: W' - mu M - scale S."""
        scale = self.scale(tau)
        parts = zip(self.weights, self.momentum, self.grad_sum, strict=True)
        return [w - self.mu * m - scale * s for w, m, s in parts]

    def turned(self, total: Weights, step: Weights) -> Weights:
        """The step with its momentum after `Update.direction`, which gets (W, b) of each layer as one matrix."""
        direction, layers = self.update.direction, 2 if self.inner.bias else 1
        if direction is None:
            return total
        if isinstance(direction, RMS):
            self.moment = [direction.decay * v + s**2 for v, s in zip(self.moment, step, strict=True)]
        matrices: Weights = []
        for begin in range(0, len(total), layers):
            here = slice(begin, begin + layers)
            x, sizes = torch.cat([torch.atleast_2d(part) for part in total[here]]), [len(total[begin]), 1]
            own = torch.sqrt((x**2).sum() + 1e-12)
            if isinstance(direction, Muon):
                y = newton_schulz(x / own, direction.steps)
                y = y * (direction.size or own / torch.sqrt((y**2).sum() + 1e-12))
            else:
                assert isinstance(direction, RMS)
                v = torch.cat([torch.atleast_2d(part) for part in self.moment[here]])
                y = x / torch.sqrt(v + direction.damping * v.mean() + 1e-24)
                y = y * own / torch.sqrt((y**2).sum() + 1e-12)
            matrices += [part.view_as(old) for part, old in zip(y.split(sizes[:layers]), total[here], strict=True)]
        return matrices

    def step(self, tau: float | Tensor) -> Weights:
        """The mini-batch is full: the weights right after its step."""
        scale = self.scale(tau)
        step = [scale * s for s in self.grad_sum]
        self.momentum = [self.mu * m + s for m, s in zip(self.momentum, step, strict=True)]
        return [w - s for w, s in zip(self.weights, self.turned(self.momentum, step), strict=True)]

    def end(self, weights: Weights) -> None:
        """After the step: forget, bound the norm of the last layer, put column norms back."""
        update, start = self.update, self.start
        forget, last = _number(update.forget, self.head), 2 if self.inner.bias else 1
        weights = [s + (1.0 - forget) * (w - s) for w, s in zip(weights, start, strict=True)]
        if update.max_norm is not None:
            limit, own = _number(update.max_norm, self.head), _norm(start[-last:])
            ratio = (limit if update.restore or limit > own else own) / _norm(weights[-last:])
            if update.restore or ratio < 1.0:
                weights = weights[:-last] + [ratio * w for w in weights[-last:]]
        if update.columns:
            weights = [w * s.norm(dim=0) / w.norm(dim=0) for w, s in zip(weights, start, strict=True)]
        self.weights = weights
        self.grad_sum = [torch.zeros_like(w) for w in weights]
        self.loss_sum = torch.zeros_like(self.loss_sum)
        self.place = 0


def _number(value: float | Tensor, head: int) -> float | Tensor:
    return value[head] if isinstance(value, Tensor) else value


def _norm(weights: Weights) -> Tensor:
    """The joint norm of (W, b)."""
    return torch.sqrt(torch.stack([w.square().sum() for w in weights]).sum())


# ---- the op ----------------------------------------------------------------------------------------------------------


def ttt(
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
    causal: str = "token",
    tau: Tensor | None = None,
    state: InnerState | None = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
    update: Update | None = None,
) -> tuple[Tensor, InnerState, Loss]:
    """The definition of `tttstream_kernels.ttt`, with the same arguments. Returns (outputs [B, T, H, D], state, loss
    [B, T, H])."""
    update = Update() if update is None else update
    eta = eta[..., None] if eta.dim() == 3 else eta
    rows, tokens, heads, _ = q.shape
    tau = 1.0 / torch.arange(1, mini_batch + 1).to(q) if tau is None else tau
    counts = [tokens] * rows if lengths is None else lengths.tolist()
    outputs, cells = [], []
    for row in range(rows):
        resets = [False] * tokens if reset is None else reset[row].tolist()
        for head in range(heads):
            cell = Cell(inner, start[head], gamma[head], beta[head], update, head)
            if state is not None:
                _resume(cell, state, row, mini_batch)
            cells.append(cell)
            own_q, own_k, own_v, own_eta = (x[row, : counts[row], head] for x in (q, k, v, eta))
            if not counts[row]:
                outputs.append([q.new_zeros(size) for size in (q[row, :, head].shape, (tokens,), (tokens,))])
                continue
            if causal == "token":
                parts = token_mode(cell, own_q, own_k, own_v, own_eta, resets, tau)
            else:
                parts = frame_mode(cell, own_q, own_k, own_v, own_eta, resets, mini_batch)
            missing = tokens - counts[row]
            outputs.append([F.pad(x, (0, 0, 0, missing) if x.dim() == 2 else (0, missing)) for x in parts])

    def stack(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).unflatten(0, (rows, heads))

    y, before, after = (stack(list(part)).transpose(1, 2) for part in zip(*outputs, strict=True))
    delta = stack([joined(cell.weights) for cell in cells]) - start
    loss_sum = stack([cell.loss_sum[None] for cell in cells])
    sums, momentum, moment = (
        stack([joined(getattr(c, part)) for c in cells]) for part in ("grad_sum", "momentum", "moment")
    )
    carried = [part for part, has in ((momentum, update.has_momentum), (moment, update.has_moment)) if has]
    new = InnerState(
        delta,
        sums[..., :0] if causal == "frame" else torch.cat([sums, loss_sum], -1) if update.normalised else sums,
        torch.cat(carried or [momentum[..., :0]], -1),
        torch.tensor([cell.place for cell in cells[::heads]]).to(delta),
    )
    return y, new, Loss(before, after)


def _resume(cell: Cell, state: InnerState, row: int, mini_batch: int) -> None:
    """Continue from a row of a state; a row whose phase is not finite is lost, and any place will do."""
    inner, width = cell.inner, len(cell.gamma)
    delta = separate(inner, state.delta[row, cell.head], width)
    cell.weights = [w + d for w, d in zip(cell.start, delta, strict=True)]
    if state.grad_sum.shape[-1]:
        cell.grad_sum = separate(inner, state.grad_sum[row, cell.head], width)
        if cell.update.normalised:
            cell.loss_sum = state.grad_sum[row, cell.head, -1]
    carried = list(state.momentum[row, cell.head].split(inner.size(width)))
    if cell.update.has_momentum:
        cell.momentum = separate(inner, carried[0], width)
    if cell.update.has_moment:
        cell.moment = separate(inner, carried[-1], width)
    cell.place = int(state.phase[row].nan_to_num(0, 0, 0)) % mini_batch


def separate(inner: Inner, flat: Tensor, width: int) -> Weights:
    """[P] -> W and b of each layer as tensors of their own."""
    weights: Weights = []
    begin = 0
    for rows, columns in inner.shapes(width):
        matrix = flat[begin : begin + rows * columns].view(rows, columns)
        begin += rows * columns
        weights += [matrix[:-1], matrix[-1]] if inner.bias else [matrix]
    return weights


def joined(weights: Weights) -> Tensor:
    """The inverse of `separate`."""
    return torch.cat([weight.reshape(-1) for weight in weights])
