"""Trunk: what the policies of all frameworks share, from numbers to features by way of memories that follow episodes.

Letters: T steps, B environments, N numbers of an observation, D width, A numbers of an encoded action.

    x [T, B, N], position in the episode, previous action, previous reward
        → mix → depth × (x + memory(norm(x))) → norm → features [T, B, D]
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream.errors import ShapeError, StateError
from tttstream.memory import Memory, TTTLayer
from tttstream.state import State
from tttstream_agents import memories
from tttstream_agents.encoder import Choices, Numbers


class _PolicyFields(NamedTuple):
    memories: tuple[State, ...]
    previous: Tensor
    age: Tensor


class PolicyState(State, _PolicyFields):
    """What a policy holds of each environment: the state of each memory, the encoded last action [B, A] (A may be 0),
    and the steps [B] since the episode began, modulo the longest wave. All zeros where an episode begins."""

    __slots__ = ()


WAVES = 2.0 ** torch.arange(2, 11)
"""Wavelengths of the position, 4 to 1024 steps: each divides the longest, so the age may be kept modulo that."""


def position(age: Tensor) -> Tensor:
    """Sines and cosines of an age [*] in steps -> [*, 18]."""
    angle = 2 * math.pi * age[..., None] / WAVES.to(age)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def mix(numbers: int, dim: int) -> nn.Sequential:
    """From numbers [*, numbers] to tokens [*, dim]."""
    return nn.Sequential(nn.Linear(numbers, dim), nn.GELU(), nn.Linear(dim, dim))


def check_sizes(**sizes: Any) -> None:
    """Raise ShapeError where a size is not a whole number from 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ShapeError(f"{name} must be a whole number of at least 1, got {size!r}")


class Played(nn.Module):
    """Actions [*, shape] as numbers [*, A], never all zero, which stands for none. Without a space A is 0."""

    def __init__(self, space: spaces.Space[Any] | None) -> None:
        super().__init__()
        self.part: Choices | Numbers | None = None
        if space is not None:
            self.part = Numbers(space) if isinstance(space, spaces.Box) else Choices(space)
        self.width = 0 if self.part is None else self.part.size + isinstance(self.part, Numbers)

    def forward(self, action: Tensor) -> Tensor:
        """See the class."""
        assert self.part is not None
        numbers: Tensor = self.part(action)
        return torch.cat([numbers, torch.ones_like(numbers[..., :1])], -1) if self.width > self.part.size else numbers


class Block(nn.Module):
    """x + memory(norm(x))."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(memory.dim)
        self.memory = memory

    def forward(self, x: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        """x [B, T, D], reset [B, T] or None -> the same shape as x, and the memory's state."""
        y, state = self.memory(self.norm(x), state, reset)
        return x + y, state


