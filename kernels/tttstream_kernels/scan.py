"""The loop over the mini-batches of a token-causal call, and its backward pass in closed form.

`scan` walks the blocks of a call wave by wave (README, equations 7 to 9). Where gradients are wanted and the update at
mini-batch ends is one whose derivative is written out here, the whole loop is one node of autograd's graph, whose
backward walks the waves in reverse (equations 11 to 15): no graph of some fifty small nodes a mini-batch. Everything
else, gradients of gradients too, goes through the same loop with autograd on each of its operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.activation import gelu, gelu_and_slope, second_derivative
from tttstream_kernels.inner import Dense
from tttstream_kernels.norm import reconstruction, reconstruction_backward
from tttstream_kernels.plan import Ragged, Uniform
from tttstream_kernels.update import Rule, Weights


class Packed(NamedTuple):
    """A call's tokens as S blocks of K slots, wave by wave: queries and keys [S, K, D + 1], each with its one; base
    [S, K, D] gamma (beta - target) and square [S, 1, D] gamma^2 of equation 2; eta [S, K, 1]; tau [K]."""

    queries: Tensor
    keys: Tensor
    base: Tensor
    square: Tensor
    eta: Tensor
    tau: Tensor

    @property
    def causal(self) -> Tensor:
        """-tau_i where j <= i, else 0: [K, K]."""
        return -self.tau[:, None].expand(-1, len(self.tau)).tril()


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


class Scanned(NamedTuple):
    """Outputs before their normalisation, z [S, K, D], the same of the keys before and after they were learned (None
    unless asked for), and where every piece ends, the pieces of the last wave first."""

    z: Tensor
    before: Tensor | None
    after: Tensor | None
    ends: Seed


class Sight(NamedTuple):
    """How tokens were seen (equation 8), by layer: their inputs [R, K, rows], the products of these with the keys'
    inputs [R, K, K] before and after the mask; gelu' of the layers before the last."""

    inputs: list[Tensor]
    products: list[Tensor]
    masked: list[Tensor]
    slopes: list[Tensor]


class Wave(NamedTuple):
    """What the backward pass wants of a wave. By layer: weights, the keys' inputs and steps; z, gelu' and what came
    back (G W^T) of the layers before the last. parts: those of `reconstruction`, its result first. Then how the
    queries were seen, and the keys where losses are wanted; the weights after the step (overwritten where forgetting
    is not learned), the scale of the last layer's cut (None without one), and that layer after it."""

    weights: Weights
    inputs: list[Tensor]
    steps: list[Tensor]
    hidden: list[Tensor]
    slopes: list[Tensor]
    backs: list[Tensor]
    z: Tensor
    parts: list[Tensor]
    queries: Sight
    keys: Sight | None
    stepped: Weights
    scale: Tensor | None
    settled: Tensor


class Lesson(NamedTuple):
    """What the keys of a wave teach, by layer: base, the weights that queries see before the first key; inputs
    [R, K, rows] and steps [R, K, columns], rate times gradient, of every key."""

    base: Weights
    inputs: list[Tensor]
    steps: list[Tensor]


def scan(
    inner: Dense,
    packed: Packed,
    cut: Uniform | Ragged,
    heads: int,
    seed: Seed,
    rule: Rule,
    lost: Tensor | None,
    return_loss: bool,
) -> Scanned:
    """Run all mini-batches of a call. lost [S, 1, 1]: NaN for blocks with a token that is not finite."""
    settings = Settings(inner, [pieces * heads for pieces in cut.waves], cut, heads, return_loss)
    if not torch.is_grad_enabled():
        return _loop(settings, packed, seed, rule, lost, None)
    if lost is None and not seed.momentum and not rule.update.follow and not rule.update.columns:
        return _Scan.run(settings, packed, seed, rule)
    return _loop(settings, packed, seed, rule, lost, None)


@dataclass
class Settings:
    """What is the same for all waves: cells of each wave, whether losses are wanted."""

    inner: Dense
    sizes: list[int]
    cut: Uniform | Ragged
    heads: int
    return_loss: bool

    def mask(self, complete: Tensor) -> Tensor:
        """An answer of `cut.complete` [pieces] as one for its cells [R, 1, 1]."""
        return complete.repeat_interleave(self.heads)[:, None, None]


