"""One token without a graph for a compiler: the results of `token.one_token`, as one operator that it can look into.

A compiler checks at every call all Python values on the way to the arithmetic, which took longer than a step; one
operator needs few checks. No value is read on the host, and intermediate results that two products need are shared.
"""

import torch
from torch import Tensor, native_layer_norm
from torch.nn import functional as F

from tttstream_kernels.activation import gelu
from tttstream_kernels.inner import MLP, Linear, flatten
from tttstream_kernels.norm import EPS
from tttstream_kernels.step import gradients
from tttstream_kernels.update import Update, Weights

_INNER = {model.name: model for model in (Linear(), MLP())}


def _with_one(x: Tensor) -> Tensor:
    """`with_one` as a mask that a compiler fuses."""
    return F.pad(x, (0, 1), value=1.0)


def _step(
    views: Tensor,
    eta: Tensor,
    tau: Tensor,
    ends: Tensor,
    start: Tensor,
    gamma: Tensor,
    beta: Tensor,
    delta: Tensor,
    grad_sum: Tensor,
    phase: Tensor,
    name: str,
    forget: float,
    max_norm: float | None,
    restore: bool,
    columns: bool,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [3, R, 1, D], eta and tau [R, 1, 1], ends [B] of one token; start, gamma, beta and the state as in `ttt`:
    (outputs [R, 1, D], delta, grad_sum, phase)."""
    inner, rows, width = _INNER[name], phase.shape[0], gamma.shape[1]
    gamma, beta = (x.unsqueeze(1).repeat(rows, 1, 1) for x in (gamma, beta))

    def split(flat: Tensor) -> Weights:
        return inner.split(flat, width)

    q, k, v = views.unbind(0)
    flat = start + delta
    weights, sums = split(flat), split(grad_sum)
    inputs, steps = gradients(weights, _with_one(k), k - v + beta, gamma, eta, _with_one, margin or None)

    z = q
    for layer, (weight, total) in enumerate(zip(weights, sums, strict=True)):
        x = _with_one(z if layer == 0 else gelu(z))
        own = (x * inputs[layer]).sum(-1, keepdim=True)
        z = torch.bmm(x, weight - tau * total) - tau * own * steps[layer]
    y = q + torch.addcmul(beta, gamma, native_layer_norm(z, (width,), None, None, EPS)[0])

    learned = flatten(tuple(s + x.mT * step for s, x, step in zip(sums, inputs, steps, strict=True))).view(flat.shape)
    update = Update(forget=forget, max_norm=max_norm, restore=restore, columns=columns)
    rule = update.rule(split(start.expand_as(flat)))
    settled = flatten(rule.settle(split(flat - tau.view(*flat.shape[:2], 1) * learned))[0]).view(flat.shape)
    ended = ends[:, None, None]
    return (
        y,
        torch.where(ended, settled - start, delta),
        torch.where(ended, 0.0, learned),
        torch.where(ends, 0.0, phase + 1),
    )


_LIBRARY = torch.library.Library("tttstream", "FRAGMENT")
_LIBRARY.define("step" + torch.library.infer_schema(_step, mutates_args=()))
_LIBRARY.impl("step", _step, "CompositeImplicitAutograd")
step = torch.ops.tttstream.step.default
