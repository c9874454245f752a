"""One token without a graph, for a host that knows the phases: what `token.one_token` gives, in a third of the calls.

A token is so little arithmetic that a step takes as long as its calls. So there is no call that the step can do
without: cells are laid out once, W_i is not formed (equation 8 with one token), tau is a number, the base of the rates
goes into the last product, and what belongs to the end of a mini-batch is left to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, native_layer_norm

from tttstream_kernels.activation import gelu
from tttstream_kernels.inner import Dense, flatten
from tttstream_kernels.norm import EPS
from tttstream_kernels.state import InnerState
from tttstream_kernels.update import Update, Weights

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_gelu_backward = torch.ops.aten.gelu_backward.default
_INPUT_ONLY = [True, False, False]


def covers(update: Update) -> bool:
    """Whether `step` has this update: all that happens when a mini-batch ends, nothing that acts inside it."""
    return not update.has_momentum and not update.normalised


class Token(NamedTuple):
    """One token of R cells (rows times heads): its q, k and v [3, R, 1, D], eta [R, 1, 1] before it is multiplied with
    `base`, tau at their places (a number, or [R, 1, 1]), and which rows' mini-batches it ends."""

    views: Tensor
    eta: Tensor
    base: float
    tau: float | Tensor
    ends: list[bool]


def step(
    inner: Dense, token: Token, start: Tensor, gamma: Tensor, beta: Tensor, update: Update, state: InnerState
) -> tuple[Tensor, InnerState]:
    """(outputs [R, 1, D], state); start [H, P], gamma and beta [H, D] as in `ttt`. All in the state's type."""
    views, eta, base, tau, ends = token
    q, k, v = views.unbind(0)
    cells, _, width = q.shape
    gamma, beta = gamma.unsqueeze(1), beta.unsqueeze(1)
    if len(ends) > 1:
        gamma, beta = gamma.repeat(len(ends), 1, 1), beta.repeat(len(ends), 1, 1)
    ones = _ones(cells, q.dtype)
    x_q, x_k, _ = torch.cat([views, ones], dim=-1).unbind(0)
    flat = start + state.delta
    weights, sums = _split(inner, flat, width), _split(inner, state.grad_sum, width)

    def with_one(hidden: Tensor) -> Tensor:
        return torch.cat([hidden, ones[0]], dim=-1)

    inputs, steps = gradients(weights, x_k, (k - v).add_(beta), gamma, eta, with_one)
    if len(weights) == 1:
        sums = (torch.addcmul(sums[0], x_k.mT, steps[0], value=base),)
        grad_sum = sums[0].view(flat.shape)
    else:
        grad_sum, before = torch.empty_like(flat), sums
        sums = _split(inner, grad_sum, width)
        for old, x, gradient, new in zip(before, inputs, steps, sums, strict=True):
            torch.addcmul(old, x.mT, gradient, value=base, out=new)
    x = x_q
    for weight, total in zip(weights, sums, strict=True):
        x = x if x is x_q else with_one(gelu(x))
        z = torch.bmm(x, weight)
        x = z.baddbmm_(x, total, alpha=-tau) if isinstance(tau, float) else z.addcmul_(x @ total, tau, value=-1)
    y = torch.addcmul(q + beta, gamma, native_layer_norm(x, (width,), None, None, EPS)[0])

    if True in ends:
        return y, _begun(inner, token, start, flat, update, InnerState(state.delta, grad_sum, *state[2:]))
    return y, InnerState(state.delta, grad_sum, state.momentum, state.phase + 1)


def gradients(
    weights: Weights, keys: Tensor, missed: Tensor, gamma: Tensor, eta: Tensor, with_one: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of one token (equations 3 and 5): (inputs [R, 1, rows], steps [R, 1, columns]) of each layer, whose
    outer products go to the sums. keys: with the one for the bias; missed: k - v + beta."""
    inputs, hidden = [keys], []
    z = torch.bmm(keys, weights[0])
    for weight in weights[1:]:
        hidden.append(z)
        inputs.append(with_one(gelu(z)))
        z = torch.bmm(inputs[-1], weight)
    width = (gamma.shape[-1],)
    z_hat, mean, rstd = native_layer_norm(z, width, None, None, EPS)
    u = torch.addcmul(missed, gamma, z_hat).mul_(gamma).mul_(eta)
    steps = [_layer_norm_backward(u, z, width, mean, rstd, None, None, _INPUT_ONLY)[0]]
    for weight, z in zip(weights[:0:-1], hidden[::-1], strict=True):
        steps.insert(0, _gelu_backward(torch.bmm(steps[0], weight[:, :-1].mT), z, approximate="tanh"))
    return inputs, steps


@lru_cache(maxsize=16)
def _ones(cells: int, dtype: torch.dtype) -> Tensor:
    """The one that q, k and v [3, R, 1, D] carry for the bias; nobody writes to it."""
    return torch.ones(3, cells, 1, 1, dtype=dtype)


def _split(inner: Dense, flat: Tensor, width: int) -> Weights:
    """`Inner.split`, in one call a layer where the tensor has no gaps."""
    if not inner.hidden:
        return (flat.reshape(-1, width + 1, width),)
    if not flat.is_contiguous():
        return inner.split(flat, width)
    shapes = inner.shapes(width)
    size, begin, cells = flat.shape[-1], flat.storage_offset(), flat.numel() // flat.shape[-1]
    weights = []
    for rows, columns in shapes:
        weights.append(flat.as_strided((cells, rows, columns), (size, columns, 1), begin))
        begin += rows * columns
    return tuple(weights)


def _begun(inner: Dense, token: Token, start: Tensor, flat: Tensor, update: Update, state: InnerState) -> InnerState:
    """From the state with the token's sums, its phase that before: rows whose mini-batch has ended begin the next."""
    shape, width = flat.shape, token.views.shape[-1]
    tau = token.tau if isinstance(token.tau, float) else token.tau.view(*shape[:2], 1)
    rule = update.rule(inner.split(start.expand_as(flat), width))
    settled = rule.settle(inner.split(flat - tau * state.grad_sum, width), in_place=True)[0]
    delta = flatten(settled).view(shape) - start
    begun = InnerState(delta, torch.zeros_like(flat), state.momentum, torch.zeros_like(state.phase))
    if all(token.ends):
        return begun
    return begun.where(torch.tensor(token.ends), state._replace(phase=state.phase + 1))
