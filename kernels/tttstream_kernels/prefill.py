"""All mini-batches of a token-causal call that wants no gradient: the loop of `chunks`, each overwriting the last one.

The equations are the same (README, 2 to 9). Weights are stepped in place, and what belongs to the layers after the
first lies where that of the mini-batch before lay: together a third of the time of an MLP's loop. A mini-batch of the
linear model takes some 50 microseconds, so the loop calls nothing that it can do without.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu_and_slope_into, gelu_into
from tttstream_kernels.chunks import Packed, Scanned, Seed, Settings
from tttstream_kernels.norm import error_share, gradient_parts, normalise
from tttstream_kernels.update import Rule, Update, Weights


def plain(update: Update) -> bool:
    """Whether the step of an update is the plain one, and only forgetting and the last layer's norm come after it."""
    return not (update.has_momentum or update.columns or update.normalised or update.direction is not None)


def covers(rule: Rule, lost: Tensor | None) -> bool:
    """Whether `prefill` has what a call without gradients asks for."""
    return lost is None and plain(rule.update)


class Layer(NamedTuple):
    """A layer after the first: its weight, the same turned and without the bias; where the inputs of keys and of tokens
    that read are put [R, K, rows], their ones in place; the same without the ones, and the keys' turned. Then where
    what leads to these inputs is put [R, K, rows - 1]: z, gelu' of the keys, their steps, and scratch."""

    weight: Tensor
    back: Tensor
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
    def of(weight: Tensor, tokens: int) -> Layer:
        """The layer of a weight, for so many tokens a cell."""
        cells, rows, _ = weight.shape
        keys, reads = weight.new_ones(2, cells, tokens, rows).unbind(0)
        bodies = weight.new_empty(4, cells, tokens, rows - 1).unbind(0)
        return Layer(weight, weight[:, :-1].mT, keys, keys[..., :-1], keys.mT, reads, reads[..., :-1], *bodies)


def prefill(settings: Settings, packed: Packed, seed: Seed, rule: Rule) -> Scanned:
    """See `chunks.loop`. The weights of `seed` become those with which the pieces end."""
    sizes, cut = settings.sizes, settings.cut
    causal, tau, last = packed.causal, packed.tau[:, None], float(packed.tau[-1])
    z, *losses = (torch.empty_like(packed.base) for _ in range(3 if settings.return_loss else 1))
    before, after = losses or (z, None)  # without losses the two share memory
    readers = []
    for tokens, place in ((packed.queries, z), (packed.keys, after)):
        if place is not None:
            products = torch.bmm(tokens, packed.keys.mT).mul_(causal)
            readers.append(list(zip(*(x.split(sizes) for x in (tokens, products, place)), strict=True)))
    streams = (x.split(sizes) for x in (packed.keys, packed.keys.mT, packed.base, packed.eta, before))
    missed = zip(*(x.split(sizes) for x in (packed.missed, packed.gamma) if x is not None), strict=True)
    weights, grad_sum, square = seed.weights, seed.grad_sum, packed.square
    whole = all(cut.complete(chunk) is True for chunk in range(len(sizes)))
    sums = () if whole else tuple(torch.zeros_like(w) for w in weights)
    for chunk, (keys, turned, base, eta, place) in enumerate(zip(*streams, strict=True)):
        if chunk == 0 or sizes[chunk] < sizes[chunk - 1]:
            cells = sizes[chunk]
            weights, rule, square = tuple(w[:cells] for w in weights), rule.first(cells), square[:cells]
            first, layers = weights[0], [Layer.of(w, len(tau)) for w in weights[1:]]
            below = [layer.z for layer in layers]

        # gradients of the keys (equations 3 and 5)
        outs = [*below, place]
        x = torch.bmm(keys, first, out=outs[0])
        for n, layer in enumerate(layers, 1):
            gelu_and_slope_into(x, layer.keys_body, layer.slope, layer.step, layer.scratch)
            x = torch.bmm(layer.keys, layer.weight, out=outs[n])
        step = gradient_parts(x, base, square)[0].mul_(eta)
        if rule.update.has_margin:
            offset, gamma = next(missed)
            step.mul_(error_share(normalise(x, gamma, offset), rule.margin))
        inputs, steps = [turned], [step]
        for layer in layers[::-1]:
            step = torch.bmm(step, layer.back, out=layer.step).mul_(layer.slope)
            inputs.insert(1, layer.turned)
            steps.insert(0, step)

        # outputs of the queries, and with losses of the keys (equation 8)
        for reader in readers:
            tokens, products, place = reader[chunk]
            outs = [*below, place]
            x = torch.bmm(tokens, first, out=outs[0])
            if grad_sum:
                x.addcmul_(torch.bmm(tokens, grad_sum[0]), tau, value=-1)
            x.baddbmm_(products, step)
            for n, layer in enumerate(layers, 1):
                gelu_into(x, layer.reads_body, layer.scratch)
                products = torch.bmm(layer.reads, layer.turned).mul_(causal)
                x = torch.bmm(layer.reads, layer.weight, out=outs[n])
                if grad_sum:
                    x.addcmul_(torch.bmm(layer.reads, grad_sum[n]), tau, value=-1)
                x.baddbmm_(products, steps[n])

        if cut.complete(chunk) is True:
            rule.step(weights, inputs, steps, grad_sum, last)
        else:
            _end(settings, chunk, weights, sums, inputs, steps, grad_sum, rule, last)
        grad_sum = ()
    return Scanned(z, before if losses else None, after, Seed(seed.weights, sums, ()))


def _end(
    settings: Settings,
    chunk: int,
    weights: Weights,
    sums: Weights,
    inputs: list[Tensor],
    steps: list[Tensor],
    grad_sum: Weights,
    rule: Rule,
    tau: float,
) -> None:
    """`Rule.step` where pieces end inside their mini-batch: they keep their weights, and its steps go to their sums."""
    cells, going_on, complete = settings.sizes[chunk], (*settings.sizes, 0)[chunk + 1], settings.cut.complete(chunk)
    mask = steps[0].new_zeros(cells, 1, 1, dtype=torch.bool)
    if isinstance(complete, Tensor):
        mask = settings.mask(complete)
    full, kept = mask[going_on:], [w[going_on:].clone() for w in weights]
    for n, (x, step) in enumerate(zip(inputs, steps, strict=True)):
        total = torch.bmm(x[going_on:], step[going_on:])
        if grad_sum:
            total += grad_sum[n][going_on:]
        sums[n][going_on:cells] = torch.where(full, 0.0, total)
    if going_on or complete is not False:
        rule.step(weights, inputs, steps, grad_sum, tau)
        for weight, old in zip(weights, kept, strict=True):
            weight[going_on:] = torch.where(full, weight[going_on:], old)