def _loop(
    settings: Settings, packed: Packed, seed: Seed, rule: Rule, lost: Tensor | None, record: list[Wave] | None
) -> Scanned:
    sizes, cut, graph = settings.sizes, settings.cut, torch.is_grad_enabled()
    tau, causal = packed.tau[:, None], packed.causal
    last = packed.tau[-1] if graph else float(packed.tau[-1])
    products = [torch.bmm(packed.queries, packed.keys.mT)]
    if settings.return_loss:
        products.append(torch.bmm(packed.keys, packed.keys.mT))
    blocks = (x.split(sizes) for x in (*packed[:5], *products, *(p * causal for p in products)))
    ones = packed.eta.new_ones(sizes[0], len(tau), 1)
    z_q: list[Tensor] = []
    z_before: list[Tensor] = []
    z_after: list[Tensor] = []
    ends: list[Seed] = []
    for wave, (queries, keys, base, square, eta, *scores) in enumerate(zip(*blocks, strict=True)):
        rule = rule.first(sizes[wave])
        z = z_first = torch.bmm(keys, seed.weights[0])
        inputs, hidden, slopes = [keys], [], []
        backs: list[Tensor] = []
        for weight in seed.weights[1:]:
            hidden.append(z)
            activated, slope = gelu_and_slope(z)
            slopes.append(slope)
            inputs.append(torch.cat([activated, ones[: sizes[wave]]], dim=-1))
            z = torch.bmm(inputs[-1], weight)
        parts = reconstruction(z, base, square)
        factor = rule.factor(seed.weights)
        steps = [parts[0] * (eta if factor is None else factor * eta)]
        for weight, slope in zip(seed.weights[:0:-1], slopes[::-1], strict=True):
            backs.insert(0, torch.bmm(steps[0], weight[:, :-1].mT))
            steps.insert(0, backs[0] * slope)
        lesson = Lesson(rule.heading(seed.weights, seed.momentum), inputs, steps)
        count, sights = len(products), []
        for viewers, own, masked, seen in ((queries, *scores[::count], z_q), (keys, *scores[1::count], z_after))[
            :count
        ]:
            first = z_first if viewers is keys and not seed.momentum else torch.bmm(viewers, lesson.base[0])
            sight = Sight([viewers], [own], [masked], [])
            sights.append(sight)
            seen.append(_see(first, sight, lesson, seed.pending, tau, causal, ones, record is not None))
        z_before.append(z)
        going_on, complete = (*sizes, 0)[wave + 1], cut.complete(wave)
        nan = None if lost is None else lost[sum(sizes[:wave]) : sum(sizes[: wave + 1])]
        stepped, scale, after = seed.weights, None, seed
        if going_on or complete is not False:
            in_place = complete is True and not graph and record is None
            stepped, momentum = _step(seed, lesson, rule, last, nan, in_place)
            settled, scale = rule.settle(stepped, not graph and (record is None or not isinstance(rule.forget, Tensor)))
            after = Seed(settled, (), momentum)
        if record is not None:
            record.append(
                Wave(
                    seed.weights, inputs, steps, hidden, slopes, backs, z, list(parts), sights[0],
                    sights[1] if count > 1 else None, stepped, scale, after.weights[-1],
                )
            )  # fmt: skip
        if going_on < sizes[wave]:
            ends.append(_end(settings, seed, lesson, after, nan, complete).cells(going_on, sizes[wave]))
        seed = after.cells(0, going_on)
    before, after_all = (torch.cat(z) if settings.return_loss else None for z in (z_before, z_after))
    return Scanned(torch.cat(z_q), before, after_all, _joined(ends[::-1]))


def _joined(ends: list[Seed]) -> Seed:
    """Seeds one after another as one."""
    if len(ends) == 1:
        return ends[0]
    return Seed(*(tuple(torch.cat(layer) for layer in zip(*part, strict=True)) for part in zip(*ends, strict=True)))


