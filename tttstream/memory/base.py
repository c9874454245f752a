"""The contract of every memory: (x, state, reset, lengths) -> (y, state)."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tttstream.errors import ShapeError, StateError
from tttstream.state import State


class Memory(nn.Module):
    """A layer that remembers. It holds parameters only; what it remembers is the state, which goes in and comes out.

    Called as `y, state = memory(x, state=None, reset=None, lengths=None)` with x, y [B, T, dim], reset bool [B, T]
    (token t of row b starts as if nothing came before) and lengths [B] (only the first tokens of a row count; outputs
    after them are zero; a row of length 0 passes its state on unchanged). B and T are any numbers >= 1; in frame mode T
    is a multiple of the tokens of a frame. The graph is kept until `state.detach()`.

    bounded: whether the size of the state is constant (a growing key-value cache's is not).
    adds_up: whether the values in the state may grow with the stream, which lets a memory count; law 6 exempts it.
    state_type: the class of its states.
    """

    bounded: bool = True
    adds_up: bool = False
    state_type: type[State] = State
    dim: int

    @property
    def views(self) -> nn.Linear | None:
        """The projection of a token to q, k and v, [dim] to [3 * dim] in this order; None for memories without one."""
        return None

    def init_state(self, batch: int) -> State:
        """A fresh state of `batch` rows: zeros, on the parameters' device, float32 (float64 where they are float64)."""
        raise NotImplementedError(f"{type(self).__name__} must define init_state")

    def read(self, x: Tensor, state: State | None = None) -> Tensor:
        """The output [B, T, dim] for each token x [B, T, dim], as if it were the next one after the state. The state
        stays as it is. A memory that can answer without learning does so; the others learn a token before they answer
        it, each in a copy of the state.
        """
        rows, tokens = x.shape[:2]
        state = self.check(x, state, None, None)
        copies = state[torch.arange(rows, device=x.device).repeat_interleave(tokens)]
        return self(x.flatten(0, 1)[:, None], copies)[0].view(rows, tokens, -1)

    @cached_property
    def _sizes(self) -> list[torch.Size]:
        """Sizes of the state's tensors without their rows; 0 if they grow."""
        return [leaf.shape[1:] for leaf in self.init_state(1).tensors()]

    @property
    def state_dtype(self) -> torch.dtype:
        """float64 where the parameters are, else float32."""
        double = any(parameter.dtype == torch.float64 for parameter in self.parameters())
        return torch.float64 if double else torch.float32

    def zeros(self, *shape: int) -> Tensor:
        """A zero tensor of a state of this memory."""
        device = next(self.parameters()).device
        return torch.zeros(shape, dtype=self.state_dtype, device=device)

    def check_tokens(self, x: Tensor, reset: Tensor | None, lengths: Tensor | None) -> None:
        """Validate a call's arguments other than its state."""
        name = type(self).__name__
        for argument, value in (("x", x), ("reset", reset), ("lengths", lengths)):
            if value is not None and not isinstance(value, Tensor):
                raise ShapeError(f"{name}: expected {argument} as a tensor, got {type(value).__name__}")
        if x.dim() != 3 or x.shape[-1] != self.dim or x.shape[0] < 1 or x.shape[1] < 1:
            raise ShapeError(f"{name}: expected x of shape [rows >= 1, tokens >= 1, {self.dim}], got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ShapeError(f"{name}: expected x of a floating type, got {x.dtype}")
        rows, tokens = x.shape[:2]
        if reset is not None and (reset.shape != (rows, tokens) or reset.dtype != torch.bool):
            raise ShapeError(
                f"{name}: expected reset of shape [{rows}, {tokens}] and type bool, "
                f"got {tuple(reset.shape)} and {reset.dtype}"
            )
        if lengths is not None and (lengths.shape != (rows,) or lengths.is_floating_point()):
            raise ShapeError(
                f"{name}: expected lengths of shape [{rows}] and a whole-number type, "
                f"got {tuple(lengths.shape)} and {lengths.dtype}"
            )
        if lengths is not None and not torch.compiler.is_compiling() and lengths.device.type == "cpu":
            if bool(((lengths < 0) | (lengths > tokens)).any()):
                raise ShapeError(f"{name}: expected lengths between 0 and {tokens}, got {lengths.tolist()}")

    def check(self, x: Tensor, state: State | None, reset: Tensor | None, lengths: Tensor | None) -> Any:
        """Validate a call's arguments; returns the state to start from (a fresh one for None)."""
        self.check_tokens(x, reset, lengths)
        name, rows = type(self).__name__, x.shape[0]
        if state is None:
            return self.init_state(rows)
        if not isinstance(state, self.state_type):
            expected = self.state_type.__name__
            raise StateError(f"{name}: expected a state of this memory ({expected}), got {type(state).__name__}")
        leaves = state.tensors()
        if leaves[0].shape[0] != rows:
            raise StateError(f"{name}: the state has {state.rows} rows, x has {rows}")
        if not torch.compiler.is_compiling():
            came, dtype = [leaf.shape[1:] for leaf in leaves], self.state_dtype
            if not self.bounded:
                came = [torch.Size([0, *size[1:]]) for size in came]
            if came != self._sizes or any(leaf.dtype != dtype for leaf in leaves):
                found = [f"{list(size)} {leaf.dtype}" for size, leaf in zip(came, leaves, strict=True)]
                expected = f"{[list(size) for size in self._sizes]} {dtype}"
                raise StateError(f"{name}: the state is of another memory: {', '.join(found)}; expected {expected}")
        return state
