"""The loop over the mini-batches of a token-causal call, chunk by chunk (README, equations 7 to 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu, gelu_and_slope
from tttstream_kernels.inner import Dense
from tttstream_kernels.norm import error_share, half_square, normalise, reconstruction
from tttstream_kernels.plan import Ragged, Uniform
from tttstream_kernels.update import Rule, Weights, normalised_scale


class Packed(NamedTuple):
    """A call's tokens as S blocks of K slots, chunk by chunk: queries and keys [S, K, D + 1], each with its one; base
    [S, K, D] gamma (beta - target) and square [S, 1, D] gamma^2 of equation 2; eta [S, K, 1]; tau [K]. For a normalised
    step or a margin also missed [S, K, D] beta - target and gamma [S, 1, D], which give the losses."""

    queries: Tensor
    keys: Tensor
    base: Tensor
    square: Tensor
    eta: Tensor
    tau: Tensor
    missed: Tensor | None = None
    gamma: Tensor | None = None

    @property
    def causal(self) -> Tensor:
        """-tau_i where j <= i, else 0: [K, K]."""
        return -self.tau[:, None].expand(-1, len(self.tau)).tril()


class Seed(NamedTuple):
    """The state of cells at the start of a mini-batch, by layer [R, rows, columns]: weights; sums of the part of the
    mini-batch that an earlier call saw, empty for nothing; momentum, empty for none; the loss [R, 1, 1] of that part,
    for a normalised step; the second moment, empty for none."""

    weights: Weights
    grad_sum: Weights
    momentum: Weights
    loss: Weights = ()
    moment: Weights = ()

    def cells(self, begin: int, end: int) -> Seed:
        """Some of the cells."""
        if begin == 0 and end == self.weights[0].shape[0]:
            return self
        return Seed(*(tuple(w[begin:end] for w in part) for part in self))


class Scanned(NamedTuple):
    """Outputs before their normalisation, z [S, K, D], the same of the keys before and after they were learned (None
    unless asked for), and where every piece ends, the pieces of the last chunk first."""

    z: Tensor
    before: Tensor | None
    after: Tensor | None
    ends: Seed


class Read(NamedTuple):
    """How tokens were seen (equation 8), by layer: their inputs [R, K, rows], the products of these with the keys'
    inputs [R, K, K] before and after the mask; gelu' of the layers before the last."""

    inputs: list[Tensor]
    products: list[Tensor]
    masked: list[Tensor]
    slopes: list[Tensor]


class Chunk(NamedTuple):
    """The values of a chunk that the backward pass needs. By layer: weights, the keys' inputs and steps; z, gelu' and
    what came back (G W^T) of the layers before the last. parts: those of `reconstruction`, its result first. Then how
    the queries were seen, and the keys where losses are wanted; the weights after the step (overwritten where
    forgetting is not learned), the scale of the last layer's cut (None without one), and that layer after it."""

    weights: Weights
    inputs: list[Tensor]
    steps: list[Tensor]
    hidden: list[Tensor]
    slopes: list[Tensor]
    backs: list[Tensor]
    z: Tensor
    parts: list[Tensor]
    queries: Read
    keys: Read | None
    stepped: Weights
    scale: Tensor | None
    settled: Tensor


class Learned(NamedTuple):
    """Gradients of the keys of a chunk, by layer: base, the weights that queries see before the first key; inputs
    [R, K, rows] and steps [R, K, columns], rate times gradient, of every key."""

    base: Weights
    inputs: list[Tensor]
    steps: list[Tensor]


@dataclass
class Settings:
    """The values that all chunks share: cells of each chunk, whether losses are wanted."""

    inner: Dense
    sizes: list[int]
    cut: Uniform | Ragged
    heads: int
    return_loss: bool

    def mask(self, complete: Tensor) -> Tensor:
        """An answer of `cut.complete` [pieces] as one for its cells [R, 1, 1]."""
        return complete.repeat_interleave(self.heads)[:, None, None]


