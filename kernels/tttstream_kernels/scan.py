"""All mini-batches of a token-causal call, as one node of autograd's graph where the derivative is written out.

Where gradients are wanted and the update at mini-batch ends is one whose derivative `chunks_backward` has, the whole
loop is one node, whose backward walks the chunks in reverse: no graph of some fifty small nodes a mini-batch.
Everything else, gradients of gradients too, goes through the same loop with autograd on each of its operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tttstream_kernels.chunks import Chunk, Packed, Scanned, Seed, Settings, loop
from tttstream_kernels.chunks_backward import Backward
from tttstream_kernels.plan import Ragged, Uniform
from tttstream_kernels.update import Rule


def scan(
    packed: Packed,
    cut: Uniform | Ragged,
    heads: int,
    seed: Seed,
    rule: Rule,
    lost: Tensor | None,
    return_loss: bool,
) -> Scanned:
    """Run all mini-batches of a call. lost [S, 1, 1]: NaN for blocks with a token that is not finite."""
    sizes = [pieces * heads for pieces in cut.waves]
    settings = Settings(sizes, [cut.complete(chunk) for chunk in range(len(sizes))], heads, return_loss)
    if torch.is_grad_enabled() and lost is None and rule.update.plain and not rule.update.has_margin:
        return _Scan.run(settings, packed, seed, rule)
    return loop(settings, packed, seed, rule, lost, None)


class _Scan(torch.autograd.Function):
    """`loop` as one node of the graph, for updates that forget and bound the last layer's norm."""

    @classmethod
    def run(cls, settings: Settings, packed: Packed, seed: Seed, rule: Rule) -> Scanned:
        numbers = (rule.limit, rule.forget)
        z, before, after, *ends = cls.apply(
            settings, rule, *packed[:6], *numbers, *rule.start, *seed.weights, *seed.grad_sum
        )
        layers = len(seed.weights)
        return Scanned(z, before, after, Seed(tuple(ends[:layers]), tuple(ends[layers:]), ()))

    @staticmethod
    def unpack(settings: Settings, rule: Rule, tensors: tuple[Any, ...]) -> tuple[Packed, Seed, Rule]:
        """The arguments of `run` from those of `apply`."""
        packed, (limit, forget), rest = Packed(*tensors[:6]), tensors[6:8], tensors[8:]
        layers = len(rule.start)
        start, weights, grad_sum = rest[:layers], rest[layers : 2 * layers], rest[2 * layers :]
        return packed, Seed(weights, grad_sum, ()), rule._replace(start=start, limit=limit, forget=forget)

    @staticmethod
    def forward(ctx: Any, settings: Settings, rule: Rule, *tensors: Any) -> tuple[Tensor | None, ...]:
        record: list[Chunk] = []
        packed, seed, bound = _Scan.unpack(settings, rule, tensors)
        z, before, after, ends = loop(settings, packed, seed, bound, None, record)
        ctx.settings, ctx.rule, ctx.record = settings, rule, record
        ctx.others = [None if isinstance(value, Tensor) else value for value in tensors]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in tensors))
        # detached: an output that its own node holds on to would never be freed
        return z, before, after, *(w.detach() for w in (*ends.weights, *ends.grad_sum))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """Gradients with respect to every tensor."""
        saved = zip(ctx.saved_tensors, ctx.others, strict=True)
        tensors = tuple(other if value is None else value for value, other in saved)
        if torch.is_grad_enabled():
            return None, None, *_again(ctx.settings, ctx.rule, tensors, gradients)
        packed, seed, rule = _Scan.unpack(ctx.settings, ctx.rule, tensors)
        return None, None, *Backward(ctx.settings, packed, seed, rule, ctx.record).run(*gradients)


def _again(settings: Settings, rule: Rule, tensors: tuple[Any, ...], gradients: tuple[Any, ...]) -> list[Any]:
    """Gradients that can be differentiated again. Autograd records every operation of the loop."""
    packed, seed, bound = _Scan.unpack(settings, rule, tensors)
    z, before, after, ends = loop(settings, packed, seed, bound, None, None)
    pairs = [
        (value, gradient)
        for value, gradient in zip((z, before, after, *ends.weights, *ends.grad_sum), gradients, strict=True)
        if value is not None and value.requires_grad
    ]
    wanted = [value for value in tensors if isinstance(value, Tensor) and value.requires_grad]
    values, given = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(values, wanted, given, create_graph=True, allow_unused=True))
    return [next(found) if isinstance(value, Tensor) and value.requires_grad else None for value in tensors]
