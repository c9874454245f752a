"""Token-causal mini-batch TTT for dense inner models: the dual form over ragged mini-batches, and the one-token step.

With W the weights at the start of the mini-batch and S the pending sums, token i sees
W_i = W - tau_i (S + sum_{j <= i} eta_j grad(W; j)), so a layer with input h of a query and inputs x_j of the keys gives

    h W_i = h W - tau_i (h S + sum_{j <= i} (h . x_j) eta_j G_j)

and no W_i is ever formed. Momentum moves the weights that queries see to W - mu M. A product with a masked zero would
carry a NaN of a later token to an earlier one, so keys, values and rates that are not finite are taken out, and their
NaN is added where the definition has it. R = rows times heads below.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream_kernels.inner import Dense, flatten, with_one
from tttstream_kernels.norm import normalise, reconstruction_gradient
from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Update, Weights, finish, rate_factor


class Call(NamedTuple):
    """What one call of a token-causal op works with. q, k, v [B, T, H, D], eta [B, T, H], tau [K], start [H, P],
    gamma, beta [H, D]."""

    inner: Dense
    q: Tensor
    k: Tensor
    v: Tensor
    eta: Tensor
    start: Tensor
    gamma: Tensor
    beta: Tensor
    tau: Tensor
    update: Update


class Seed(NamedTuple):
    """State of the pieces of a wave, split by layer."""

    delta: Weights
    pending: Weights | None
    momentum: Weights

    def first(self, count: int) -> Seed:
        """The first `count` cells."""
        if count == self.delta[0].shape[0]:
            return self
        return Seed(*(None if part is None else tuple(w[:count] for w in part) for part in self))  # type: ignore[arg-type]


def _queries(
    inner: Dense,
    x: Tensor,
    weights: Weights,
    inputs: list[Tensor],
    steps: list[Tensor],
    pending: Weights | None,
    tau: Tensor,
) -> Tensor:
    """g(x_i; W_i) for every token i of a block: x [R, K, D]; inputs and steps (eta G) of the keys, by layer."""
    z = x
    for layer, (weight, keys, step) in enumerate(zip(weights, inputs, steps, strict=True)):
        h = with_one(z if layer == 0 else F.gelu(z, approximate="tanh"))
        seen = torch.bmm(torch.bmm(h, keys.mT).tril(), step)
        if pending is not None:
            seen = torch.baddbmm(seen, h, pending[layer])
        z = torch.bmm(h, weight).addcmul(seen, tau, value=-1)
    return z


def token_causal(
    call: Call, state: InnerState, fresh: bool, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """Any number of tokens: (outputs [B, T, H, D], state, loss). `fresh` says that the state is known to be zero."""
    rows, tokens, heads, width = call.q.shape
    cut = plan(rows, tokens, call.tau.shape[0], None if fresh else state.phase, reset, lengths)
    if not cut.waves:
        zero = call.eta * 0.0
        return call.q * 0.0, state, Loss(zero, zero) if return_loss else None
    queries, keys, values = (cut.pack(x) for x in (call.q, call.k, call.v))
    rates = cut.pack(call.eta[..., None])
    gamma, beta = call.gamma[:, None], call.beta[:, None]
    poison = None
    if not bool(torch.isfinite(keys.sum() + values.sum() + rates.sum())):
        poison = 0.0 * (keys.sum(-1, keepdim=True) + values.sum(-1, keepdim=True) + rates)
        keys, values, rates = (torch.where(poison == 0.0, x, 0.0) for x in (keys, values, rates))
    targets = values - keys

    seed = _seeds(call, state, cut)
    ends: list[Seed] = []
    z_q, z_k, errors, position = [], [], [], 0
    for wave, pieces in enumerate(cut.waves):
        here = slice(position, position + pieces)
        position += pieces
        cells = pieces * heads
        q, k, target, rate = (x[here].flatten(0, 1) for x in (queries, keys, targets, rates))
        g, b = (x.repeat(pieces, 1, 1) for x in (gamma, beta))
        seed = seed.first(cells)
        update = call.update.cells(pieces)
        start = tuple(w.repeat(pieces, 1, 1) for w in call.inner.split(call.start, width))
        weights = tuple(s + d for s, d in zip(start, seed.delta, strict=True))
        factor = rate_factor(update, start, seed.delta)
        rate = rate if factor is None else rate * factor

        z, (inputs, hidden) = call.inner.forward(k, weights)
        gradient, error = reconstruction_gradient(z, target, g, b)
        steps = [rate * layer for layer in call.inner.layer_gradients(gradient, weights, hidden)]
        if update.has_momentum:
            weights = tuple(w - update.momentum * m for w, m in zip(weights, seed.momentum, strict=True))
        seen = weights, inputs, steps, seed.pending, call.tau[:, None]
        z_q.append(_queries(call.inner, q, *seen))
        if return_loss:
            errors.append(error)
            z_k.append(_queries(call.inner, k, *seen))

        pending = tuple(torch.bmm(x.mT, step) for x, step in zip(inputs, steps, strict=True))
        if poison is not None:
            lost = poison[here].flatten(0, 1).sum(1, keepdim=True)
            pending = tuple(p + lost for p in pending)
        if seed.pending is not None:
            pending = tuple(s + p for s, p in zip(seed.pending, pending, strict=True))
        seed, end = _advance(call, cut, wave, Seed(seed.delta, pending, seed.momentum), start, update)
        ends.append(end)

    def outputs(parts: list[Tensor]) -> Tensor:
        y = normalise(torch.cat(parts).unflatten(0, (-1, heads)), gamma, beta)
        return y if poison is None else y + poison.cumsum(2)

    y = cut.unpack(queries + outputs(z_q))
    loss = None
    if return_loss:
        before = torch.cat(errors).unflatten(0, (-1, heads))
        before = before if poison is None else before + poison
        after = outputs(z_k) - targets
        loss = Loss(*(cut.unpack(0.5 * e.square().sum(-1, keepdim=True))[..., 0] for e in (before, after)))
    return y, _merge(call, state, cut, ends[::-1]), loss


def _seeds(call: Call, state: InnerState, cut: Uniform | Ragged) -> Seed:
    """The state each piece starts from, split by layer, [pieces * H, rows, columns]."""
    width = call.q.shape[-1]

    def pieces(part: Tensor) -> Weights:
        if isinstance(cut, Ragged):
            part = torch.where(cut.fresh[:, None, None], 0.0, part[cut.row])
        return call.inner.split(part.flatten(0, 1), width)

    return Seed(
        delta=pieces(state.delta),
        pending=pieces(state.pending) if cut.seeded else None,
        momentum=pieces(state.momentum) if call.update.has_momentum else (),
    )


def _advance(
    call: Call, cut: Uniform | Ragged, wave: int, now: Seed, start: Weights, update: Update
) -> tuple[Seed, Seed]:
    """(seed of the next wave, state of the pieces that end with this one) from the sums after this wave's tokens."""
    assert now.pending is not None
    heads = call.q.shape[2]
    going_on = (*cut.waves, 0)[wave + 1] * heads
    if isinstance(cut, Uniform) and not going_on and not cut.full:
        return now, now
    step = tuple(call.tau[-1] * p for p in now.pending)
    delta, momentum = finish(update, start, now.delta, step, now.momentum)
    end = Seed(delta, tuple(torch.zeros_like(p) for p in now.pending), momentum)
    if isinstance(cut, Ragged):
        full = cut.full[going_on // heads : cut.waves[wave]].repeat_interleave(heads)[:, None, None]

        def chosen(after: Weights, before: Weights) -> Weights:
            return tuple(torch.where(full, a[going_on:], b[going_on:]) for a, b in zip(after, before, strict=True))

        zero = tuple(torch.zeros_like(p) for p in now.pending)
        end = Seed(chosen(delta, now.delta), chosen(zero, now.pending), chosen(momentum, now.momentum))
    return Seed(delta, None, momentum).first(going_on), end


def _merge(call: Call, state: InnerState, cut: Uniform | Ragged, ends: list[Seed]) -> InnerState:
    """The rows' state after the call, from the pieces' states, the last wave's first."""
    rows, tokens, heads, _ = call.q.shape

    def gather(name: str, old: Tensor) -> Tensor:
        parts = [flatten(getattr(end, name)) for end in ends if getattr(end, name)]
        if isinstance(cut, Uniform):
            return parts[0].unflatten(0, (rows, heads))
        new = torch.cat(parts).unflatten(0, (-1, heads))[cut.last.clamp(min=0)]
        return torch.where(cut.last[:, None, None] >= 0, new, old)

    if isinstance(cut, Uniform):
        phase = torch.full_like(state.phase, (cut.phase + tokens) % cut.mini_batch)
    else:
        phase = cut.end_phase.to(state.phase)
    momentum = gather("momentum", state.momentum) if call.update.has_momentum else state.momentum
    return InnerState(gather("delta", state.delta), gather("pending", state.pending), momentum, phase)


def one_token(
    call: Call, state: InnerState, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """The step of a stream, T = 1: the same as `token_causal` with neither planning nor reading of values, so that it
    exports and runs in a CUDA graph."""
    rows, _, heads, width = call.q.shape
    inner, before = call.inner, state
    q, k, v = call.q, call.k, call.v
    if lengths is not None:
        on = (lengths > 0)[:, None, None, None]
        q, k, v = (torch.where(on, x, 0.0) for x in (q, k, v))
    if reset is not None:
        keep = ~reset[:, 0]
        state = InnerState(*(torch.where(keep.view(-1, *[1] * (x.dim() - 1)), x, 0.0) for x in state))
    q, k, v = (x.reshape(rows * heads, 1, width) for x in (q, k, v))
    gamma, beta = (x[:, None].repeat(rows, 1, 1) for x in (call.gamma, call.beta))
    update = call.update.cells(rows)
    start = tuple(w.repeat(rows, 1, 1) for w in inner.split(call.start, width))
    delta = inner.split(state.delta.flatten(0, 1), width)
    rate = call.eta.reshape(-1, 1, 1)
    if lengths is not None:
        rate = torch.where((lengths > 0).repeat_interleave(heads)[:, None, None], rate, 0.0)
    weights = tuple(s + d for s, d in zip(start, delta, strict=True))
    factor = rate_factor(update, start, delta)
    rate = rate if factor is None else rate * factor

    z, (inputs, hidden) = inner.forward(k, weights)
    gradient, error = reconstruction_gradient(z, v - k, gamma, beta)
    layers = inner.layer_gradients(gradient, weights, hidden)
    old = inner.split(state.pending.flatten(0, 1), width)
    pending = tuple(torch.baddbmm(s, x.mT, rate * g) for s, x, g in zip(old, inputs, layers, strict=True))

    momentum = inner.split(state.momentum.flatten(0, 1), width) if update.has_momentum else ()
    if update.has_momentum:
        weights = tuple(w - update.momentum * m for w, m in zip(weights, momentum, strict=True))
    phase = state.phase.long()
    tau = call.tau[phase].repeat_interleave(heads)[:, None, None]
    now = tuple(w.addcmul(tau, p, value=-1) for w, p in zip(weights, pending, strict=True))
    y = q + normalise(inner.forward(q, now)[0], gamma, beta)
    loss = None
    if return_loss:
        after = normalise(inner.forward(k, now)[0], gamma, beta) - (v - k)
        loss = Loss(*(0.5 * e.square().sum(-1).view(rows, 1, heads) for e in (error, after)))

    done = (phase + 1 == call.tau.shape[0])[:, None, None]
    new = InnerState(state.delta, flatten(pending).view_as(state.delta), state.momentum, state.phase + 1)
    if torch.compiler.is_compiling() or state.phase.device.type != "cpu" or bool(done.any()):
        step = tuple(call.tau[-1] * p for p in pending)
        delta, momentum = finish(update, start, delta, step, momentum)
        new = InnerState(
            delta=torch.where(done, flatten(delta).view_as(state.delta), new.delta),
            pending=torch.where(done, 0.0, new.pending),
            momentum=torch.where(done, flatten(momentum).view_as(state.delta), new.momentum)
            if momentum
            else new.momentum,
            phase=torch.where(done[:, 0, 0], 0.0, new.phase),
        )
    if lengths is not None:
        went = lengths > 0
        new = InnerState(
            *(torch.where(went.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, before, strict=True))
        )
    return y.view(rows, 1, heads, width), new, loss
