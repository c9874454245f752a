"""The loop over the mini-batches of a token-causal call, chunk by chunk (README, equations 7 to 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu, gelu_and_slope, gelu_and_slope_into, gelu_constant, gelu_into
from tttstream_kernels.norm import error_share, half_square, normalise, reconstruction
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
    """The values that all chunks share. sizes: cells of each chunk. complete: the value of `cut.complete` for each
    chunk. return_loss: whether to return losses."""

    sizes: list[int]
    complete: list[bool | Tensor]
    heads: int
    return_loss: bool

    @property
    def whole(self) -> bool:
        """Whether every mini-batch is complete, so that no sums are left."""
        return all(complete is True for complete in self.complete)

    def mask(self, complete: Tensor) -> Tensor:
        """An answer of `cut.complete` [pieces] as one for its cells [R, 1, 1]."""
        return complete.repeat_interleave(self.heads)[:, None, None]


class Layer:
    """A layer after the first, which allocates new memory in each mini-batch."""

    out: Any = None
    """Memory for the input of the activation [R, K, rows - 1]; None to allocate it."""
    step: Any = None
    """Memory for the gradient of this input."""

    def __init__(self, weight: Tensor, ones: Tensor) -> None:
        self.back, self.ones = weight[:, :-1].mT, ones

    def keys(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The inputs of the keys [R, K, rows], which end with a column of ones; their transpose; and gelu' for all but
        this column [R, K, rows - 1]."""
        activated, slope = gelu_and_slope(z)
        x = torch.cat([activated, self.ones], dim=-1)
        return x, x.mT, slope

    def reads(self, z: Tensor, slopes: list[Tensor] | None) -> Tensor:
        """The inputs of the queries [R, K, rows]. gelu' is appended to `slopes` if there is a list."""
        if slopes is None:
            return torch.cat([gelu(z), self.ones], dim=-1)
        activated, slope = gelu_and_slope(z)
        slopes.append(slope)
        return torch.cat([activated, self.ones], dim=-1)


