"""Builds memories by name: those of tttstream, and two baselines without recurrence."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import memory
from tttstream.errors import ConfigError
from tttstream.inner import takes_frames
from tttstream.memory import Memory, TTTLayer
from tttstream.state import State


class _Window(NamedTuple):
    window: Tensor


class WindowState(State, _Window):
    """window [B, frames - 1, dim]: the last tokens, from the oldest to the newest. Before the start of the episode they
    are zeros."""

    __slots__ = ()


class FrameStack(Memory):
    """An MLP over the last `frames` tokens, including the current one. With frames = 1 it has no memory."""

    state_type = WindowState

    def __init__(self, dim: int, frames: int = 4, ratio: int = 2) -> None:
        super().__init__()
        if dim < 1 or frames < 1 or ratio < 1:
            raise ConfigError(f"expected dim, frames and ratio of at least 1, got {dim = }, {frames = }, {ratio = }")
        self.dim, self.frames = dim, frames
        self.mlp = nn.Sequential(nn.Linear(frames * dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim))

    def init_state(self, batch: int) -> WindowState:
        """An empty window."""
        return WindowState(self.zeros(batch, self.frames - 1, self.dim))

    def forward(
        self, x: Tensor, state: Any = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, WindowState]:
        """x [B, T, dim] -> y [B, T, dim] and the state after it; see `Memory`."""
        state = self.check(x, state, reset, lengths)
        rows, tokens, past = x.shape[0], x.shape[1], self.frames - 1
        token = torch.arange(tokens, device=x.device)
        end = torch.full((rows,), tokens, device=x.device) if lengths is None else lengths.to(x.device)
        counted = token < end[:, None]
        cuts = torch.zeros_like(counted) if reset is None else reset & counted
        piece = F.pad(cuts.cumsum(1), (past, 0))  # the window is piece 0
        seen = torch.cat([state.window, torch.where(counted[..., None], x, 0).to(state.window.dtype)], 1)

        place = torch.arange(past + 1, device=x.device)
        index = token[:, None] + place  # [T, frames], places in `seen`
        same = piece[:, index] == piece[:, past:, None]
        stack = torch.where(same[..., None], seen[:, index], 0).to(x.dtype)
        y = torch.where(counted[..., None], self.mlp(stack.flatten(2)), 0)

        row = torch.arange(rows, device=x.device)[:, None]
        kept = end[:, None] + place[:past]
        same = piece[row, kept] == piece[:, -1:]
        return y, WindowState(torch.where(same[..., None], seen[row, kept], 0))


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return ("mlp", "framestack", *memory.names())


def build(name: str, *, dim: int, heads: int, **options: Any) -> Memory:
    """A memory by name: "mlp" (none), "framestack", or any that `tttstream.memory.build` knows.

    ttt_linear and ttt_mlp have a short causal convolution (conv=4) by default, since an agent has to associate an
    observation with the ones just before it. ttt_conv and ttt_swiglu learn whole frames; here each token is a frame,
    and the default learning rate is a tenth, since a full step on one token overshoots.

    Raises ConfigError for an unknown name or option.
    """
    if name in ("mlp", "framestack"):
        taken = {"ratio"} if name == "mlp" else {"frames", "ratio"}
        if set(options) - taken:
            raise ConfigError(f"memory {name!r} takes {', '.join(sorted(taken))}, got {', '.join(sorted(options))}")
        return FrameStack(dim, **({"frames": 1} if name == "mlp" else {}), **options)
    if name not in memory.names():
        raise ConfigError(f"there is no memory {name!r}: expected one of {', '.join(names())}")
    if name in ("ttt_linear", "ttt_mlp"):
        options = {"conv": 4, **options}
    if takes_frames(name):
        options = {"grid": (1, 1), "base_lr": 0.1, **options}
    built = memory.build(name, dim=dim, heads=heads, **options)
    if isinstance(built, TTTLayer) and built.causal == "frame" and built.tokens > 1:
        raise ConfigError(f"memory {name!r}: an observation is one token, so a frame cannot have {built.tokens}")
    return built