def loop(
    settings: Settings, packed: Packed, seed: Seed, rule: Rule, lost: Tensor | None, record: list[Chunk] | None
) -> Scanned:
    """Run all mini-batches; without a graph, what the backward pass wants of each chunk is added to `record`."""
    sizes, cut, graph = settings.sizes, settings.cut, torch.is_grad_enabled()
    tau, causal = packed.tau[:, None], packed.causal
    last = packed.tau[-1] if graph or torch.compiler.is_compiling() else float(packed.tau[-1])
    products = [torch.bmm(packed.queries, packed.keys.mT)]
    if settings.return_loss:
        products.append(torch.bmm(packed.keys, packed.keys.mT))
    normalised = rule.update.normalised
    blocks = (
        x.split(sizes) for x in (*packed[:5], *products, *(products if normalised else (p * causal for p in products)))
    )
    errors = zip(*(x.split(sizes) for x in packed[6:] if x is not None), strict=True)
    ones = packed.eta.new_ones(sizes[0], len(tau), 1)
    z_q: list[Tensor] = []
    z_before: list[Tensor] = []
    z_after: list[Tensor] = []
    ends: list[Seed] = []
    for chunk, (queries, keys, base, square, eta, *scores) in enumerate(zip(*blocks, strict=True)):
        rule = rule.first(sizes[chunk])
        z = z_first = torch.bmm(keys, seed.weights[0])
        inputs, hidden, slopes = [keys], [], []
        backs: list[Tensor] = []
        for weight in seed.weights[1:]:
            hidden.append(z)
            activated, slope = gelu_and_slope(z)
            slopes.append(slope)
            inputs.append(torch.cat([activated, ones[: sizes[chunk]]], dim=-1))
            z = torch.bmm(inputs[-1], weight)
        parts = reconstruction(z, base, square)
        steps, share, missed, gamma = [parts[0] * eta], None, *next(errors, (None, None))
        if rule.update.has_margin:
            share = error_share(normalise(z, gamma, missed), rule.margin)
            steps[0] = steps[0] * share
        for weight, slope in zip(seed.weights[:0:-1], slopes[::-1], strict=True):
            backs.insert(0, torch.bmm(steps[0], weight[:, :-1].mT))
            steps.insert(0, backs[0] * slope)
        loss = None
        if normalised:
            error = normalise(z, gamma, missed)
            loss = eta * half_square(error if share is None else share * error)[..., None]
            loss = loss.cumsum(1) + seed.loss[0] if seed.loss else loss.cumsum(1)
            tau = normalised_scale(packed.tau[:, None], _squares(seed, inputs, steps), loss)
            causal = -tau.expand(-1, -1, len(packed.tau)).tril()
            scores[len(products) :] = [own * causal for own in scores[: len(products)]]
            last = tau[:, -1:]
        learned = Learned(rule.base(seed.weights, seed.momentum), inputs, steps)
        count, reads = len(products), []
        for viewers, own, masked, seen in ((queries, *scores[::count], z_q), (keys, *scores[1::count], z_after))[
            :count
        ]:
            first = z_first if viewers is keys and not seed.momentum else torch.bmm(viewers, learned.base[0])
            read = Read([viewers], [own], [masked], [])
            reads.append(read)
            seen.append(_outputs(first, read, learned, seed.grad_sum, tau, causal, ones, record is not None))
        z_before.append(z)
        going_on, complete = (*sizes, 0)[chunk + 1], cut.complete(chunk)
        nan = None if lost is None else lost[sum(sizes[:chunk]) : sum(sizes[: chunk + 1])]
        stepped, scale, after = seed.weights, None, seed
        if going_on or complete is not False:
            stepped, momentum, moment = _step(seed, learned, rule, last, nan)
            settled, scale = rule.settle(stepped, not graph and (record is None or not isinstance(rule.forget, Tensor)))
            after = Seed(settled, (), momentum, moment=moment)
            if loss is not None:
                after = after._replace(loss=(torch.zeros_like(loss[:, -1:]),))
        if record is not None:
            record.append(
                Chunk(
                    seed.weights, inputs, steps, hidden, slopes, backs, z, list(parts), reads[0],
                    reads[1] if count > 1 else None, stepped, scale, after.weights[-1],
                )
            )  # fmt: skip
        if going_on < sizes[chunk]:
            ends.append(_end(settings, seed, learned, after, nan, complete, loss).cells(going_on, sizes[chunk]))
        seed = after.cells(0, going_on)
    before, after_all = (torch.cat(z) if settings.return_loss else None for z in (z_before, z_after))
    return Scanned(torch.cat(z_q), before, after_all, _joined(ends[::-1]))


def _squares(seed: Seed, inputs: list[Tensor], steps: list[Tensor]) -> Tensor:
    """|S + sum_{j <= i} x_j^T G_j|^2 of all layers together, for every place i: [R, K, 1]."""
    rows: list[Tensor] = []
    for layer, (x, step) in enumerate(zip(inputs, steps, strict=True)):
        products = torch.bmm(x, x.mT) * torch.bmm(step, step.mT)
        rows.append(2.0 * products.tril(-1).sum(-1) + products.diagonal(dim1=1, dim2=2))
        if seed.grad_sum:
            rows[-1] = rows[-1] + 2.0 * (torch.bmm(x, seed.grad_sum[layer]) * step).sum(-1)
    squares = torch.stack(rows).sum(0).cumsum(1)[..., None]
    if seed.grad_sum:
        squares = squares + torch.stack([s.square().sum((1, 2)) for s in seed.grad_sum]).sum(0)[:, None, None]
    return squares


