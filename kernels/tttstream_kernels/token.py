"""Token-causal mini-batch TTT for dense inner models: the dual form over ragged mini-batches, and the one-token step.

No W_i is ever formed: the dual form (README, equations 7 to 9) gives what every query sees from the weights at the
start of its mini-batch and from products of queries with keys. All that does not depend on the weights is computed for
all tokens at once; the loop over mini-batches holds the rest. A product with a masked zero would carry a NaN of a later
token to an earlier one, so keys, values and rates that are not finite are taken out, and their NaN is added where the
definition has it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tttstream_kernels.call import Call
from tttstream_kernels.chunks import Packed, Seed
from tttstream_kernels.inner import Dense, flatten
from tttstream_kernels.norm import (
    error_share,
    error_terms,
    half_square,
    normalise,
    reconstruction_gradient,
    standardise,
)
from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.scan import scan
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Rule, Weights, normalised_scale


def _dense(call: Call) -> tuple[Dense, Tensor]:
    """The inner model and the token scale [K] of a token-causal call."""
    assert isinstance(call.inner, Dense) and call.tau is not None  # noqa: PT018
    return call.inner, call.tau


def token_causal(
    call: Call, state: InnerState, fresh: bool, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """Any number of tokens: (outputs [B, T, H, D], state, loss). `fresh` says that the state is known to be zero."""
    tau = _dense(call)[1]
    rows, tokens, heads, _ = call.q.shape
    cut = plan(rows, tokens, len(tau), None if fresh else state.phase, reset, lengths, call.q.device)
    if not cut.waves:
        zero = call.eta[..., 0] * 0.0
        return call.q * 0.0, state, Loss(zero, zero) if return_loss else None
    packed, target, poison = _pack(call, cut, tau)
    seed, rule = _seed(call, state, cut)
    lost = None if poison is None else poison.sum(1, keepdim=True)
    # what is done with makes room for what comes: memory beyond it would be asked of the system again in every call
    if not return_loss:
        del target
    z, before, after, ends = scan(packed, cut, heads, seed, rule, lost, return_loss)
    del packed

    y = cut.addcmul(call.q + call.beta, call.gamma, standardise(z))
    losses = _losses(call, cut, target, before, after) if before is not None and after is not None else []
    if poison is not None:
        own_nan, later_nan = cut.unpack(poison), cut.unpack(poison.cumsum(1))
        y = y + later_nan
        losses = [part + nan for part, nan in zip(losses, (own_nan, later_nan), strict=False)]
    loss = Loss(*(cut.masked(part)[..., 0] for part in losses)) if return_loss else None
    return cut.masked(y), _merge(call, state, cut, ends), loss


def _pack(call: Call, cut: Uniform | Ragged, tau: Tensor) -> tuple[Packed, Tensor, Tensor | None]:
    """(the call's tokens as blocks, their targets v - k [B, T, H, D], poison). poison: [S, K, 1], NaN for tokens that
    are not finite, else 0; None if all are finite. Blocks and targets have zeros in place of such tokens."""
    k, eta, target, poison = call.k, call.eta, call.v - call.k, None
    if torch.compiler.is_compiling() or not math.isfinite((target.sum() + eta.sum()).item()):
        poison = 0.0 * (target.sum(-1, keepdim=True) + eta)
        k, eta, target = (torch.where(poison == 0.0, x, 0.0) for x in (k, eta, target))
        poison = cut.pack(poison)
    cells = sum(cut.waves), *call.gamma.shape[:1], 1, call.gamma.shape[1]
    packed = Packed(
        queries=cut.pack_with_one(call.q),
        keys=cut.pack_with_one(k),
        base=cut.pack(torch.addcmul(call.gamma * call.beta, call.gamma, target, value=-1)),
        square=call.gamma.square()[:, None].expand(cells).flatten(0, 1),
        eta=cut.pack(eta),
        tau=tau,
    )
    if call.update.normalised or call.update.has_margin:
        gamma = call.gamma[:, None].expand(cells).flatten(0, 1)
        packed = packed._replace(missed=cut.pack(call.beta - target), gamma=gamma)
    return packed, target, poison


def _losses(call: Call, cut: Uniform | Ragged, target: Tensor, *seen: Tensor) -> list[Tensor]:
    """The errors of the keys' outputs z [S, K, D] before their normalisation: [B, T, H, 1] each."""
    return [half_square(normalise(cut.unpack(z), call.gamma, call.beta) - target)[..., None] for z in seen]


def _seed(call: Call, state: InnerState, cut: Uniform | Ragged) -> tuple[Seed, Rule]:
    """The states from which the pieces start, and their update."""

    def pieces(part: Tensor) -> Tensor:
        return torch.where(cut.fresh[:, None, None], 0.0, part[cut.row]) if isinstance(cut, Ragged) else part

    def split(part: Tensor) -> Weights:
        return call.inner.split(part, call.q.shape[-1])

    delta = pieces(state.delta)
    start = split(call.start.expand_as(delta))
    momentum, moment = call.update.carried(pieces(state.momentum), split)
    seed = Seed(
        weights=tuple((s + d).contiguous() for s, d in zip(start, split(delta), strict=True)),  # to step in place
        grad_sum=split(pieces(state.grad_sum)[..., : call.start.shape[1]]) if cut.seeded else (),
        momentum=momentum,
        loss=(pieces(state.grad_sum)[..., -1:].reshape(-1, 1, 1),) if call.update.normalised else (),
        moment=moment,
    )
    return seed, call.update.rule(start)


def _merge(call: Call, state: InnerState, cut: Uniform | Ragged, ends: Seed) -> InnerState:
    """The rows' state after the call, from where their pieces end, those of the last chunk first."""

    def rows(part: Weights) -> Tensor:
        return flatten(part).unflatten(0, (-1, call.q.shape[2]))

    delta = rows(ends.weights) - call.start
    grad_sum = rows(ends.grad_sum) if ends.grad_sum else torch.zeros_like(delta)
    if ends.loss:
        grad_sum = torch.cat([grad_sum, rows(ends.loss)], dim=-1)
    momentum = call.update.joined((ends.momentum, ends.moment), state.momentum)
    if isinstance(cut, Uniform):
        return InnerState(delta, grad_sum, momentum, torch.full_like(state.phase, cut.end_phase))
    last = cut.last.clamp(min=0)
    momentum = momentum[last] if ends.momentum or ends.moment else momentum
    new = InnerState(delta[last], grad_sum[last], momentum, cut.end_phase.to(state.phase))
    return new.where(cut.last >= 0, state)


def one_token(
    call: Call, state: InnerState, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """The step of a stream, T = 1: the same as `token_causal` with neither planning nor, off the CPU, reading of
    values, so that it exports and runs in a CUDA graph."""
    inner, scales = _dense(call)
    start, update, before = call.start, call.update, state
    rows, _, heads, width = call.q.shape
    cells = rows * heads
    q, k, v, eta = call.q, call.k, call.v, call.eta
    if lengths is not None:
        on = (lengths > 0)[:, None, None, None]
        q, k, v, eta = (torch.where(on, x, 0.0) for x in (q, k, v, eta))
    if reset is not None:
        state = state.fresh().where(reset[:, 0], state)

    def split(flat: Tensor) -> Weights:
        return inner.split(flat, width)

    def rule() -> Rule:
        return update.rule(split(start.expand_as(state.delta)))

    def normalised(z: Tensor) -> Tensor:
        return normalise(z.view_as(q), call.gamma, call.beta)

    flat = start + state.delta
    weights = split(flat)
    target = v - k
    one = q.new_ones(1).expand(rows, 1, heads, 1)
    x_k, x_q = torch.cat([k, one, q, one], dim=-1).view(cells, 2, 1, -1).unbind(1)
    z, inputs, hidden = inner.layers(x_k, weights)
    terms = error_terms(target, call.gamma, call.beta, eta)
    gradient, share = reconstruction_gradient(z.view_as(q), *terms), None
    if update.has_margin:
        margin = update.margin[:, None] if isinstance(update.margin, Tensor) else update.margin
        share = error_share(normalised(z) - target, margin)
        gradient = share * gradient
    steps = inner.steps(gradient.view(cells, 1, width), weights, hidden)
    sums = zip(split(state.grad_sum[..., : flat.shape[-1]]), inputs, steps, strict=True)
    grad_sum = flatten(tuple(s.addcmul(x.mT, step) for s, x, step in sums)).view_as(flat)

    phase = state.phase.long() % len(scales)
    tau = scales.take(phase).view(-1, 1, 1)
    momentum, learned = state.momentum, grad_sum
    if update.normalised:
        error = normalised(z) - target if share is None else share * (normalised(z) - target)
        total = state.grad_sum[..., -1:] + eta[:, 0] * half_square(error)[:, 0, :, None]
        tau = normalised_scale(tau, grad_sum.square().sum(-1, keepdim=True), total)
        learned = torch.cat([grad_sum, total], dim=-1)
    if update.has_momentum:
        mu = update.momentum[:, None] if isinstance(update.momentum, Tensor) else update.momentum
        momentum = (mu * state.momentum[..., : flat.shape[-1]]).addcmul(tau, grad_sum)
        now = flat - momentum
    else:
        now = flat.addcmul(tau, grad_sum, value=-1)
    seen = split(now)
    y = q + normalised(inner.layers(x_q, seen)[0])
    loss = None
    if return_loss:
        after = inner.layers(x_k, seen)[0]
        loss = Loss(*(half_square(normalised(part) - target) for part in (z, after)))

    new = InnerState(state.delta, learned, state.momentum, state.phase + 1)
    if torch.compiler.is_compiling() or phase.device.type != "cpu" or len(scales) - 1 in phase.tolist():
        bound, stepped = rule(), seen
        if update.direction is not None:
            step = split((tau * grad_sum).view_as(flat))
            stepped, *carried = bound.stepped(weights, step, *update.carried(state.momentum, split))
            momentum = update.joined(carried, state.momentum)
        settled = flatten(bound.settle(stepped)[0]).view_as(flat)
        ended = InnerState(settled - start, torch.zeros_like(learned), momentum, torch.zeros_like(state.phase))
        new = ended.where(phase + 1 == len(scales), new)
    if lengths is not None:
        new = new.where(lengths > 0, before)
        y = torch.where(on, y, 0.0)
        loss = None if loss is None else Loss(*(torch.where(on[..., 0], part, 0.0) for part in loss))
    return y, new, loss
