"""Token-causal mini-batch TTT for dense inner models: the dual form over ragged mini-batches, and the one-token step.

No W_i is ever formed: the dual form (README, equations 7 to 9) gives what every query sees from the weights at the
start of its mini-batch and from products of queries with keys. All that does not depend on the weights is computed for
all tokens at once; the loop over mini-batches holds the rest. A product with a masked zero would carry a NaN of a later
token to an earlier one, so keys, values and rates that are not finite are taken out, and their NaN is added where the
definition has it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu
from tttstream_kernels.call import Call
from tttstream_kernels.inner import Dense, flatten, with_one
from tttstream_kernels.norm import error_terms, half_square, normalise, reconstruction_gradient
from tttstream_kernels.plan import Ragged, Uniform, plan
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Rule, Weights


class Seed(NamedTuple):
    """Where cells stand at the start of a mini-batch, by layer [R, rows, columns]: weights; sums of the part of the
    mini-batch that an earlier call saw, empty for nothing; momentum, empty for none."""

    weights: Weights
    pending: Weights
    momentum: Weights

    def cells(self, begin: int, end: int) -> Seed:
        """Some of the cells."""
        if begin == 0 and end == self.weights[0].shape[0]:
            return self
        return Seed(*(tuple(w[begin:end] for w in part) for part in self))


class Lesson(NamedTuple):
    """What the keys of a wave teach, by layer: base, the weights that queries see before the first key; inputs
    [R, K, rows] and steps [R, K, columns], rate times gradient, of every key."""

    base: Weights
    inputs: list[Tensor]
    steps: list[Tensor]


def _dense(call: Call) -> tuple[Dense, Tensor]:
    """The inner model and the token scale [K] of a token-causal call."""
    assert isinstance(call.inner, Dense) and call.tau is not None  # noqa: PT018
    return call.inner, call.tau


def token_causal(
    call: Call, state: InnerState, fresh: bool, reset: Tensor | None, lengths: Tensor | None, return_loss: bool
) -> tuple[Tensor, InnerState, Loss | None]:
    """Any number of tokens: (outputs [B, T, H, D], state, loss). `fresh` says that the state is known to be zero."""
    inner, tau = _dense(call)
    rows, tokens, heads, _ = call.q.shape
    cut = plan(rows, tokens, len(tau), None if fresh else state.phase, reset, lengths, call.q.device)
    if not cut.waves:
        zero = call.eta[..., 0] * 0.0
        return call.q * 0.0, state, Loss(zero, zero) if return_loss else None
    k, eta, target = call.k, call.eta, call.v - call.k
    poison = None
    if not bool(torch.isfinite(target.sum() + eta.sum())):
        poison = 0.0 * (target.sum(-1, keepdim=True) + eta)
        k, eta, target = (torch.where(poison == 0.0, x, 0.0) for x in (k, eta, target))
        poison = cut.pack(poison)
    x_q, x_k = with_one(cut.pack(call.q)), with_one(cut.pack(k))
    offset, scale = (cut.pack(x) for x in error_terms(target, call.gamma, call.beta, eta))
    tau, last = tau[:, None], tau[-1]
    causal = -tau.expand(-1, len(tau)).tril()
    sizes = [pieces * heads for pieces in cut.waves]

    def waves(x: Tensor) -> tuple[Tensor, ...]:
        return x.split(sizes)

    blocks = (waves(x) for x in (x_q, x_k, torch.bmm(x_q, x_k.mT) * causal, offset, scale))
    own = waves(torch.bmm(x_k, x_k.mT) * causal) if return_loss else ()
    lost = waves(poison.sum(1, keepdim=True)) if poison is not None else (None,) * len(sizes)
    seed, rule = _seed(call, state, cut)
    ends, z_q, z_before, z_after = [], [], [], []
    for wave, (queries, keys, scores, *terms) in enumerate(zip(*blocks, strict=True)):
        rule = rule.first(sizes[wave])
        z, inputs, hidden = inner.layers(keys, seed.weights)
        gradient = reconstruction_gradient(z, *terms)
        factor = rule.factor(seed.weights)
        steps = inner.steps(gradient if factor is None else factor * gradient, seed.weights, hidden)
        lesson = Lesson(rule.heading(seed.weights, seed.momentum), inputs, steps)
        z_q.append(_see(queries, scores, lesson, seed.pending, tau, causal))
        if return_loss:
            z_before.append(z)
            z_after.append(_see(keys, own[wave], lesson, seed.pending, tau, causal))
        going_on = (*sizes, 0)[wave + 1]
        complete = cut.complete(wave)
        after = seed
        if going_on or complete is not False:
            in_place = complete is True and not torch.is_grad_enabled()
            after = _step(seed, lesson, rule, last, lost[wave], in_place)
        if going_on < sizes[wave]:
            ends.append(_end(seed, lesson, after, lost[wave], complete, heads).cells(going_on, sizes[wave]))
        seed = after.cells(0, going_on)

    def normalised(parts: list[Tensor]) -> Tensor:
        return normalise(cut.unpack(torch.cat(parts)), call.gamma, call.beta)

    y = call.q + normalised(z_q)
    losses = [half_square(normalised(z) - target)[..., None] for z in (z_before, z_after) if z]
    if poison is not None:
        own_nan, later_nan = cut.unpack(poison), cut.unpack(poison.cumsum(1))
        y = y + later_nan
        losses = [part + nan for part, nan in zip(losses, (own_nan, later_nan), strict=False)]
    loss = Loss(*(cut.masked(part)[..., 0] for part in losses)) if return_loss else None
    return cut.masked(y), _merge(call, state, cut, ends[::-1]), loss


def _see(x: Tensor, scores: Tensor, lesson: Lesson, pending: Weights, tau: Tensor, causal: Tensor) -> Tensor:
    """g(x_i; W_i) for every token i of a wave (equation 8): x [R, K, D + 1], scores [R, K, K] its products with the
    first layer's inputs, times -tau_i where j <= i."""
    z = x
    for layer, (weight, keys, step) in enumerate(zip(*lesson, strict=True)):
        if layer > 0:
            x = with_one(gelu(z))
            scores = torch.bmm(x, keys.mT) * causal
        z = torch.baddbmm(torch.bmm(x, weight), scores, step)
        if pending:
            z = z.addcmul(torch.bmm(x, pending[layer]), tau, value=-1)
    return z