def _joined(ends: list[Seed]) -> Seed:
    """Seeds one after another as one."""
    if len(ends) == 1:
        return ends[0]
    return Seed(*(tuple(torch.cat(layer) for layer in zip(*part, strict=True)) for part in zip(*ends, strict=True)))


def _outputs(
    z: Tensor,
    read: Read,
    learned: Learned,
    grad_sum: Weights,
    tau: Tensor,
    causal: Tensor,
    ones: Tensor,
    slopes: bool,
) -> Tensor:
    """g(x_i; W_i) for every token i of a chunk (equation 8), from z [R, K, columns], their product with the first
    layer's weights; `read` comes with the first layer's part and leaves with all."""
    for layer, (weight, keys, step) in enumerate(zip(*learned, strict=True)):
        if layer > 0:
            if slopes:
                activated, slope = gelu_and_slope(z)
                read.slopes.append(slope)
            else:
                activated = gelu(z)
            x = torch.cat([activated, ones[: len(z)]], dim=-1)
            z, products = torch.bmm(x, weight), torch.bmm(x, keys.mT)
            read.inputs.append(x)
            read.products.append(products)
            read.masked.append(products * causal)
        z = torch.baddbmm(z, read.masked[layer], step)
        if grad_sum:
            z = z.addcmul(torch.bmm(read.inputs[layer], grad_sum[layer]), tau, value=-1)
    return z


def _step(
    seed: Seed, learned: Learned, rule: Rule, tau: Tensor | float, nan: Tensor | None
) -> tuple[Weights, Weights, Weights]:
    """The weights, the momentum and the second moment after a full mini-batch (equation 9), whose last token has the
    scale tau."""
    if rule.update.direction is not None:
        step = tuple(tau * s for s in _sums(seed, learned, nan))
        return rule.stepped(seed.weights, step, seed.momentum, seed.moment)
    target, sign = (tuple(rule.momentum * m for m in seed.momentum), 1.0) if seed.momentum else (seed.weights, -1.0)
    if isinstance(tau, Tensor):
        if seed.grad_sum:
            target = tuple(w.addcmul(sign * tau, s) for w, s in zip(target, seed.grad_sum, strict=True))
        gradients = zip(target, learned.inputs, learned.steps, strict=True)
        target = tuple(torch.baddbmm(w, x.mT, (sign * tau) * step) for w, x, step in gradients)
    else:
        if seed.grad_sum:
            target = tuple(w.add(s, alpha=sign * tau) for w, s in zip(target, seed.grad_sum, strict=True))
        gradients = zip(target, learned.inputs, learned.steps, strict=True)
        target = tuple(torch.baddbmm(w, x.mT, step, alpha=sign * tau) for w, x, step in gradients)
    if nan is not None:
        target = tuple(w + nan for w in target)
    if seed.momentum:
        return tuple(w - m for w, m in zip(seed.weights, target, strict=True)), target, ()
    return target, (), ()


def _sums(seed: Seed, learned: Learned, nan: Tensor | None) -> Weights:
    """The gradient sum of a mini-batch, with what an earlier call has seen of it."""
    sums = tuple(torch.bmm(x.mT, step) for x, step in zip(learned.inputs, learned.steps, strict=True))
    for more in (seed.grad_sum, () if nan is None else (nan,) * len(sums)):
        sums = tuple(a + b for a, b in zip(sums, more, strict=True)) if more else sums
    return sums


def _end(
    settings: Settings,
    seed: Seed,
    learned: Learned,
    after: Seed,
    nan: Tensor | None,
    complete: bool | Tensor,
    loss: Tensor | None,
) -> Seed:
    """The state of cells when their piece ends: after a full mini-batch, or inside one, with its sums."""
    if complete is not False:
        after = after._replace(grad_sum=tuple(torch.zeros_like(w) for w in after.weights))
    if complete is True:
        return after
    inside = Seed(
        seed.weights,
        _sums(seed, learned, nan),
        seed.momentum,
        () if loss is None else (loss[:, -1:] if nan is None else loss[:, -1:] + nan,),
        seed.moment,
    )
    if complete is False:
        return inside
    full = settings.mask(complete)
    chosen = (zip(a, b, strict=True) for a, b in zip(after, inside, strict=True))
    return Seed(*(tuple(torch.where(full, a, b) for a, b in pairs) for pairs in chosen))
