"""The oracle of law 1 against three things that share nothing with it: a case worked by hand, a restatement in NumPy
with gradients by finite differences, and finite differences of the whole stream for the outer gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttstream_kernels import MLP, RMS, Conv, Direction, Inner, Linear, Muon, SwiGLU, SwiGLUDot, Update, definition
from tttstream_kernels.direction import QUINTIC

Array = NDArray[np.float64]
MODES: list[tuple[Inner, str, int]] = [
    (Linear(), "token", 2),
    (MLP(), "token", 3),
    (Linear(), "frame", 3),
    (MLP(), "frame", 2),
    (Conv(2, 2), "frame", 5),
    (SwiGLU(), "frame", 2),
    (SwiGLUDot(), "frame", 3),
]
modes = pytest.mark.parametrize(
    ("inner", "causal", "mini_batch"), MODES, ids=lambda value: getattr(value, "name", None)
)


def test_a_case_worked_by_hand() -> None:
    """D = 2, W = 0, b = (1, -1)/1000, so the variance of z is 1e-6, as much as epsilon, and x^ = (1, -1)/sqrt(2).

    With v = k the target is 0, l = 1/2 |x^|^2 = 1/2, u = x^ and s = sqrt(2)/1000, so
    G = [2 u - 0 - x^ (u . x^)] / (2 s) = x^ (2 - 1) / (2 s) = 250 (1, -1). The rate 2e-6 moves b to (1, -1)/2000 and
    the first row of W to -(1, -1)/2000 for k = (1, 0).
    """
    exact = partial(torch.tensor, dtype=torch.float64)
    row = [[[1.0, 0.0], [1.0, 0.0], [0.0, 3.0]]]
    k = exact(row)[:, :, None]
    q = exact([[[0.0, 2.0], [1.0, 0.0], [0.0, 2.0]]])[:, :, None]
    start = exact([[0.0, 0.0, 0.0, 0.0, 1e-3, -1e-3]])
    ones, zeros = exact([[1.0, 1.0]]), exact([[0.0, 0.0]])
    eta = exact([[[2e-6]] * 3])
    y, state, loss = definition.ttt(Linear(), q, k, k, eta, start, ones, zeros, mini_batch=2, causal="token")
    # the second token has the same gradient at the same weights: half of twice as much, so the same weights
    learned = exact([-5e-4, 5e-4, 0.0, 0.0, 5e-4, -5e-4])
    torch.testing.assert_close(start[0] + state.delta[0, 0], learned, rtol=1e-12, atol=0)
    # q = (0, 2) sees b alone, of variance eps / 4: x^ = (1, -1)/sqrt(5); q = k = (1, 0) sees 0
    x_hat = 5**-0.5
    seen = exact([[x_hat, 2.0 - x_hat], [1.0, 0.0]])
    torch.testing.assert_close(y[0, :2, 0], seen, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(loss.before[0, :, 0], exact([0.5, 0.5, 0.2]), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.after[0, :2, 0], exact([0.0, 0.0]), rtol=0, atol=1e-15)
    # the third token opens a mini-batch: s = sqrt(5)/2000, G = x^ (2 - 2/5) / (2 s) = 320 (1, -1)
    step = 2e-6 * 320 * exact([0.0, 0.0, 3.0, -3.0, 1.0, -1.0])
    torch.testing.assert_close(state.grad_sum[0, 0], step, rtol=1e-12, atol=1e-18)
    assert state.phase.tolist() == [1]


def model(inner: Inner, x: Array, flat: Array) -> Array:
    """g(x) of one head for the tokens of a frame [N, D], with loops where there is a neighbourhood."""
    width = x.shape[1]
    weights, begin = [], 0
    for rows, columns in inner.shapes(width):
        weights.append(flat[begin : begin + rows * columns].reshape(rows, columns))
        begin += rows * columns

    def gelu(z: Array) -> Array:
        return z / (1.0 + np.exp(-2.0 * np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))

    if isinstance(inner, SwiGLU):
        gate = x @ weights[0]
        return (gate / (1.0 + np.exp(-gate)) * (x @ weights[1])) @ weights[2]
    if isinstance(inner, Conv):
        z = np.empty_like(x)
        for j in range(len(x)):
            z[j] = weights[0][9] + weights[0][4] * x[j]
            for other in range(inner.height * inner.width):
                dy, dx = (a - b for a, b in zip(divmod(other, inner.width), divmod(j, inner.width), strict=True))
                if j < inner.height * inner.width and (dy, dx) != (0, 0) and max(abs(dy), abs(dx)) < 2:
                    z[j] += weights[0][3 * (dy + 1) + dx + 1] * x[other]
        return gelu(z) @ weights[1][:-1] + weights[1][-1]
    z = x @ weights[0][:-1] + weights[0][-1]
    return z if len(weights) == 1 else gelu(z) @ weights[1][:-1] + weights[1][-1]


def applied(inner: Inner, x: Array, flat: Array, gamma: Array, beta: Array) -> Array:
    """f(x)."""
    z = model(inner, x, flat)
    if not inner.residual:
        return z
    return x + gamma * (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-6) + beta


def turned(direction: Direction, x: Array, moment: Array) -> Array:
    """A step of one layer [rows, columns] after `direction`, flat: Muon by singular values."""
    length = np.linalg.norm(x)
    if isinstance(direction, RMS):
        y = x.ravel() / np.sqrt(moment + direction.damping * moment.mean())
        return y * length / np.linalg.norm(y)
    u, values, v = np.linalg.svd(x / length, full_matrices=False)
    for a, b, c in QUINTIC[-getattr(direction, "steps", 0) :]:
        values = a * values + b * values**3 + c * values**5
    size = getattr(direction, "size", None)
    return ((u * values) @ v).ravel() * (length / np.linalg.norm(values) if size is None else size)


def by_numbers(
    inner: Inner, q: Array, k: Array, v: Array, eta: Array, start: Array, gamma: Array, beta: Array,
    mini_batch: int, causal: str, tau: Array, update: Update,
) -> tuple[Array, Array]:  # fmt: skip
    """(outputs [T, D], weights [P] at the last mini-batch end) of one head; q, k, v [T, D], eta [T, rates]."""
    sizes = [rows * columns for rows, columns in inner.shapes(q.shape[1])]
    layer = np.repeat(np.arange(len(sizes)), sizes)  # of each weight
    last = slice(len(start) - sizes[-1], len(start))
    weights, momentum, sums, moment = start.copy(), *np.zeros((3, len(start)))
    outputs = []
    for begin in range(0, len(q), 1 if causal == "token" else mini_batch):
        here = slice(begin, begin + (1 if causal == "token" else mini_batch))
        place = begin % mini_batch
        for i in range(len(start)):
            rates = eta[here, layer[i] if inner.rates > 1 else 0]

            def cost(moved: Array, rates: Array = rates, here: slice = here) -> float:
                y = applied(inner, k[here], moved, gamma, beta)
                losses = 0.5 * ((y - v[here]) ** 2).sum(-1) if inner.residual else -(y * v[here]).sum(-1)
                return float(rates @ losses)

            change = 1e-5 * np.eye(len(start))[i]
            sums[i] += (cost(weights + change) - cost(weights - change)) / 2e-5
        scale, full = tau[place] if causal == "token" else 1.0 / mini_batch, place == mini_batch - 1
        seen = weights - update.momentum * momentum - scale * sums
        if causal == "frame" or full:
            momentum = update.momentum * momentum + scale * sums
            step = momentum.copy()
            if isinstance(update.direction, RMS):
                moment = update.direction.decay * moment + (scale * sums) ** 2
            for number, size in enumerate(inner.shapes(q.shape[1])):
                if update.direction is not None:
                    own = layer == number
                    step[own] = turned(update.direction, step[own].reshape(size), moment[own])
            stepped = weights - step
            outputs.append(applied(inner, q[here], stepped if causal == "frame" else seen, gamma, beta))
            weights = start + (1.0 - update.forget) * (stepped - start)
            if update.max_norm is not None:
                length = update.max_norm if update.restore else max(update.max_norm, np.linalg.norm(start[last]))
                ratio = length / np.linalg.norm(weights[last])
                weights[last] *= ratio if update.restore else min(ratio, 1.0)
            if update.columns:
                for number, (rows, columns) in enumerate(inner.shapes(q.shape[1])):
                    old, new = (x[layer == number].reshape(rows, columns) for x in (start, weights))
                    kept = new / np.linalg.norm(new, axis=0) * np.linalg.norm(old, axis=0)
                    weights[layer == number] = kept.ravel()
            sums = np.zeros_like(start)
        else:
            outputs.append(applied(inner, q[here], seen, gamma, beta))
    return np.concatenate(outputs), weights


def arguments(inner: Inner, tokens: int, width: int, rows: int = 1, heads: int = 1, seed: int = 0) -> list[Tensor]:
    """q, k, v, eta, start, gamma, beta."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    qkv = [random(rows, tokens, heads, width) for _ in range(3)]
    eta = 0.3 * random(rows, tokens, heads, inner.rates).abs()
    norm = [1.0 + 0.2 * random(heads, width), 0.2 * random(heads, width)]
    return [*qkv, eta, 0.5 * random(heads, inner.size(width)), *norm]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"forget": 0.2, "momentum": 0.5},
    {"forget": 0.1, "max_norm": 0.1},
    {"max_norm": 2.2},
    {"max_norm": 0.8, "restore": True, "momentum": 0.3},
    {"direction": Muon(), "momentum": 0.3},
    {"direction": Muon(size=0.4, steps=5)},
    {"direction": RMS(decay=0.7, damping=0.1), "momentum": 0.3},
]