def _see(
    z: Tensor,
    sight: Sight,
    lesson: Lesson,
    pending: Weights,
    tau: Tensor,
    causal: Tensor,
    ones: Tensor,
    slopes: bool,
) -> Tensor:
    """g(x_i; W_i) for every token i of a wave (equation 8), from z [R, K, columns], their product with the first
    layer's weights; `sight` comes with the first layer's part and leaves with all."""
    for layer, (weight, keys, step) in enumerate(zip(*lesson, strict=True)):
        if layer > 0:
            if slopes:
                activated, slope = gelu_and_slope(z)
                sight.slopes.append(slope)
            else:
                activated = gelu(z)
            x = torch.cat([activated, ones[: len(z)]], dim=-1)
            z, products = torch.bmm(x, weight), torch.bmm(x, keys.mT)
            sight.inputs.append(x)
            sight.products.append(products)
            sight.masked.append(products * causal)
        z = torch.baddbmm(z, sight.masked[layer], step)
        if pending:
            z = z.addcmul(torch.bmm(sight.inputs[layer], pending[layer]), tau, value=-1)
    return z


def _step(
    seed: Seed, lesson: Lesson, rule: Rule, tau: Tensor | float, nan: Tensor | None, in_place: bool
) -> tuple[Weights, Weights]:
    """The weights and the momentum after a full mini-batch (equation 9), whose last token has the scale tau.

    in_place: the new weights take the place of the old ones, which nobody else sees: up to 15% of an MLP's forward.
    """
    target, sign = (tuple(rule.momentum * m for m in seed.momentum), 1.0) if seed.momentum else (seed.weights, -1.0)
    if isinstance(tau, Tensor):
        if seed.pending:
            target = tuple(w.addcmul(sign * tau, s) for w, s in zip(target, seed.pending, strict=True))
        taught = zip(target, lesson.inputs, lesson.steps, strict=True)
        target = tuple(torch.baddbmm(w, x.mT, (sign * tau) * step) for w, x, step in taught)
    else:
        if seed.pending:
            target = tuple(w.add(s, alpha=sign * tau) for w, s in zip(target, seed.pending, strict=True))
        add = torch.Tensor.baddbmm_ if in_place and not seed.momentum else torch.baddbmm
        taught = zip(target, lesson.inputs, lesson.steps, strict=True)
        target = tuple(add(w, x.mT, step, alpha=sign * tau) for w, x, step in taught)
    if nan is not None:
        target = tuple(w + nan for w in target)
    if seed.momentum:
        return tuple(w - m for w, m in zip(seed.weights, target, strict=True)), target
    return target, ()


def _end(
    settings: Settings, seed: Seed, lesson: Lesson, after: Seed, nan: Tensor | None, complete: bool | Tensor
) -> Seed:
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
    full = settings.mask(complete)
    chosen = (zip(a, b, strict=True) for a, b in zip(after, inside, strict=True))
    return Seed(*(tuple(torch.where(full, a, b) for a, b in pairs) for pairs in chosen))


