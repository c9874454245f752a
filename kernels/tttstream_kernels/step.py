"""One token without a graph, with phases known on the host: the results of `token.one_token` in a third of the calls.

A token needs so little arithmetic that the calls of operators take most of the time. So the step has as few calls as
possible: cells are laid out once, W_i is not formed (equation 8 with one token), tau is a number, the base learning
rate is a factor of a product, and work that belongs to the end of a mini-batch is done there. A mini-batch that begins
here is stored as factors (`factors.py`). A mini-batch that an earlier call has summed continues with its sum.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, native_layer_norm
from torch.nn import functional as F

from tttstream_kernels.factors import GradSum, Unfinished, summed
from tttstream_kernels.inner import Dense, flatten
from tttstream_kernels.norm import EPS, error_share
from tttstream_kernels.state import InnerState
from tttstream_kernels.update import Update, Weights, per_cell

_layer_norm_backward = torch.ops.aten.native_layer_norm_backward.default
_gelu_backward = torch.ops.aten.gelu_backward.default
_gelu_backward_into = torch.ops.aten.gelu_backward.grad_input
_gelu: Any = F.gelu
_INPUT_ONLY = [True, False, False]


def covers(update: Update) -> bool:
    """Whether `step` has this update: all that happens when a mini-batch ends, nothing that acts inside it."""
    return not update.has_momentum and not update.normalised and update.direction is None


class Token(NamedTuple):
    """One token of R cells (rows times heads): its q, k and v [3, R, 1, D], eta [R, 1, 1] before it is multiplied with
    `base`, K, tau at their places (a number, or [R, 1, 1]), whether it begins the mini-batches of all rows, and which
    rows' mini-batches it ends."""

    views: Tensor
    eta: Tensor
    base: float
    tokens: int
    tau: float | Tensor
    begins: bool
    ends: list[bool]


def step(
    inner: Dense, token: Token, start: Tensor, gamma: Tensor, beta: Tensor, update: Update, state: InnerState
) -> tuple[Tensor, InnerState]:
    """(outputs [R, 1, D], state); start [H, P], gamma and beta [H, D] as in `ttt`. All in the state's type."""
    gamma, beta = gamma.unsqueeze(1), beta.unsqueeze(1)
    if len(token.ends) > 1:
        gamma, beta = gamma.repeat(len(token.ends), 1, 1), beta.repeat(len(token.ends), 1, 1)
    taken = _slot(inner, token, start, state)
    x, state = (
        _with_sums(inner, token, start, gamma, beta, update, state)
        if taken is None
        else _with_factors(token, start, gamma, beta, update, state, *taken)
    )
    q = token.views[0]
    return torch.addcmul(q + beta, gamma, native_layer_norm(x, q.shape[2:], None, None, EPS)[0]), state


def _slot(inner: Dense, token: Token, start: Tensor, state: InnerState) -> tuple[Unfinished, int] | None:
    """The mini-batches of a state and the token's slot in them; None if an earlier call has summed them."""
    grad_sum = state.grad_sum
    if isinstance(grad_sum, GradSum):
        held = grad_sum.unfinished
        if held is not None and held.stands(start, state.delta):
            return held.take(grad_sum.count), grad_sum.count
    if token.begins:
        return Unfinished(inner, token.views.shape[-1], token.tokens, start, state.delta).take(0), 0
    return None


def _with_factors(
    token: Token,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    update: Update,
    state: InnerState,
    held: Unfinished,
    slot: int,
) -> tuple[Tensor, InnerState]:
    """z of the query, and the state, from the factors of the tokens before."""
    (q, k, v), tau, width = token.views.unbind(0), token.tau, token.views.shape[3:]
    weights, biases, inputs, steps = held.weights, held.biases, held.inputs, held.steps

    # the token's factors (equations 3 and 5)
    x, hidden = inputs[0].narrow(1, slot, 1).copy_(k), []
    z = torch.baddbmm(biases[0], x, weights[0])
    for layer in range(1, len(weights)):
        hidden.append(z)
        x = _gelu(z, approximate="tanh", out=inputs[layer].narrow(1, slot, 1))
        z = torch.baddbmm(biases[layer], x, weights[layer])
    z_hat, mean, rstd = native_layer_norm(z, width, None, None, EPS)
    error = (k - v).add_(beta).addcmul_(gamma, z_hat)
    eta = token.eta if not update.has_margin else token.eta * error_share(error, per_cell(update.margin, error))
    g = _layer_norm_backward(error.mul_(gamma), z, width, mean, rstd, None, None, _INPUT_ONLY)[0]
    g = steps[-1].narrow(1, slot, 1).addcmul_(g, eta, value=token.base)
    for layer in reversed(range(len(hidden))):
        back, out = torch.bmm(g, held.transposed[layer]), steps[layer].narrow(1, slot, 1)
        g = _gelu_backward_into(back, hidden[layer], approximate="tanh", grad_input=out)

    # the query's output (equation 8)
    x = q
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x if x is q else _gelu(x, approximate="tanh")
        z, scores = torch.baddbmm(bias, x, weight), torch.baddbmm(held.ones, x, held.turned[layer])
        if isinstance(tau, float):
            x = z.baddbmm_(scores, steps[layer], alpha=-tau)
        else:
            x = z.addcmul_(torch.bmm(scores, steps[layer]), tau, value=-1)

    if True not in token.ends:
        return x, InnerState(held.delta, GradSum.of(held, slot + 1), state.momentum, state.phase + 1)
    if update.columns or not isinstance(tau, float):
        return x, _ended(held.inner, token, start, held.flat, update, state._replace(grad_sum=held.sums(slot + 1)))
    after = held.ended(update, start, tau)
    return x, InnerState(after.delta, GradSum.of(after, 0), state.momentum, torch.zeros_like(state.phase))


