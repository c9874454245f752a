"""The mini-batches of a token-causal call in reverse: the loop's backward pass, written out (README, 11 to 15)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tttstream_kernels.activation import second_derivative
from tttstream_kernels.chunks import Chunk, Packed, Read, Seed, Settings
from tttstream_kernels.norm import reconstruction_backward
from tttstream_kernels.update import Rule, Weights


class Backward:
    """The chunks in reverse (README, equations 11 to 15)."""

    def __init__(self, settings: Settings, packed: Packed, seed: Seed, rule: Rule, record: list[Chunk]) -> None:
        self.settings, self.packed, self.seed, self.rule, self.record = settings, packed, seed, rule, record
        self.layers = len(seed.weights)
        self.tau, self.last, self.causal = packed.tau[:, None], float(packed.tau[-1]), packed.causal
        self.d_start = [torch.zeros_like(w) for w in rule.start]
        self.d_limit = torch.zeros_like(rule.limit) if isinstance(rule.limit, Tensor) else None
        self.d_forget = torch.zeros_like(rule.forget) if isinstance(rule.forget, Tensor) else None
        self.d_tau = torch.zeros_like(packed.tau)
        self.d_grad_sum: list[Tensor] = []
        self.d_u: list[Tensor] = []
        self.d_top: list[Tensor] = []
        self.d_last: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.products: list[Tensor] = []

    def run(self, d_z: Tensor, d_before: Any, d_after: Any, *d_ends: Tensor) -> list[Any]:
        """Gradients in the order of the tensors that the loop takes."""
        packed, sizes = self.packed, self.settings.sizes
        d_weights, d_sums = d_ends[: self.layers], d_ends[self.layers :]
        pace, u, z_hat, _, rstd = (
            torch.cat(part) for part in zip(*(chunk.parts for chunk in self.record), strict=True)
        )
        share = rstd / -z_hat.shape[-1]
        along = share * (u * z_hat).sum(-1, keepdim=True)
        d_queries, d_keys = torch.empty_like(packed.queries), torch.empty_like(packed.keys)
        streams = (packed.queries, packed.keys, packed.square, packed.eta, share, along, d_queries, d_keys)
        blocks = list(zip(*(x.split(sizes) for x in streams), strict=True))
        given = [None if d is None else d.split(sizes) for d in (d_z, d_before, d_after)]
        d_next: list[Tensor] = []
        ended = 0
        for chunk in reversed(range(len(sizes))):
            cells, going_on = sizes[chunk], (*sizes, 0)[chunk + 1]
            ending = slice(ended, ended + cells - going_on)
            ended = ending.stop
            if going_on < cells:
                d_end = [d[ending] for d in d_weights]
                d_next = [torch.cat(pair) for pair in zip(d_next or [d[:0] for d in d_end], d_end, strict=True)]
            complete, d_sum = self.settings.complete[chunk], [d[ending] for d in d_sums]
            d_total = self.incoming(self.record[chunk], complete, going_on, d_next, d_sum)
            outputs = [None if d is None else d[chunk] for d in given]
            d_next = self.chunk(self.record[chunk], Block(*blocks[chunk]), d_total, chunk == 0, *outputs)
        d_u, d_top = torch.cat(self.d_u[::-1]), torch.cat(self.d_top[::-1])
        d_square = (d_u * z_hat).sum(1, keepdim=True)
        d_eta = (d_top * pace).sum(-1, keepdim=True)
        d_mask = (torch.cat(self.scores) * torch.cat(self.products)).sum(0)
        self.d_tau -= d_mask.tril().sum(1)
        if self.d_last:
            self.d_tau[-1] -= torch.stack(self.d_last).sum()
        gradients = (d_queries, d_keys, d_u, d_square, d_eta, self.d_tau)
        return [*gradients, self.d_limit, self.d_forget, *self.d_start, *d_next, *self.d_grad_sum]

    def incoming(
        self, chunk: Chunk, complete: bool | Tensor, going_on: int, d_after: list[Tensor], d_sum: list[Tensor]
    ) -> Incoming:
        """The gradient of a chunk's cells from later chunks; overwrites `d_after`."""
        if complete is False and not going_on:
            return Incoming(d_sum, d_after, 1.0, None)
        if complete is True:
            self.settle(chunk, d_after)
            return Incoming(d_after, d_after, -self.last, None)
        mask = torch.ones_like(d_after[0][:, :1, :1], dtype=torch.bool)
        mask[going_on:] = False if complete is False else self.settings.mask(complete)[going_on:]
        stepped = [torch.where(mask, d, 0.0) for d in d_after]
        self.settle(chunk, stepped)
        sums = [torch.cat([w.new_zeros(going_on, *w.shape[1:]), d]) for w, d in zip(chunk.weights, d_sum, strict=True)]
        d_total = [torch.where(mask, a, b) for a, b in zip(stepped, sums, strict=True)]
        carried = [torch.where(mask, a, b) for a, b in zip(stepped, d_after, strict=True)]
        full = mask.to(self.tau.dtype)
        return Incoming(d_total, carried, 1.0 - (1.0 + self.last) * full, full)

    def settle(self, chunk: Chunk, d: list[Tensor]) -> None:
        """Backward through forgetting and the cut of the last layer's norm (equation 15), in place."""
        cells = len(d[0])
        rule = self.rule.first(cells)
        if chunk.scale is not None and rule.limit is not None:
            along = (d[-1] * chunk.settled).sum((-2, -1), keepdim=True) / rule.limit
            if not rule.update.restore:
                along = torch.where(chunk.scale < 1.0, along, 0.0)
            if self.d_limit is not None:
                self.d_limit[:cells] += along
            d[-1].addcmul_(chunk.settled, along / rule.limit, value=-1).mul_(chunk.scale)
        if not rule.forgets:
            return
        for total, w, start, stepped in zip(self.d_start, d, rule.start, chunk.stepped, strict=True):
            if self.d_forget is not None:
                self.d_forget[:cells] += (w * (start - stepped)).sum((-2, -1), keepdim=True)
            if isinstance(rule.forget, Tensor):
                total[:cells] += rule.forget * w
                w.sub_(rule.forget * w)
            else:
                total[:cells].add_(w, alpha=rule.forget)
                w.mul_(1.0 - rule.forget)

    def chunk(
        self,
        chunk: Chunk,
        block: Block,
        incoming: Incoming,
        first: bool,
        d_z: Tensor | None,
        d_before: Tensor | None,
        d_after: Tensor | None,
    ) -> list[Tensor]:
        """One chunk backward: the gradient with respect to its weights, in the place of what arrived."""
        grad_sum = self.seed.grad_sum if first else ()
        d_total, d_weights, sign, full = incoming
        d_steps = [torch.bmm(x, e) for x, e in zip(chunk.inputs, d_total, strict=True)]
        d_inputs = [torch.bmm(step, e.mT) for step, e in zip(chunk.steps, d_total, strict=True)]
        if full is not None or sign != 1.0:
            for a, b in (
                *zip(d_steps, chunk.steps, strict=True),
                *(zip(d_total, grad_sum, strict=True) if grad_sum else ()),
            ):
                self.d_last.append(torch.dot((a if full is None else full * a).reshape(-1), b.reshape(-1)))
        if grad_sum:
            self.d_grad_sum = [sign * e for e in d_total]
        if isinstance(sign, Tensor):
            d_steps, d_inputs, sign = [sign * d for d in d_steps], [sign * d for d in d_inputs], 1.0
        totals = Totals(d_steps, d_inputs, d_weights)
        assert d_z is not None
        d_first, d_seen = self.seen(chunk, chunk.queries, d_z, grad_sum, totals, sign)
        d_own = None
        if chunk.keys is not None and d_after is not None:
            d_own, d_more = self.seen(chunk, chunk.keys, d_after, grad_sum, totals, 1.0)
            d_inputs[0] += d_more

        d_hidden: list[Tensor] = []
        for layer in range(self.layers - 1):
            back = d_steps[layer] * chunk.slopes[layer]
            d_steps[layer + 1].baddbmm_(back, chunk.weights[layer + 1][:, :-1])
            padded = nn.functional.pad(back, (0, 1))  # the bias row of a weight gets nothing
            d_weights[layer + 1].baddbmm_(padded.mT, chunk.steps[layer + 1])
            d_hidden.append(second_derivative(chunk.hidden[layer]).mul_(chunk.backs[layer]).mul_(d_steps[layer]))
        moments = block.share, block.along
        d, d_u = reconstruction_backward(d_steps[-1] * block.eta, chunk.z, block.square, *chunk.parts, moments=moments)
        self.d_top.append(d_steps[-1])
        self.d_u.append(d_u)
        if d_before is not None:
            d += d_before
        for layer in range(self.layers - 1, 0, -1):
            d_weights[layer].baddbmm_(chunk.inputs[layer].mT, d)
            d_input = d_inputs[layer].baddbmm_(d, chunk.weights[layer].mT)[..., :-1]
            d = d_hidden[layer - 1].addcmul_(d_input, chunk.slopes[layer - 1])
        if d_own is not None:
            d += d_own
        weight = chunk.weights[0].mT
        torch.baddbmm(d_inputs[0], d, weight, out=block.d_keys)
        torch.baddbmm(d_seen, d_first, weight, out=block.d_queries)
        d_weights[0].baddbmm_(block.keys.mT, d).baddbmm_(block.queries.mT, d_first)
        return d_weights

    def seen(
        self, chunk: Chunk, read: Read, d: Tensor, grad_sum: Weights, totals: Totals, sign: float
    ) -> tuple[Tensor, Tensor]:
        """Backward through `_see`, added to `sign` times the totals of steps and inputs: the gradients with respect to
        the tokens' product with the first layer's weights, and to the tokens by every other way."""
        d_steps, d_inputs, d_weights = totals
        for layer in reversed(range(self.layers)):
            x, step = read.inputs[layer], chunk.steps[layer]
            d_steps[layer].baddbmm_(read.masked[layer].mT, d, beta=sign)
            scores = torch.bmm(d, step.mT)
            self.scores.append(scores)
            self.products.append(read.products[layer])
            d_products = scores * self.causal
            d_inputs[layer].baddbmm_(d_products.mT, x, beta=sign)
            d_x = torch.bmm(d_products, chunk.inputs[layer])
            if grad_sum:
                scaled = self.tau * d
                self.d_tau -= (d * torch.bmm(x, grad_sum[layer])).sum((0, 2))
                self.d_grad_sum[layer].baddbmm_(x.mT, scaled, alpha=-1)
                d_x.baddbmm_(scaled, grad_sum[layer].mT, alpha=-1)
            if layer > 0:
                d_weights[layer].baddbmm_(x.mT, d)
                d = d_x.baddbmm_(d, chunk.weights[layer].mT)[..., :-1] * read.slopes[layer - 1]
        return d, d_x


class Block(NamedTuple):
    """The inputs of the backward pass of a chunk, and the tensors that it writes: queries, keys, square, eta as in
    `Packed`; share and along, see `reconstruction_backward`."""

    queries: Tensor
    keys: Tensor
    square: Tensor
    eta: Tensor
    share: Tensor
    along: Tensor
    d_queries: Tensor
    d_keys: Tensor


class Incoming(NamedTuple):
    """Gradients that a chunk receives from later chunks and from the final state.

    d_total, sign: their product is the gradient with respect to the sum of the chunk's steps. carried: the gradient
    with respect to the chunk's weights that does not pass through the step. full: [R, 1, 1], 1 for cells that took a
    step; None if all cells did, or (sign 1) none.
    """

    d_total: list[Tensor]
    carried: list[Tensor]
    sign: float | Tensor
    full: Tensor | None


class Totals(NamedTuple):
    """Gradients of a chunk that gather from several sides, by layer: its steps, its keys' inputs, its weights."""

    steps: list[Tensor]
    inputs: list[Tensor]
    weights: list[Tensor]