def _seed(call: Call, state: InnerState, cut: Uniform | Ragged) -> tuple[Seed, Rule]:
    """What the pieces start from, and their update."""

    def pieces(part: Tensor) -> Tensor:
        return torch.where(cut.fresh[:, None, None], 0.0, part[cut.row]) if isinstance(cut, Ragged) else part

    def split(part: Tensor) -> Weights:
        return call.inner.split(part, call.q.shape[-1])

    delta = pieces(state.delta)
    seed = Seed(
        weights=split(call.start + delta),
        pending=split(pieces(state.pending)) if cut.seeded else (),
        momentum=split(pieces(state.momentum)) if call.update.has_momentum else (),
    )
    return seed, call.update.rule(split(call.start.expand_as(delta)))


def _step(seed: Seed, lesson: Lesson, rule: Rule, tau: Tensor, nan: Tensor | None, in_place: bool) -> Seed:
    """Where cells stand after a full mini-batch (equation 9), whose last token has the scale tau.

    in_place: the new weights take the place of the old ones, which nobody else sees: up to 15% of an MLP's forward.
    """
    target, sign = (tuple(rule.momentum * m for m in seed.momentum), tau) if seed.momentum else (seed.weights, -tau)
    if seed.pending:
        target = tuple(w.addcmul(sign, s) for w, s in zip(target, seed.pending, strict=True))
    add = torch.Tensor.baddbmm_ if in_place else torch.baddbmm
    target = tuple(add(w, x.mT, sign * step) for w, x, step in zip(target, lesson.inputs, lesson.steps, strict=True))
    if nan is not None:
        target = tuple(w + nan for w in target)
    if not seed.momentum:
        return Seed(rule.settle(target, in_place), (), ())
    return Seed(rule.settle(tuple(w - m for w, m in zip(seed.weights, target, strict=True))), (), target)


