"""Memories with a linear update, on all ranks at once: a scan over the effects of the ranks on the state.

A rank maps the state S before its tokens to A S + B, with A and B independent of S (`recurrence.effect`). The effects
of several ranks combine into one of the same form: (A2, B2) after (A1, B1) is (A2 A1, A2 B1 + B2). This product is
associative, so ceil(log2(R - 1)) + 1 rounds of messages give every one of R ranks the state before its tokens (Hillis
and Steele, Data parallel algorithms, 1986). Gradients go back in the same way with A transposed: with g the gradient of
a rank's start from its own tokens, G_r = g_r + A_r^T G_(r+1).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tttstream.errors import ShapeError
from tttstream.memory.base import Memory
from tttstream.memory.matrix import MatrixMemory
from tttstream.memory.recurrence import Token
from tttstream.ranks.handing import Receive, Send, settle_after_backward
from tttstream.ranks.line import Line


def scans(memory: Memory) -> bool:
    """Whether a memory can be scanned: its update is linear in its state."""
    return isinstance(memory, MatrixMemory) and memory.linear


def scanned(
    memory: MatrixMemory, line: Line, anchor: Tensor, x: Tensor, state: Any, reset: Tensor | None
) -> tuple[Tensor, Any]:
    """A call of a memory over this rank's tokens x [B, T, dim] -> y and the state after them.

    state: on the first rank the state before the stream. The convolution also reads the last tokens of the rank before;
    this rank projects them once more.
    """
    window = memory.init_state(1).window.shape[1]
    if x.shape[1] < window:
        raise ShapeError(
            f"{type(memory).__name__}: a rank has {x.shape[1]} tokens, the convolution looks back over {window}: give "
            "each rank as many, or Relay(scan=False)"
        )
    tail, seen = x[:, x.shape[1] - window :], 0
    if window and not line.last:
        (x,) = Send.apply(anchor, line, tail, None, x)
        if reset is not None:
            line.send(reset[:, reset.shape[1] - window :].byte(), line.rank + 1)
    if window and not line.first:
        seen = window
        x = torch.cat([Receive.apply(anchor, line, torch.empty_like(tail)), x], 1)
        if reset is not None:
            earlier = line.receive(torch.empty_like(reset[:, :window], dtype=torch.uint8), line.rank - 1)
            reset = torch.cat([earlier.bool(), reset], 1)
    memory.run = partial(_run, memory, line, seen)  # type: ignore[method-assign]
    try:
        y, state = type(memory).forward(memory, x, state, reset)
    finally:
        del memory.run
    return y[:, seen:], state


def _run(
    memory: MatrixMemory, line: Line, seen: int, token: Token, state: Any, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, ...]:
    """`MatrixMemory.run` over the tokens from `seen` on; earlier tokens belong to the rank before."""
    token = token.each(lambda part: part[:, seen:])
    reset = None if reset is None else reset[:, seen:]
    o, *held = type(memory).run(memory, token, state, reset, lengths, partial(_Before.apply, line))
    return torch.nn.functional.pad(o, (0, 0, 0, 0, seen, 0)), *held


class _Before(torch.autograd.Function):
    """The state before this rank's tokens, from the effects of the ranks before."""

    @staticmethod
    def forward(ctx: Any, line: Line, transition: Tensor, addition: Tensor, state: Tensor) -> Tensor:
        """transition, addition: A and B, see `recurrence.effect`. state: [B, H, Dk, Dv], used on the first rank."""
        if line.first:
            exclusive(line, transition, moved(transition, state, addition), backward=False)
            start = state.clone()
        else:
            start = exclusive(line, transition, addition, backward=False)
        ctx.line = line
        ctx.save_for_backward(transition, start)
        return start

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        """See the equation at the top of this file."""
        transition, start = ctx.saved_tensors
        turned = transition if transition.shape[-1] == 1 else transition.mT
        later = exclusive(ctx.line, turned, gradient, backward=True)
        settle_after_backward(ctx.line)
        of_transition = (later * start).sum(-1, keepdim=True) if transition.shape[-1] == 1 else later @ start.mT
        return None, of_transition, later, moved(turned, later, gradient)


def exclusive(line: Line, transition: Tensor, addition: Tensor, backward: bool) -> Tensor:
    """The state after the ranks before this one, from zero: [B, H, Dk, Dv]; on the first rank zero.

    backward: the order is from the last rank to the first.
    """
    place = line.size - 1 - line.rank if backward else line.rank
    columns = transition.shape[-1]

    def hand(distance: int, lowest: int) -> tuple[Tensor, Tensor] | None:
        """Send to the place at +`distance`. Returns the pair from -`distance`, None if that takes no part."""
        step = -distance if backward else distance
        both = torch.cat([transition, addition], -1)
        if place >= lowest and place + distance < line.size:
            line.send(both, line.rank + step)
        if place - distance < lowest:
            return None
        came = line.receive(both, line.rank - step)
        return came[..., :columns], came[..., columns:]

    came = hand(1, 0)
    if came is None:
        return torch.zeros_like(addition)
    transition, addition = came
    distance = 1
    while distance < line.size - 1:
        if (came := hand(distance, 1)) is not None:
            addition = moved(transition, came[1], addition)
            transition = transition * came[0] if columns == 1 else transition @ came[0]
        distance *= 2
    return addition


def moved(transition: Tensor, state: Tensor, addition: Tensor) -> Tensor:
    """A S + B. After a reset A is zero, and the result is B also if S is not finite."""
    product = transition * state if transition.shape[-1] == 1 else transition @ state
    return addition + torch.where((transition == 0).all((-2, -1), keepdim=True), 0.0, product)
