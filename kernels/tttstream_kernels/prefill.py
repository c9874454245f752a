"""All mini-batches of a token-causal call that wants no gradient: the loop of `waves`, each overwriting the last one.

The equations are the same (README, 2 to 9). Weights are stepped in place, and the inputs of the layers after the first
lie where those of the mini-batch before lay: together a third of an MLP's time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu_and_slope, gelu_into
from tttstream_kernels.norm import gradient_parts
from tttstream_kernels.update import Rule
from tttstream_kernels.waves import Packed, Scanned, Seed, Settings


def covers(seed: Seed, rule: Rule, lost: Tensor | None) -> bool:
    """Whether `Prefill` has what a call without gradients asks for."""
    return lost is None and not seed.momentum and not rule.update.follow and not rule.update.columns


class Layer(NamedTuple):
    """A layer after the first: its weight, the same turned and without the bias; where the inputs of keys and of tokens
    that read are put [R, K, rows], their ones in place; the same without the ones, and the keys' turned."""

    weight: Tensor
    back: Tensor
    keys: Tensor
    keys_body: Tensor
    turned: Tensor
    reads: Tensor
    reads_body: Tensor


class Prefill:
    """The mini-batches of a call, and at any one of them the cells that it has: their weights, and their layers after
    the first. The weights of `seed` become those with which the pieces end."""

    def __init__(self, settings: Settings, packed: Packed, seed: Seed, rule: Rule) -> None:
        self.settings, self.packed, self.rule = settings, packed, rule
        self.tau, self.last, self.causal = packed.tau[:, None], float(packed.tau[-1]), packed.causal
        self.ends = Seed(seed.weights, tuple(torch.zeros_like(w) for w in seed.weights), ())
        self.weights, self.pending, self.square = seed.weights, seed.pending, packed.square
        self.layers: list[Layer] = []

    def run(self) -> Scanned:
        """See `waves.loop`."""
        packed, sizes = self.packed, self.settings.sizes
        z, *losses = (torch.empty_like(packed.base) for _ in range(3 if self.settings.return_loss else 1))
        before, after = losses or (z, None)  # what nobody asks for lies where z comes to lie
        readers = []
        for tokens, place in ((packed.queries, z), (packed.keys, after)):
            if place is not None:
                products = torch.bmm(tokens, packed.keys.mT).mul_(self.causal)
                readers.append(list(zip(*(x.split(sizes) for x in (tokens, products, place)), strict=True)))
        streams = (x.split(sizes) for x in (packed.keys, packed.base, packed.eta, before, packed.keys.mT))
        for wave, (*block, turned) in enumerate(zip(*streams, strict=True)):
            if wave == 0 or sizes[wave] < sizes[wave - 1]:
                self.narrow(sizes[wave])
            steps = self.learn(*block)
            inputs = [turned, *(layer.turned for layer in self.layers)]
            for reader in readers:
                self.read(inputs, steps, *reader[wave])
            complete = self.settings.cut.complete(wave)
            if complete is True:
                self.step(inputs, steps)
            else:
                self.end(inputs, steps, (*sizes, 0)[wave + 1], complete)
            self.pending = ()
        return Scanned(z, before if losses else None, after, self.ends)

    def narrow(self, cells: int) -> None:
        """Go on with the first cells."""
        self.rule, self.square = self.rule.first(cells), self.square[:cells]
        self.weights = tuple(w[:cells] for w in self.weights)
        self.layers = []
        for weight in self.weights[1:]:
            keys, reads = weight.new_ones(2, cells, len(self.tau), weight.shape[1]).unbind(0)
            parts = keys, keys[..., :-1], keys.mT, reads, reads[..., :-1]
            self.layers.append(Layer(weight, weight[:, :-1].mT, *parts))

    def learn(self, keys: Tensor, base: Tensor, eta: Tensor, place: Tensor) -> list[Tensor]:
        """The keys' steps by layer (equations 3 and 5), and their z into its place."""
        layers = self.layers
        z = torch.bmm(keys, self.weights[0], out=None if layers else place)
        slopes = []
        for layer in layers:
            slopes.append(gelu_and_slope(z, out=layer.keys_body)[1])
            z = torch.bmm(layer.keys, layer.weight, out=place if layer is layers[-1] else None)
        steps = [gradient_parts(z, base, self.square)[0].mul_(eta)]
        for layer, slope in zip(layers[::-1], slopes[::-1], strict=True):
            steps.insert(0, torch.bmm(steps[0], layer.back).mul_(slope))
        return steps

    def read(self, inputs: list[Tensor], steps: list[Tensor], tokens: Tensor, products: Tensor, place: Tensor) -> None:
        """g(x_i; W_i) of every token i (equation 8) into its place; products: with the keys, masked."""
        z, top = tokens, len(self.layers)
        for n, (weight, step) in enumerate(zip(self.weights, steps, strict=True)):
            if n > 0:
                layer = self.layers[n - 1]
                gelu_into(z, layer.reads_body)
                tokens, products = layer.reads, torch.bmm(layer.reads, inputs[n]).mul_(self.causal)
            z = torch.bmm(tokens, weight, out=place if n == top else None)
            if self.pending:
                z.addcmul_(torch.bmm(tokens, self.pending[n]), self.tau, value=-1)
            z.baddbmm_(products, step)

    def step(self, inputs: list[Tensor], steps: list[Tensor]) -> None:
        """Equation 9. Where what is forgotten is a number, the product that makes the step forgets."""
        rule, weights = self.rule, self.weights
        stay = 1.0 if isinstance(rule.forget, Tensor) else 1.0 - rule.forget
        for n, (weight, x, step) in enumerate(zip(weights, inputs, steps, strict=True)):
            if self.pending:
                weight.add_(self.pending[n], alpha=-self.last)
            weight.baddbmm_(x, step, beta=stay, alpha=-stay * self.last)
            if stay != 1.0:
                weight.add_(rule.start[n], alpha=1.0 - stay)
        if isinstance(rule.forget, Tensor):
            rule.mixed(weights, in_place=True)
        scale = rule.scale(weights[-1])
        if scale is not None:
            weights[-1].mul_(scale)

    def end(self, inputs: list[Tensor], steps: list[Tensor], going_on: int, complete: bool | Tensor) -> None:
        """`step`, but for cells whose piece ends inside this mini-batch: they keep their weights, and its sums."""
        full = torch.zeros_like(self.tau[:1], dtype=torch.bool)
        if isinstance(complete, Tensor):
            full = self.settings.mask(complete)[going_on:]
        ending = slice(going_on, len(self.weights[0]))
        kept = [weight[ending].clone() for weight in self.weights]
        for n, (x, step) in enumerate(zip(inputs, steps, strict=True)):
            sums = torch.bmm(x[ending], step[ending])
            if self.pending:
                sums += self.pending[n][ending]
            self.ends.pending[n][ending] = torch.where(full, 0.0, sums)
        if going_on or complete is not False:
            self.step(inputs, steps)
            for weight, old in zip(self.weights, kept, strict=True):
                weight[ending] = torch.where(full, weight[ending], old)
