"""The loop over the mini-batches of a token-causal call, chunk by chunk (README, equations 7 to 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu, gelu_and_slope, gelu_and_slope_into, gelu_into
from tttstream_kernels.inner import Dense
from tttstream_kernels.norm import error_share, half_square, normalise, reconstruction
from tttstream_kernels.plan import Ragged, Uniform
from tttstream_kernels.update import Rule, Weights, gradient_sums, normalised_scale


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


@dataclass
class Settings:
    """The values that all chunks share. sizes: cells of each chunk. return_loss: whether losses are wanted. whole:
    whether every mini-batch is complete, so that no sums are left."""

    inner: Dense
    sizes: list[int]
    cut: Uniform | Ragged
    heads: int
    return_loss: bool
    whole: bool

    def mask(self, complete: Tensor) -> Tensor:
        """An answer of `cut.complete` [pieces] as one for its cells [R, 1, 1]."""
        return complete.repeat_interleave(self.heads)[:, None, None]


class Room(NamedTuple):
    """Memory for a layer after the first, which each mini-batch overwrites: inputs of keys and of tokens that read
    [R, K, rows], their ones in place; the same without the ones, and the keys' transposed. Then z, gelu' of the keys,
    their steps, and scratch [R, K, rows - 1]."""

    keys: Tensor
    keys_body: Tensor
    turned: Tensor
    reads: Tensor
    reads_body: Tensor
    z: Tensor
    slope: Tensor
    step: Tensor
    scratch: Tensor

    @staticmethod
    def of(weight: Tensor, tokens: int) -> Room:
        """For the layer of a weight, and so many tokens a cell."""
        cells, rows, _ = weight.shape
        keys, reads = weight.new_ones(2, cells, tokens, rows).unbind(0)
        bodies = weight.new_empty(4, cells, tokens, rows - 1).unbind(0)
        return Room(keys, keys[..., :-1], keys.mT, reads, reads[..., :-1], *bodies)


def loop(
    settings: Settings, packed: Packed, seed: Seed, rule: Rule, lost: Tensor | None, record: list[Chunk] | None
) -> Scanned:
    """Run all mini-batches. record: a list for the values of each chunk that the backward pass needs, else None.

    If the values of a mini-batch are not needed later, the weights are updated in place (the weights of `seed` too),
    and each mini-batch overwrites the values of the one before. This saves a third of the time of an MLP's loop. A
    mini-batch of the linear model takes some 50 microseconds, so the loop makes as few calls as possible.
    """
    sizes, cut = settings.sizes, settings.cut
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    normalised, margin = rule.update.normalised, rule.update.has_margin
    reuse = record is None and not traced and lost is None and rule.update.plain
    tau, causal = packed.tau[:, None], packed.causal
    last = packed.tau[-1] if traced else float(packed.tau[-1])
    errors = zip(*(x.split(sizes) for x in packed[6:] if x is not None), strict=True)
    ones = packed.eta.new_ones(sizes[0], len(tau), 1)
    turned_keys = packed.keys.mT
    streams = [x.split(sizes) for x in (packed.keys, turned_keys, packed.base, packed.square, packed.eta)]
    readers: list[list[tuple[Tensor, ...]]] = []
    for tokens in (packed.queries, packed.keys) if settings.return_loss else (packed.queries,):
        scores = torch.bmm(tokens, turned_keys)
        masked = scores if normalised else scores.mul_(causal) if reuse else scores * causal
        readers.append(list(zip(*(x.split(sizes) for x in (tokens, scores, masked)), strict=True)))
    # z of the keys, of the queries, and of the keys that read; without losses the first two share memory
    whole = [torch.empty_like(packed.base) for _ in range(3 if settings.return_loss else 1)] if reuse else []
    whole = whole if settings.return_loss else 2 * whole
    places = [z.split(sizes) for z in whole]
    seen: list[list[Tensor]] = [[] for _ in (0, *readers)]
    ends: list[Seed] = []
    backs: list[Tensor]
    remaining = [*sizes[1:], 0]
    for chunk, (keys, turned, base, square, eta) in enumerate(zip(*streams, strict=True)):
        cells, going_on, complete = sizes[chunk], remaining[chunk], cut.complete(chunk)
        if not reuse or chunk == 0 or cells < sizes[chunk - 1]:
            rule, weights = rule.first(cells), seed.weights
            backward = [w[:, :-1].mT for w in weights[1:]]
            rooms = [Room.of(w, len(tau)) for w in weights[1:]] if reuse else []
            out: list[Tensor | None] = [*(room.z for room in rooms), None] if reuse else [None] * len(weights)

        # gradients of the keys (equations 3 and 5)
        inputs, turns, hidden, slopes = [keys], [turned], [], []
        if reuse:
            out[-1] = places[0][chunk]
        z = torch.bmm(keys, weights[0], out=out[0])
        for n, weight in enumerate(weights[1:], 1):
            hidden.append(z)
            if reuse:
                x, x_turned, slope = (room := rooms[n - 1]).keys, room.turned, room.slope
                gelu_and_slope_into(z, room.keys_body, slope, room.step, room.scratch)
            else:
                activated, slope = gelu_and_slope(z)
                x = torch.cat([activated, ones[:cells]], dim=-1)
                x_turned = x.mT
            slopes.append(slope)
            inputs.append(x)
            turns.append(x_turned)
            z = torch.bmm(x, weight, out=out[n])
        if not reuse:
            seen[0].append(z)
        parts = reconstruction(z, base, square)
        steps, backs = [parts[0].mul_(eta) if reuse else parts[0] * eta], []
        share = None
        if normalised or margin:
            missed, gamma = next(errors)
        if margin:
            share = error_share(normalise(z, gamma, missed), rule.margin)
            steps[0] = steps[0] * share
        for n in reversed(range(len(hidden))):
            backs.insert(0, torch.bmm(steps[0], backward[n], out=rooms[n].step if reuse else None))
            steps.insert(0, backs[0].mul_(slopes[n]) if reuse else backs[0] * slopes[n])

        loss = None
        if normalised:
            error = normalise(z, gamma, missed)
            loss = eta * half_square(error if share is None else share * error)[..., None]
            loss = loss.cumsum(1) + seed.loss[0] if seed.loss else loss.cumsum(1)
            tau = normalised_scale(packed.tau[:, None], _squares(seed, inputs, steps), loss)
            causal = -tau.expand(-1, -1, len(packed.tau)).tril()
            last = tau[:, -1:]

        # outputs of the queries, and with losses of the keys (equation 8)
        stands = rule.base(weights, seed.momentum) if seed.momentum else weights
        reads: list[Read] = []
        for reader, blocks in enumerate(readers, 1):
            x, scores, masked = blocks[chunk]
            if reuse:
                out[-1] = places[reader][chunk]
            elif normalised:
                masked = scores * causal
            if record is not None:
                reads.append(read := Read([], [], [], []))
            for n, weight in enumerate(stands):
                if n > 0:
                    if reuse:
                        x = rooms[n - 1].reads
                        gelu_into(z, rooms[n - 1].reads_body, rooms[n - 1].scratch)
                    elif record is None:
                        x = torch.cat([gelu(z), ones[:cells]], dim=-1)
                    else:
                        activated, slope = gelu_and_slope(z)
                        x = torch.cat([activated, ones[:cells]], dim=-1)
                        read.slopes.append(slope)
                    scores = torch.bmm(x, turns[n])
                    masked = scores.mul_(causal) if reuse else scores * causal
                z = torch.bmm(x, weight, out=out[n])
                if seed.grad_sum:
                    z.addcmul_(torch.bmm(x, seed.grad_sum[n]), tau, value=-1)
                z.baddbmm_(masked, steps[n])
                if record is not None:
                    for part, value in zip(read, (x, scores, masked), strict=False):
                        part.append(value)
            if not reuse:
                seen[reader].append(z)

        nan = None if lost is None else lost[sum(sizes[:chunk]) : sum(sizes[: chunk + 1])]
        stepped, scale, after = weights, None, seed
        if going_on or complete is not False:
            in_place = reuse and (complete is True or going_on == cells)
            carried = seed.momentum, seed.moment
            settled, (momentum, moment), stepped, scale = rule.step(
                weights, carried, turns, steps, seed.grad_sum, last, nan, in_place
            )
            after = Seed(settled, (), momentum, () if loss is None else (torch.zeros_like(loss[:, -1:]),), moment)
        if record is not None:
            record.append(
                Chunk(
                    weights, inputs, steps, hidden, slopes, backs, seen[0][-1], list(parts), reads[0],
                    reads[1] if settings.return_loss else None, stepped, scale, after.weights[-1],
                )
            )  # fmt: skip
        if going_on < cells:
            ends.append(_end(settings, seed, turns, steps, after, nan, complete, loss).cells(going_on, cells))
        seed = after if going_on == cells else after.cells(0, going_on)
    whole = whole or [torch.cat(z) for z in (seen if settings.return_loss else seen[1:])]
    before, queries, *own = whole if settings.return_loss else (None, whole[-1])
    return Scanned(queries, before, own[0] if own else None, _joined(ends[::-1]))


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


def _end(
    settings: Settings,
    seed: Seed,
    turns: list[Tensor],
    steps: list[Tensor],
    after: Seed,
    nan: Tensor | None,
    complete: bool | Tensor,
    loss: Tensor | None,
) -> Seed:
    """The state of cells when their piece ends: after a full mini-batch, or inside one, with its sums."""
    if complete is True and settings.whole:
        return after
    if complete is not False:
        after = after._replace(grad_sum=tuple(torch.zeros_like(w) for w in after.weights))
    if complete is True:
        return after
    inside = Seed(
        seed.weights,
        gradient_sums(turns, steps, seed.grad_sum, nan),
        seed.momentum,
        () if loss is None else (loss[:, -1:] if nan is None else loss[:, -1:] + nan,),
        seed.moment,
    )
    if complete is False:
        return inside
    full = settings.mask(complete)
    chosen = (zip(a, b, strict=True) for a, b in zip(after, inside, strict=True))
    return Seed(*(tuple(torch.where(full, a, b) for a, b in pairs) for pairs in chosen))
