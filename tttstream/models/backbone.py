"""The backbone: blocks of attention inside each frame, a memory over the stream, and an MLP."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import memory as memories
from tttstream.memory.base import Memory
from tttstream.memory.ttt import TTTLayer
from tttstream.models.motion import Past
from tttstream.state import State, exportable


class _ModelFields(NamedTuple):
    blocks: tuple[State, ...]
    past: Past | tuple[()] = ()


class ModelState(State, _ModelFields):
    """The states of a model's memories, one for each block; and for a model with motion, the last frame."""

    __slots__ = ()


@exportable
class Losses(NamedTuple):
    """Inner loss of every token that a memory learns from, mean over heads and (watched) blocks: [B, T, tokens]."""

    before: Tensor
    after: Tensor


class Mixing(nn.Module):
    """Softmax attention among the tokens of one frame."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[frames, N, dim] -> the same."""
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """norm, mixing, add; norm, memory, add; norm, MLP, add.

    With registers, only these pass through the memory, so its cost does not depend on the picture size.
    """

    def __init__(self, dim: int, heads: int, memory: Memory, registers: int, mlp_ratio: int) -> None:
        super().__init__()
        self.memory = memory
        self.registers = registers
        self.mixing = Mixing(dim, heads)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: Tensor, state: Any, reset: Tensor | None, learn: bool) -> tuple[Tensor, State, Losses | None]:
        """x [B, T, N, dim], reset [B, T] -> (x, state, the losses of the memory if it has an inner loss)."""
        x, state, losses = self.remember(x, state, reset, learn)
        return x + self.mlp(self.norms[2](x)), state, losses

    def remember(self, x: Tensor, state: Any, reset: Tensor | None, learn: bool) -> tuple[Tensor, State, Losses | None]:
        """`forward` without the MLP, which does not affect the losses."""
        rows, frames, tokens, _ = x.shape
        x = x + self.mixing(self.norms[0](x).flatten(0, 1)).unflatten(0, (rows, frames))
        kept = tokens - self.registers if self.registers else 0
        remembered = self.norms[1](x[:, :, kept:]).flatten(1, 2)
        if reset is not None:
            first = torch.arange(tokens - kept, device=x.device) == 0
            reset = (reset[:, :, None] & first).flatten(1)
        losses = None
        if isinstance(self.memory, TTTLayer):
            y, state, loss = self.memory(remembered, state, reset, return_loss=True, learn=learn)
            losses = Losses(*(part.mean(1).unflatten(1, (frames, -1)) for part in loss))
        else:
            y, state = self.memory(remembered, state, reset)
        y = y.unflatten(1, (frames, -1))
        return x + (F.pad(y, (0, 0, kept, 0)) if kept else y), state, losses


class Backbone(nn.Module):
    """Blocks of one width, each with its own memory; the losses are those of the first `watched` blocks (0: of all)."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        side: int,
        registers: int,
        memory: str,
        mlp_ratio: int,
        options: dict[str, Any],
        watched: int = 0,
    ) -> None:
        super().__init__()
        self.watched = watched
        if "grid" in memories.takes(memory):
            grid = (1, registers) if registers else (side, side)
            options = {"causal": "frame", "grid": grid, **options}
        built = [memories.build(memory, dim=dim, heads=heads, **options) for _ in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, each, registers, mlp_ratio) for each in built)

    def init_state(self, batch: int) -> ModelState:
        """A fresh state of `batch` rows, all zeros."""
        memories = [module for module in self.modules() if isinstance(module, Memory)]
        return ModelState(tuple(each.init_state(batch) for each in memories))

    def forward(
        self, x: Tensor, state: ModelState | None, reset: Tensor | None, learn: bool, late: Tensor | None = None
    ) -> tuple[Tensor, ModelState, Losses | None]:
        """x [B, T, N, dim] -> (x, state, losses averaged over the blocks that have one).

        late: [B, T, N, dim], added to x after the watched blocks (before all blocks if all are watched).
        """
        before = [None] * len(self.blocks) if state is None else state.blocks
        states, losses = [], []
        for number, (block, old) in enumerate(zip(self.blocks, before, strict=True)):
            if late is not None and number == self.watched:
                x = x + late
            x, new, loss = block(x, old, reset, learn)
            states.append(new)
            if loss is not None and (number < self.watched or not self.watched):
                losses.append(loss)
        return x, ModelState(tuple(states)), _mean(losses)

    def watch(
        self, x: Tensor, state: ModelState | None, reset: Tensor | None, learn: bool
    ) -> tuple[Losses | None, ModelState]:
        """x [B, T, N, dim] -> the losses of `forward`, and the state of the watched blocks; the other blocks do not
        run."""
        blocks: list[Any] = list(self.blocks)[: self.watched or None]
        before = [None] * len(blocks) if state is None else state.blocks
        states, losses = [], []
        for block, old in zip(blocks, before, strict=True):
            run = block.remember if block is blocks[-1] else block
            x, new, loss = run(x, old, reset, learn)
            states.append(new)
            if loss is not None:
                losses.append(loss)
        return _mean(losses), ModelState(tuple(states))


def _mean(losses: list[Losses]) -> Losses | None:
    """The mean over blocks."""
    return Losses(*(torch.stack(part).mean(0) for part in zip(*losses, strict=True))) if losses else None