class _Scan(torch.autograd.Function):
    """`_loop` as one node of the graph, for updates that forget and bound the last layer's norm."""

    @classmethod
    def run(cls, settings: Settings, packed: Packed, seed: Seed, rule: Rule) -> Scanned:
        """See `scan`."""
        numbers = (rule.limit, rule.forget)
        z, before, after, *ends = cls.apply(
            settings, rule, *packed, *numbers, *rule.start, *seed.weights, *seed.pending
        )
        layers = len(seed.weights)
        return Scanned(z, before, after, Seed(tuple(ends[:layers]), tuple(ends[layers:]), ()))

    @staticmethod
    def unpack(settings: Settings, rule: Rule, tensors: tuple[Any, ...]) -> tuple[Packed, Seed, Rule]:
        """The arguments of `run` from those of `apply`."""
        packed, (limit, forget), rest = Packed(*tensors[:6]), tensors[6:8], tensors[8:]
        layers = len(rule.start)
        start, weights, pending = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
        return packed, Seed(weights, pending, ()), rule._replace(start=start, limit=limit, forget=forget)

    @staticmethod
    def forward(ctx: Any, settings: Settings, rule: Rule, *tensors: Any) -> tuple[Tensor | None, ...]:
        """See `scan`."""
        record: list[Wave] = []
        packed, seed, bound = _Scan.unpack(settings, rule, tensors)
        z, before, after, ends = _loop(settings, packed, seed, bound, None, record)
        ctx.settings, ctx.rule, ctx.record = settings, rule, record
        ctx.others = [None if isinstance(value, Tensor) else value for value in tensors]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in tensors))
        # detached: an output that its own node holds on to would never be freed
        return z, before, after, *(w.detach() for w in (*ends.weights, *ends.pending))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients with respect to every tensor."""
        saved = zip(ctx.saved_tensors, ctx.others, strict=True)
        tensors = tuple(other if value is None else value for value, other in saved)
        if torch.is_grad_enabled():
            return None, None, *_again(ctx.settings, ctx.rule, tensors, gradients)
        packed, seed, rule = _Scan.unpack(ctx.settings, ctx.rule, tensors)
        return None, None, *_Backward(ctx.settings, packed, seed, rule, ctx.record).run(*gradients)


def _again(settings: Settings, rule: Rule, tensors: tuple[Any, ...], gradients: tuple[Any, ...]) -> list[Any]:
    """The gradients with a graph of their own, from autograd on every operation of the loop."""
    packed, seed, bound = _Scan.unpack(settings, rule, tensors)
    z, before, after, ends = _loop(settings, packed, seed, bound, None, None)
    pairs = [
        (value, gradient)
        for value, gradient in zip((z, before, after, *ends.weights, *ends.pending), gradients, strict=True)
        if value is not None and value.requires_grad
    ]
    wanted = [value for value in tensors if isinstance(value, Tensor) and value.requires_grad]
    values, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(values, wanted, given, create_graph=True, allow_unused=True))
    return [next(found) if isinstance(value, Tensor) and value.requires_grad else None for value in tensors]


class _Backward:
    """The waves in reverse (README, equations 11 to 15)."""

    def __init__(self, settings: Settings, packed: Packed, seed: Seed, rule: Rule, record: list[Wave]) -> None:
        self.settings, self.packed, self.seed, self.rule, self.record = settings, packed, seed, rule, record
        self.layers = len(seed.weights)
        self.tau, self.last, self.causal = packed.tau[:, None], float(packed.tau[-1]), packed.causal
        self.d_start = [torch.zeros_like(w) for w in rule.start]
        self.d_limit = torch.zeros_like(rule.limit) if isinstance(rule.limit, Tensor) else None
        self.d_forget = torch.zeros_like(rule.forget) if isinstance(rule.forget, Tensor) else None
        self.d_tau = torch.zeros_like(packed.tau)
        self.d_pending: list[Tensor] = []
        self.d_u: list[Tensor] = []
        self.d_top: list[Tensor] = []
        self.d_last: list[Tensor] = []
        self.scores: list[Tensor] = []
        self.products: list[Tensor] = []

    def run(self, d_z: Tensor, d_before: Any, d_after: Any, *d_ends: Tensor) -> list[Any]:
        """Gradients in the order of the tensors that `_Scan.apply` takes."""
        packed, sizes = self.packed, self.settings.sizes
        d_weights, d_sums = d_ends[: self.layers], d_ends[self.layers :]
        pace, u, z_hat, _, rstd = (torch.cat(part) for part in zip(*(wave.parts for wave in self.record), strict=True))
        share = rstd / -z_hat.shape[-1]
        along = share * (u * z_hat).sum(-1, keepdim=True)
        d_queries, d_keys = torch.empty_like(packed.queries), torch.empty_like(packed.keys)
        streams = (packed.queries, packed.keys, packed.square, packed.eta, share, along, d_queries, d_keys)
        blocks = list(zip(*(x.split(sizes) for x in streams), strict=True))
        given = [None if d is None else d.split(sizes) for d in (d_z, d_before, d_after)]
        d_next: list[Tensor] = []
        ended = 0
        for wave in reversed(range(len(sizes))):
            cells, going_on = sizes[wave], (*sizes, 0)[wave + 1]
            ending = slice(ended, ended + cells - going_on)
            ended = ending.stop
            if going_on < cells:
                d_end = [d[ending] for d in d_weights]
                d_next = [torch.cat(pair) for pair in zip(d_next or [d[:0] for d in d_end], d_end, strict=True)]
            complete, d_sum = self.settings.cut.complete(wave), [d[ending] for d in d_sums]
            came = self.arriving(self.record[wave], complete, going_on, d_next, d_sum)
            outputs = [None if d is None else d[wave] for d in given]
            d_next = self.wave(self.record[wave], Block(*blocks[wave]), came, wave == 0, *outputs)
        d_u, d_top = torch.cat(self.d_u[::-1]), torch.cat(self.d_top[::-1])
        d_square = (d_u * z_hat).sum(1, keepdim=True)
        d_eta = (d_top * pace).sum(-1, keepdim=True)
        d_mask = (torch.cat(self.scores) * torch.cat(self.products)).sum(0)
        self.d_tau -= d_mask.tril().sum(1)
        if self.d_last:
            self.d_tau[-1] -= torch.stack(self.d_last).sum()
        gradients = (d_queries, d_keys, d_u, d_square, d_eta, self.d_tau)
        return [*gradients, self.d_limit, self.d_forget, *self.d_start, *d_next, *self.d_pending]

    def arriving(
        self, wave: Wave, complete: bool | Tensor, going_on: int, d_after: list[Tensor], d_sum: list[Tensor]
    ) -> Arriving:
        """What comes back to a wave's cells from later; takes the place of `d_after`."""
        if complete is False and not going_on:
            return Arriving(d_sum, d_after, 1.0, None)
        if complete is True:
            self.settle(wave, d_after)
            return Arriving(d_after, d_after, -self.last, None)
        mask = torch.ones_like(d_after[0][:, :1, :1], dtype=torch.bool)
        mask[going_on:] = False if complete is False else self.settings.mask(complete)[going_on:]
        stepped = [torch.where(mask, d, 0.0) for d in d_after]
        self.settle(wave, stepped)
        sums = [torch.cat([w.new_zeros(going_on, *w.shape[1:]), d]) for w, d in zip(wave.weights, d_sum, strict=True)]
        came = [torch.where(mask, a, b) for a, b in zip(stepped, sums, strict=True)]
        carried = [torch.where(mask, a, b) for a, b in zip(stepped, d_after, strict=True)]
        full = mask.to(self.tau.dtype)
        return Arriving(came, carried, 1.0 - (1.0 + self.last) * full, full)

    def settle(self, wave: Wave, d: list[Tensor]) -> None:
        """Backward through forgetting and the cut of the last layer's norm (equation 15), in place."""
        cells = len(d[0])
        rule = self.rule.first(cells)
        if wave.scale is not None and rule.limit is not None:
            along = (d[-1] * wave.settled).sum((-2, -1), keepdim=True) / rule.limit
            if not rule.update.restore:
                along = torch.where(wave.scale < 1.0, along, 0.0)
            if self.d_limit is not None:
                self.d_limit[:cells] += along
            d[-1].addcmul_(wave.settled, along / rule.limit, value=-1).mul_(wave.scale)
        if not rule.forgets:
            return
        for total, w, start, stepped in zip(self.d_start, d, rule.start, wave.stepped, strict=True):
            if self.d_forget is not None:
                self.d_forget[:cells] += (w * (start - stepped)).sum((-2, -1), keepdim=True)
            if isinstance(rule.forget, Tensor):
                total[:cells] += rule.forget * w
                w.sub_(rule.forget * w)
            else:
                total[:cells].add_(w, alpha=rule.forget)
                w.mul_(1.0 - rule.forget)

    def wave(
        self,
        wave: Wave,
        block: Block,
        arriving: Arriving,
        first: bool,
        d_z: Tensor | None,
        d_before: Tensor | None,
        d_after: Tensor | None,
    ) -> list[Tensor]:
        """One wave backward: the gradient with respect to its weights, in the place of what arrived."""
        pending = self.seed.pending if first else ()
        came, d_weights, sign, full = arriving
        d_steps = [torch.bmm(x, e) for x, e in zip(wave.inputs, came, strict=True)]
        d_inputs = [torch.bmm(step, e.mT) for step, e in zip(wave.steps, came, strict=True)]
        if full is not None or sign != 1.0:
            for a, b in (*zip(d_steps, wave.steps, strict=True), *(zip(came, pending, strict=True) if pending else ())):
                self.d_last.append(torch.dot((a if full is None else full * a).reshape(-1), b.reshape(-1)))
        if pending:
            self.d_pending = [sign * e for e in came]
        if isinstance(sign, Tensor):
            d_steps, d_inputs, sign = [sign * d for d in d_steps], [sign * d for d in d_inputs], 1.0
        totals = Totals(d_steps, d_inputs, d_weights)
        assert d_z is not None
        d_first, d_seen = self.seen(wave, wave.queries, d_z, pending, totals, sign)
        d_own = None
        if wave.keys is not None and d_after is not None:
            d_own, d_more = self.seen(wave, wave.keys, d_after, pending, totals, 1.0)
            d_inputs[0] += d_more

        d_hidden: list[Tensor] = []
        for layer in range(self.layers - 1):
            back = d_steps[layer] * wave.slopes[layer]
            d_steps[layer + 1].baddbmm_(back, wave.weights[layer + 1][:, :-1])
            d_weights[layer + 1].baddbmm_(with_zero(back).mT, wave.steps[layer + 1])
            d_hidden.append(second_derivative(wave.hidden[layer]).mul_(wave.backs[layer]).mul_(d_steps[layer]))
        moments = block.share, block.along
        d, d_u = reconstruction_backward(d_steps[-1] * block.eta, wave.z, block.square, *wave.parts, moments=moments)
        self.d_top.append(d_steps[-1])
        self.d_u.append(d_u)
        if d_before is not None:
            d += d_before
        for layer in range(self.layers - 1, 0, -1):
            d_weights[layer].baddbmm_(wave.inputs[layer].mT, d)
            d_input = d_inputs[layer].baddbmm_(d, wave.weights[layer].mT)[..., :-1]
            d = d_hidden[layer - 1].addcmul_(d_input, wave.slopes[layer - 1])
        if d_own is not None:
            d += d_own
        weight = wave.weights[0].mT
        torch.baddbmm(d_inputs[0], d, weight, out=block.d_keys)
        torch.baddbmm(d_seen, d_first, weight, out=block.d_queries)
        d_weights[0].baddbmm_(block.keys.mT, d).baddbmm_(block.queries.mT, d_first)
        return d_weights

    def seen(
        self, wave: Wave, sight: Sight, d: Tensor, pending: Weights, totals: Totals, sign: float
    ) -> tuple[Tensor, Tensor]:
        """Backward through `_see`, added to `sign` times the totals of steps and inputs: the gradients with respect to
        the tokens' product with the first layer's weights, and to the tokens by every other way."""
        d_steps, d_inputs, d_weights = totals
        for layer in reversed(range(self.layers)):
            x, step = sight.inputs[layer], wave.steps[layer]
            d_steps[layer].baddbmm_(sight.masked[layer].mT, d, beta=sign)
            scores = torch.bmm(d, step.mT)
            self.scores.append(scores)
            self.products.append(sight.products[layer])
            d_products = scores * self.causal
            d_inputs[layer].baddbmm_(d_products.mT, x, beta=sign)
            d_x = torch.bmm(d_products, wave.inputs[layer])
            if pending:
                scaled = self.tau * d
                self.d_tau -= (d * torch.bmm(x, pending[layer])).sum((0, 2))
                self.d_pending[layer].baddbmm_(x.mT, scaled, alpha=-1)
                d_x.baddbmm_(scaled, pending[layer].mT, alpha=-1)
            if layer > 0:
                d_weights[layer].baddbmm_(x.mT, d)
                d = d_x.baddbmm_(d, wave.weights[layer].mT)[..., :-1] * sight.slopes[layer - 1]
        return d, d_x


class Block(NamedTuple):
    """What the backward pass of a wave reads of the streams, and where it writes: queries, keys, square, eta as in
    `Packed`; share and along, see `reconstruction_backward`."""

    queries: Tensor
    keys: Tensor
    square: Tensor
    eta: Tensor
    share: Tensor
    along: Tensor
    d_queries: Tensor
    d_keys: Tensor


class Arriving(NamedTuple):
    """What later waves and the state give back to a wave: came and sign, whose product is the gradient with respect to
    the sum of its steps; carried, the gradient with respect to its weights past the step; full [R, 1, 1], 1 for cells
    that made a step, or None where all or (sign 1) none did."""

    came: list[Tensor]
    carried: list[Tensor]
    sign: float | Tensor
    full: Tensor | None


class Totals(NamedTuple):
    """Gradients of a wave that gather from several sides, by layer: its steps, its keys' inputs, its weights."""

    steps: list[Tensor]
    inputs: list[Tensor]
    weights: list[Tensor]


def with_zero(x: Tensor) -> Tensor:
    """[..., D] -> [..., D + 1] with a zero at the end, so that the bias row of a weight gets nothing."""
    return torch.cat([x, x.new_zeros(*x.shape[:-1], 1)], dim=-1)