def _end(seed: Seed, lesson: Lesson, after: Seed, nan: Tensor | None, complete: bool | Tensor, heads: int) -> Seed:
    """Where cells stand when their piece ends: after a full mini-batch, or inside one, with its sums."""
    if complete is not False:
        after = after._replace(pending=tuple(torch.zeros_like(w) for w in after.weights))
    if complete is True:
        return after
    sums = tuple(torch.bmm(x.mT, step) for x, step in zip(lesson.inputs, lesson.steps, strict=True))
    for more in (seed.pending, () if nan is None else (nan,) * len(sums)):
        sums = tuple(a + b for a, b in zip(sums, more, strict=True)) if more else sums
    inside = Seed(seed.weights, sums, seed.momentum)
    if complete is False:
        return inside
    full = complete.repeat_interleave(heads)[:, None, None]
    chosen = (zip(a, b, strict=True) for a, b in zip(after, inside, strict=True))
    return Seed(*(tuple(torch.where(full, a, b) for a, b in pairs) for pairs in chosen))


def _merge(call: Call, state: InnerState, cut: Uniform | Ragged, ends: list[Seed]) -> InnerState:
    """The rows' state after the call, from where their pieces end, those of the last wave first."""
    heads = call.q.shape[2]

    def gather(name: str) -> Tensor:
        parts = [flatten(getattr(end, name)) for end in ends]
        cells = parts[0] if len(parts) == 1 else torch.cat(parts)
        return cells.unflatten(0, (-1, heads))

    delta = gather("weights") - call.start
    pending = gather("pending")
    momentum = gather("momentum") if call.update.has_momentum else state.momentum
    if isinstance(cut, Uniform):
        return InnerState(delta, pending, momentum, torch.full_like(state.phase, cut.end_phase))
    last = cut.last.clamp(min=0)
    momentum = momentum[last] if call.update.has_momentum else momentum
    new = InnerState(delta[last], pending[last], momentum, cut.end_phase.to(state.phase))
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
    gradient = reconstruction_gradient(z.view_as(q), *terms).view(cells, 1, width)
    factor = rule().factor(weights) if update.follow else None
    steps = inner.steps(gradient if factor is None else factor * gradient, weights, hidden)
    sums = zip(split(state.pending), inputs, steps, strict=True)
    pending = flatten(tuple(s.addcmul(x.mT, step) for s, x, step in sums)).view_as(flat)

    phase = state.phase.long() % len(scales)
    tau = scales.take(phase).view(-1, 1, 1)
    momentum = state.momentum
    if update.has_momentum:
        mu = update.momentum[:, None] if isinstance(update.momentum, Tensor) else update.momentum
        momentum = (mu * momentum).addcmul(tau, pending)
        now = flat - momentum
    else:
        now = flat.addcmul(tau, pending, value=-1)
    seen = split(now)
    y = q + normalised(inner.layers(x_q, seen)[0])
    loss = None
    if return_loss:
        after = inner.layers(x_k, seen)[0]
        loss = Loss(*(half_square(normalised(part) - target) for part in (z, after)))

    new = InnerState(state.delta, pending, state.momentum, state.phase + 1)
    if torch.compiler.is_compiling() or phase.device.type != "cpu" or len(scales) - 1 in phase.tolist():
        settled = flatten(rule().settle(seen)).view_as(flat)
        ended = InnerState(settled - start, torch.zeros_like(pending), momentum, torch.zeros_like(state.phase))
        new = ended.where(phase + 1 == len(scales), new)
    if lengths is not None:
        new = new.where(lengths > 0, before)
    return y, new, loss