class Room(Layer):
    """A layer after the first, which uses the same memory in all mini-batches."""

    def __init__(self, weight: Tensor, ones: Tensor) -> None:
        (cells, tokens, _), rows = ones.shape, weight.shape[1]
        self.back, self.constant = weight[:, :-1].mT, gelu_constant(weight)
        self.inputs, self.read = weight.new_ones(2, cells, tokens, rows).unbind(0)
        self.bodies, self.turned = (self.inputs[..., :-1], self.read[..., :-1]), self.inputs.mT
        self.out, self.step, self.slope, self.scratch = weight.new_empty(4, cells, tokens, rows - 1).unbind(0)

    def keys(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gelu_and_slope_into(z, self.bodies[0], self.slope, self.constant, self.step, self.scratch)
        return self.inputs, self.turned, self.slope

    def reads(self, z: Tensor, slopes: list[Tensor] | None) -> Tensor:
        """See `Layer`; without slopes."""
        gelu_into(z, self.bodies[1], self.constant, self.scratch)
        return self.read


def loop(
    settings: Settings, packed: Packed, seed: Seed, rule: Rule, lost: Tensor | None, record: list[Chunk] | None
) -> Scanned:
    """Run all mini-batches. record: a list for the values of each chunk that the backward pass needs, else None.

    If the values of a mini-batch are not needed later, the weights are updated in place (the weights of `seed` too),
    and each mini-batch overwrites the values of the one before. This saves a third of the time of an MLP's loop. A
    mini-batch of the linear model takes some 50 microseconds, so the loop makes as few calls as possible.
    """
    sizes, remaining, whole = settings.sizes, [*settings.sizes[1:], 0], settings.whole
    traced = torch.is_grad_enabled() or torch.compiler.is_compiling()
    normalised, margin = rule.update.normalised, rule.update.has_margin
    reuse = record is None and not traced and lost is None and rule.update.plain
    tau, causal = packed.tau[:, None], packed.causal
    last = packed.tau[-1] if traced else float(packed.tau[-1])
    ones, all_turned = packed.eta.new_ones(sizes[0], len(tau), 1), packed.keys.mT
    split: Any = torch.unsafe_split_with_sizes if reuse else torch.split_with_sizes  # the first counts no writes
    streams = (split(x, sizes) for x in (packed.keys, all_turned, packed.base, packed.eta))
    missed = () if packed.missed is None else split(packed.missed, sizes)
    readers: list[list[tuple[Tensor, ...]]] = []
    for tokens in (packed.queries, packed.keys) if settings.return_loss else (packed.queries,):
        scores = torch.bmm(tokens, all_turned)
        masked = scores if normalised else scores.mul_(causal) if reuse else scores * causal
        of_queries = split(tokens, sizes), split(masked, sizes)
        of_scores = of_queries[1] if masked is scores else split(scores, sizes)
        readers.append(list(zip(*of_queries, of_scores, strict=True)))
    # z of the keys, of the queries, and of the keys that read; without losses the first two share memory
    seen: list[Any] = [[] for _ in (0, *readers)]
    all_z: list[Tensor] = []
    if reuse:
        all_z = [torch.empty_like(packed.base) for _ in (seen if settings.return_loss else readers)]
        all_z = all_z if settings.return_loss else 2 * all_z
        seen = [split(z, sizes) for z in all_z] if settings.return_loss else 2 * [split(all_z[0], sizes)]
    ends: list[Seed] = []
    backs: list[Tensor]
    first, sums = seed, () if whole or not reuse else tuple(torch.zeros_like(w) for w in seed.weights)
    before = 0
    chunks = zip(sizes, remaining, settings.complete, *streams, strict=True)
    for chunk, (cells, going_on, complete, keys, turned, base, eta) in enumerate(chunks):
        if not reuse or cells != before:
            rule, weights, square, before = rule.first(cells), seed.weights, packed.square[:cells], cells
            layers = [(Room if reuse else Layer)(w, ones[:cells]) for w in weights[1:]]
            outs = [*(layer.out for layer in layers), None]

        # gradients of the keys (equations 3 and 5)
        inputs, turns, hidden, slopes = [keys], [turned], [], []
        if reuse:
            outs[-1] = seen[0][chunk]
        z = torch.bmm(keys, weights[0], out=outs[0])
        for n, layer in enumerate(layers, 1):
            hidden.append(z)
            x, x_turned, slope = layer.keys(z)
            inputs.append(x)
            turns.append(x_turned)
            slopes.append(slope)
            z = torch.bmm(x, weights[n], out=outs[n])
        if not reuse:
            seen[0].append(z)
        parts = reconstruction(z, base, square)
        step = parts[0].mul_(eta) if reuse else parts[0] * eta
        if packed.gamma is not None:
            error = normalise(z, packed.gamma[:cells], missed[chunk])
            if margin:
                share = error_share(error, rule.margin)
                step, error = share * step, share * error
        steps, backs = [step], []
        for layer, slope in zip(layers[::-1], slopes[::-1], strict=True):
            back = torch.bmm(steps[0], layer.back, out=layer.step)
            backs.insert(0, back)
            steps.insert(0, back.mul_(slope) if reuse else back * slope)

        loss = None
        if normalised:
            loss = (eta * half_square(error)[..., None]).cumsum(1)
            loss = loss + seed.loss[0] if seed.loss else loss
            tau = normalised_scale(packed.tau[:, None], _squares(seed, inputs, steps), loss)
            causal = -tau.expand(-1, -1, len(packed.tau)).tril()
            last = tau[:, -1:]

        # outputs of the queries, and with losses of the keys (equation 8)
        stands = rule.base(weights, seed.momentum) if seed.momentum else weights
        reads: list[Read] = []
        for reader, blocks in enumerate(readers, 1):
            x, masked, scores = blocks[chunk]
            if reuse:
                outs[-1] = seen[reader][chunk]
            elif normalised:
                masked = scores * causal
            read = None
            if record is not None:
                reads.append(read := Read([], [], [], []))
            for n, weight in enumerate(stands):
                if n > 0:
                    x = layers[n - 1].reads(z, None if read is None else read.slopes)
                    scores = torch.bmm(x, turns[n])
                    masked = scores.mul_(causal) if reuse else scores * causal
                z = torch.bmm(x, weight, out=outs[n])
                if seed.grad_sum:
                    z.addcmul_(torch.bmm(x, seed.grad_sum[n]), tau, value=-1)
                z.baddbmm_(masked, steps[n])
                if read is not None:
                    read.inputs.append(x)
                    read.products.append(scores)
                    read.masked.append(masked)
            if not reuse:
                seen[reader].append(z)

        nan = None if lost is None else lost[sum(sizes[:chunk]) : sum(sizes[: chunk + 1])]
        stepped, scale, after, inside = weights, None, seed, None
        some_complete = going_on > 0 or complete is not False
        if complete is not True and going_on < cells:
            inside = _inside(seed, turns, steps, nan, loss, going_on, reuse and some_complete)
        if some_complete:
            carried = seed.momentum, seed.moment
            settled, (momentum, moment), stepped, scale = rule.step(
                weights, carried, turns, steps, seed.grad_sum, last, nan, reuse
            )
            after = Seed(settled, (), momentum, () if loss is None else (torch.zeros_like(loss[:, -1:]),), moment)
        if record is not None:
            record.append(
                Chunk(
                    weights, inputs, steps, hidden, slopes, backs, seen[0][-1], list(parts), reads[0],
                    reads[1] if settings.return_loss else None, stepped, scale, after.weights[-1],
                )
            )  # fmt: skip
        if going_on < cells and not (reuse and inside is None):
            end = _end(settings, after.cells(going_on, cells), inside, complete)
            if not reuse:
                ends.append(end)
            else:
                for place, value in zip((*first.weights, *sums), (*end.weights, *end.grad_sum), strict=True):
                    place[going_on:cells] = value
        seed = after if going_on == cells else after.cells(0, going_on)
    all_z = all_z or [torch.cat(z) for z in (seen if settings.return_loss else seen[1:])]
    z_keys, z_queries, *z_after = all_z if settings.return_loss else (None, all_z[-1])
    joined = Seed(first.weights, sums, ()) if reuse else _joined(ends[::-1])
    return Scanned(z_queries, z_keys, z_after[0] if z_after else None, joined)


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


def _inside(
    seed: Seed,
    turns: list[Tensor],
    steps: list[Tensor],
    nan: Tensor | None,
    loss: Tensor | None,
    begin: int,
    copy: bool,
) -> Seed:
    """The state of the cells from number `begin` on, inside a mini-batch, with its gradient sums. copy: copy the
    weights."""
    ending = slice(begin, None)
    seed = seed.cells(begin, len(steps[0]))
    nan = None if nan is None else nan[ending]
    return Seed(
        tuple(w.clone() for w in seed.weights) if copy else seed.weights,
        gradient_sums([x[ending] for x in turns], [step[ending] for step in steps], seed.grad_sum, nan),
        seed.momentum,
        () if loss is None else (loss[ending, -1:] if nan is None else loss[ending, -1:] + nan,),
        seed.moment,
    )


def _end(settings: Settings, after: Seed, inside: Seed | None, complete: bool | Tensor) -> Seed:
    """The final state of the cells that end here: `after` if their mini-batch is full, `inside` otherwise."""
    if complete is False and inside is not None:
        return inside
    if not settings.whole:
        after = after._replace(grad_sum=tuple(torch.zeros_like(w) for w in after.weights))
    if inside is None or isinstance(complete, bool):
        return after
    full = settings.mask(complete)[-len(after.weights[0]) :]
    chosen = (zip(a, b, strict=True) for a, b in zip(after, inside, strict=True))
    return Seed(*(tuple(torch.where(full, a, b) for a, b in pairs) for pairs in chosen))