def _with_sums(
    inner: Dense, token: Token, start: Tensor, gamma: Tensor, beta: Tensor, update: Update, state: InnerState
) -> tuple[Tensor, InnerState]:
    """The same from the sums of the tokens before."""
    views, eta, base, _, tau, _, ends = token
    q, k, v = views.unbind(0)
    cells, _, width = q.shape
    state = state._replace(grad_sum=summed(state.grad_sum))
    ones = _ones(cells, q.dtype)
    x_q, x_k, _ = torch.cat([views, ones], dim=-1).unbind(0)
    flat = start + state.delta
    weights, sums = _split(inner, flat, width), _split(inner, state.grad_sum, width)

    def with_one(hidden: Tensor) -> Tensor:
        return torch.cat([hidden, ones[0]], dim=-1)

    margin = per_cell(update.margin, q) if update.has_margin else None
    inputs, steps = gradients(weights, x_k, (k - v).add_(beta), gamma, eta, with_one, margin)
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
        x = x if x is x_q else with_one(_gelu(x, approximate="tanh"))
        z = torch.bmm(x, weight)
        x = z.baddbmm_(x, total, alpha=-tau) if isinstance(tau, float) else z.addcmul_(x @ total, tau, value=-1)
    if True in ends:
        return x, _ended(inner, token, start, flat, update, state._replace(grad_sum=grad_sum))
    return x, InnerState(state.delta, grad_sum, state.momentum, state.phase + 1)


def gradients(
    weights: Weights,
    keys: Tensor,
    missed: Tensor,
    gamma: Tensor,
    eta: Tensor,
    with_one: Callable[[Tensor], Tensor],
    margin: float | Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of one token (equations 3 and 5): (inputs [R, 1, rows], steps [R, 1, columns]) of each layer, whose
    outer products go to the sums. keys: with the one for the bias; missed: k - v + beta; margin: None for none."""
    inputs, hidden = [keys], []
    z = torch.bmm(keys, weights[0])
    for weight in weights[1:]:
        hidden.append(z)
        inputs.append(with_one(_gelu(z, approximate="tanh")))
        z = torch.bmm(inputs[-1], weight)
    width = (gamma.shape[-1],)
    z_hat, mean, rstd = native_layer_norm(z, width, None, None, EPS)
    error = torch.addcmul(missed, gamma, z_hat)
    rate = eta if margin is None else eta * error_share(error, margin)
    u = (error * gamma).mul_(rate)
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


def _ended(inner: Dense, token: Token, start: Tensor, flat: Tensor, update: Update, state: InnerState) -> InnerState:
    """From the state with the token's sums, its phase that before, and W [B, H, P]: the rows whose mini-batch has ended
    begin the next."""
    width, tau, sums = token.views.shape[-1], token.tau, state.grad_sum
    tau = tau.view(*flat.shape[:2], 1) if isinstance(tau, Tensor) else tau
    ended = None if all(token.ends) else torch.tensor(token.ends).nonzero()[:, 0]
    if ended is not None:
        flat, sums, tau = flat[ended], sums[ended], tau[ended] if isinstance(tau, Tensor) else tau
    rule = update.rule(inner.split(start.expand_as(flat), width))
    delta = flatten(rule.settle(inner.split(flat - tau * sums, width), in_place=True)[0]).view(flat.shape) - start
    if ended is None:
        return InnerState(delta, torch.zeros_like(delta), state.momentum, torch.zeros_like(state.phase))
    return InnerState(
        state.delta.index_copy(0, ended, delta),
        state.grad_sum.index_fill(0, ended, 0.0),
        state.momentum,
        (state.phase + 1).index_fill_(0, ended, 0.0),
    )
