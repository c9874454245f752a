"""The memories of a model pass their states to the next rank, and the gradients of states to the rank before."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from tttstream.errors import ConfigError, StateError
from tttstream.memory.base import Memory
from tttstream.memory.matrix import MatrixMemory
from tttstream.ranks.handing import Receive, Send
from tttstream.ranks.line import Line
from tttstream.ranks.scan import scanned, scans
from tttstream.state import State, pack, unpack


class Relay:
    """A model over a line of ranks: every rank calls it with its own part of the same rows.

        with Relay(model, line):
            y, state = model(x, state, reset)   # x: this rank's part in time

    Each memory starts from the final state of the same memory on the rank before, so outputs, states and gradients are
    those of one process that reads the whole stream. A state given by the caller is used on the first rank only; the
    last rank returns the state after the stream. `backward` sends the gradients of states to the rank before. Every
    rank calls it, with a loss that depends on the outputs of each memory in every piece of rows. A parameter's gradient
    is the sum of the ranks' gradients. Parts may differ in length.

    Memories with a linear update (additive, delta, kernel_delta, gated_delta, mamba2, mesa, rwkv7, ttt, ttt_nested)
    need not wait for the rank before: see `tttstream.ranks.scan`. Each part must be at least as long as the window of
    their convolution.

    Args:
        model: a memory, or a model without any other state than that of its memories. Rows are the first dimension of
            its arguments and results.
        line: the ranks in the order of time. scan: run memories with a linear update on all ranks at once. False: they
        wait, as the others do. pieces: the number of pieces into which the rows are split, at most the number of rows.
        While a rank
            computes one piece, the next rank computes the piece before it; see docs/longer.md.

    Raises ConfigError for a model with another state, and for several pieces with a memory that grows.
    """

    def __init__(self, model: nn.Module, line: Line, pieces: int = 1, scan: bool = True) -> None:
        if pieces < 1:
            raise ConfigError(f"relay: pieces must be at least 1, got {pieces}")
        self.model, self.line, self.pieces, self.scan = model, line, pieces, scan
        self.memories = list(outermost(model))
        if pieces > 1 and not all(memory.bounded for memory in self.memories):
            raise ConfigError("relay: states that grow with the stream cannot be joined row by row: take pieces=1")
        init: Any = getattr(model, "init_state", None)
        if init is not None:
            held = sum(len(memory.init_state(1).tensors()) for memory in self.memories)
            if (whole := len(init(1).tensors())) != held:
                raise ConfigError(
                    f"{type(model).__name__} has a state beside that of its memories ({whole} tensors, {held} of them "
                    "in memories), which is not handed from rank to rank"
                )

    def __enter__(self) -> Relay:
        for memory in self.memories:
            memory.forward = partial(self._remember, memory)
        if self.pieces > 1:
            self._whole = self.model.forward
            self.model.forward = self._in_pieces
        return self

    def __exit__(self, *error: object) -> None:
        if self.pieces > 1:
            del self.model.forward
        for memory in self.memories:
            memory.__dict__.pop("forward", None)
        if error[0] is None:
            self.line.settle()

    def _in_pieces(self, *given: Any, **options: Any) -> Any:
        """Call the model for one piece of rows after another."""
        leaves, form = tree_flatten((given, options))
        rows = next(len(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        parts = []
        for index in torch.arange(rows).tensor_split(min(rows, self.pieces)):
            piece = slice(int(index[0]), int(index[-1]) + 1)
            args, named = tree_unflatten([self._cut(leaf, piece) for leaf in leaves], form)
            parts.append(tree_flatten(self._whole(*args, **named)))
        joined = [
            torch.cat(several) if isinstance(several[0], Tensor) else several[0]
            for several in zip(*(part for part, _ in parts), strict=True)
        ]
        return tree_unflatten(joined, parts[0][1])

    @staticmethod
    def _cut(leaf: Any, rows: slice) -> Any:
        return leaf[rows] if isinstance(leaf, Tensor) else leaf

    def _remember(
        self,
        memory: Memory,
        x: Tensor,
        state: Any = None,
        reset: Tensor | None = None,
        lengths: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Call a memory: receive the state of the rank before, and send the new state to the next rank."""
        line = self.line
        if line.size == 1:
            return type(memory).forward(memory, x, state, reset, lengths, **options)
        trained = x.requires_grad or any(parameter.requires_grad for parameter in memory.parameters())
        graph = trained and torch.is_grad_enabled()
        if state is not None and torch.is_grad_enabled() and not trained:
            if any(leaf.requires_grad for leaf in state.tensors()):
                raise StateError("relay: a state with a gradient in a memory that nothing trains: detach it")
        anchor = torch.zeros((), requires_grad=graph)
        if self.scan and lengths is None and isinstance(memory, MatrixMemory) and scans(memory):
            return scanned(memory, line, anchor, x, state if line.first else None, reset)
        came = None
        if not line.first:
            like = self._sizes(memory, len(x), x.device)
            came = Receive.apply(anchor, line, pack(like))
            state = unpack(came, like)
        y, new, *more = type(memory).forward(memory, x, state, reset, lengths, **options)
        if not line.last:
            if not memory.bounded:
                sizes = torch.tensor([leaf.shape[1] for leaf in new.tensors()])
                line.send(sizes, line.rank + 1)
            leaves, form = tree_flatten((y, more))
            y, more = tree_unflatten(list(Send.apply(anchor, line, pack(new), came, *leaves)), form)
        return y, new, *more

    def _sizes(self, memory: Memory, rows: int, device: torch.device) -> State:
        """A state with the sizes of the one that the rank before sends; a growing state sends its sizes first."""
        like = memory.init_state(rows).to(device)
        if memory.bounded:
            return like
        leaves, form = tree_flatten(like)
        sizes = self.line.receive(torch.zeros(len(leaves), dtype=torch.int64), self.line.rank - 1)
        grown = [leaf.new_empty(rows, size, *leaf.shape[2:]) for leaf, size in zip(leaves, sizes.tolist(), strict=True)]
        return tree_unflatten(grown, form)


def outermost(module: nn.Module, seen: set[int] | None = None) -> Iterator[Memory]:
    """The memories of a module that are not inside another memory, each once."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    if isinstance(module, Memory):
        yield module
        return
    for child in module.children():
        yield from outermost(child, seen)
