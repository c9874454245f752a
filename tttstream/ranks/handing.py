"""Tensors from rank to rank as nodes of autograd's graph; gradients are sent in the opposite direction."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttstream.ranks.line import Line


def settle_after_backward(line: Line) -> None:
    """At the end of the running `backward`, wait until all sent tensors have arrived, so that no process ends early."""
    engine: Any = torch.autograd.Variable._execution_engine
    engine.queue_callback(line.settle)


class Receive(torch.autograd.Function):
    """A tensor from the rank before; backward sends its gradient there."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, line: Line, like: Tensor) -> Tensor:
        """anchor: a number that requires a gradient if the tensor needs one. like: a tensor of its sizes."""
        ctx.line = line
        return line.receive(like, line.rank - 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.line.send(gradient, ctx.line.rank - 1)
        settle_after_backward(ctx.line)
        return None, None, None


class Send(torch.autograd.Function):
    """A tensor to the next rank; backward waits for its gradient from there.

    Other tensors pass through, so that backward reaches this node. The tensor from the rank before is an argument too,
    so that backward reaches its node even if no output depends on it.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, line: Line, value: Tensor, came: Tensor | None, *others: Tensor) -> Any:
        """value: the tensor to send. others: tensors that pass through. anchor: see `Receive`."""
        line.send(value, line.rank + 1)
        ctx.line, ctx.like = line, torch.empty_like(value, device="meta")
        ctx.device = value.device
        return tuple(other.view_as(other) for other in others)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        like = torch.empty_like(ctx.like, device=ctx.device)
        return None, None, ctx.line.receive(like, ctx.line.rank + 1), None, *gradients