class Trunk(nn.Module):
    """Memories one after another, between what is seen and what is done.

    numbers: N. action_space: of the previous action where the trunk is to see that, else None. memory, dim, depth,
    heads, positions, options: as `MemoryPolicy`; rewards: whether it sees the reward that came with an observation.
    """

    def __init__(
        self,
        numbers: int,
        action_space: spaces.Space[Any] | None = None,
        memory: str = "ttt_linear",
        *,
        dim: int = 64,
        depth: int = 1,
        heads: int = 2,
        positions: bool = True,
        rewards: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, heads=heads)
        self.positions = positions
        self.played = Played(action_space)
        self.mix = mix(numbers + self.played.width + rewards + positions * 2 * len(WAVES), dim)
        try:
            built = [memories.build(memory, dim=dim, heads=heads, **(options or {})) for _ in range(depth)]
        except TypeError as error:
            raise ShapeError(f"memory {memory!r} cannot be made with options {options}: {error}") from error
        self.blocks = nn.ModuleList(Block(one) for one in built)
        self.norm = nn.LayerNorm(dim)

    @property
    def memories(self) -> list[Memory]:
        """The memories, first to last."""
        return [cast(Block, block).memory for block in self.blocks]

    def initial_state(self, n_envs: int) -> PolicyState:
        """A fresh state of `n_envs` environments: all zeros."""
        first = self.memories[0]
        return PolicyState(
            tuple(one.init_state(n_envs) for one in self.memories),
            first.zeros(n_envs, self.played.width),
            first.zeros(n_envs),
        )

    def remember(
        self,
        x: Tensor,
        state: PolicyState,
        starts: Tensor,
        rewards: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> tuple[Tensor, PolicyState]:
        """A stretch of play: features [T, B, D] and the state after it.

        x [T, B, N]; starts [T, B], true where an episode begins; rewards [T, B]: what came with x, where it sees them.
        actions [T, B, ...]: what was done; None for one step whose action is yet to be chosen, and then to be put into
        the state by `acted`.
        """
        done = self.played(actions).to(state.previous) if actions is not None and self.played.width else None
        reset = _any(starts)
        tokens, age = self._tokens(x, state, reset, rewards, done)
        tokens, kept = tokens.transpose(0, 1), []
        for block, one in zip(self.blocks, state.memories, strict=True):
            tokens, one = block(tokens, one, None if reset is None else reset.transpose(0, 1))
            kept.append(one)
        previous = state.previous if done is None else done[-1]
        return self.norm(tokens).transpose(0, 1), PolicyState(tuple(kept), previous, age)

    def acted(self, state: PolicyState, action: Tensor) -> PolicyState:
        """The state with the action [B, ...] that was chosen in the step after which it stands."""
        return state._replace(previous=self.played(action).to(state.previous)) if self.played.width else state

    @torch.no_grad()
    def inner_loss(
        self, x: Tensor, state: PolicyState, starts: Tensor, rewards: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The TTT memories' loss on one step (arguments [1, B, ...] of `remember`) before and after they learn it, [B]
        each, the mean of all heads and memories."""
        if not all(isinstance(one, TTTLayer) for one in self.memories):
            raise StateError("only TTT memories are surprised: this policy's memory has no inner loss")
        tokens, losses = self._tokens(x, state, _any(starts), rewards, None)[0].transpose(0, 1), []
        for block, kept in zip(self.blocks, state.memories, strict=True):
            y, _, loss = cast(Any, block).memory(cast(Any, block).norm(tokens), kept, starts.T, return_loss=True)
            tokens = tokens + y
            losses.append(torch.stack([loss.before, loss.after]).mean((-2, -1)))
        before, after = torch.stack(losses).mean(0)
        return before, after

    def _tokens(
        self, x: Tensor, state: PolicyState, starts: Tensor | None, rewards: Tensor | None, done: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [T, B, D], and the age [B] of the step after them. starts: None where no episode begins; done
        [T, B, A]: the encoded actions."""
        step = torch.arange(len(x), device=x.device)[:, None]
        age = state.age + step
        if starts is not None:
            first = torch.where(starts, step, -1).cummax(0).values  # where each episode began; -1: before these steps
            age = torch.where(first < 0, age, (step - first).to(age))
        age = age % float(WAVES[-1])
        numbers = [x]
        if self.played.width:
            before = state.previous[None]
            if done is not None:
                before = torch.cat([before, done[:-1]])
            numbers.append(before if starts is None else torch.where(starts[..., None], 0.0, before))
        if self.positions:
            numbers.append(position(age))
        if rewards is not None:
            numbers.append(rewards.reshape(*x.shape[:2], 1))
        dtype = cast(nn.Linear, self.mix[0]).weight.dtype
        tokens = self.mix(torch.cat([part.to(dtype) for part in numbers], -1))
        return tokens, (age[-1] + 1) % float(WAVES[-1])


def _any(starts: Tensor) -> Tensor | None:
    """None where nothing begins, as in most single steps. Off the CPU the question would cost more than it saves."""
    return None if starts.device.type == "cpu" and not bool(starts.any()) else starts