@modes
def test_numpy_and_finite_differences_agree(inner: Inner, causal: str, mini_batch: int) -> None:
    tau = torch.tensor([0.9, 0.7, 0.2, 0.4, 0.1]).double()[:mini_batch] if causal == "token" else None
    for options in [*OPTIONS, *([{"columns": True}] if isinstance(inner, SwiGLU) else [])]:
        update = Update(**options)
        given = arguments(inner, 5 if causal == "token" else 2 * mini_batch, 3, rows=2, heads=2)
        found, state, _ = definition.ttt(inner, *given, mini_batch=mini_batch, causal=causal, tau=tau, update=update)
        learned = state.delta + given[4]
        for row in range(2):
            for head in range(2):
                streams = [x[row, :, head].numpy() for x in given[:4]]
                weights = [x[head].numpy() for x in given[4:]]
                scale = np.zeros(0) if tau is None else tau.numpy()
                y, w = by_numbers(inner, *streams, *weights, mini_batch, causal, scale, update)
                off = 1e-7 if update.direction is None else 5e-6  # directions enlarge errors of finite differences
                np.testing.assert_allclose(found[row, :, head].detach(), y, rtol=0, atol=off)
                np.testing.assert_allclose(learned[row, head].detach(), w, rtol=0, atol=off)


@modes
def test_outer_gradients_by_finite_differences(inner: Inner, causal: str, mini_batch: int) -> None:
    given = arguments(inner, 3 if causal == "token" else 2 * mini_batch, 3)
    update = Update(forget=0.1, momentum=0.4, max_norm=1.5, restore=True)

    def everything(*changed: Tensor) -> Tensor:
        y, state, loss = definition.ttt(inner, *changed, mini_batch=mini_batch, causal=causal, update=update)
        return torch.cat([part.flatten() for part in (y, *state[:3], *loss)])

    assert torch.autograd.gradcheck(everything, [x.requires_grad_() for x in given], fast_mode=True)
