"""MemoryPolicy: an actor and a critic over a memory that goes on from step to step and starts anew with each episode.

Letters: T steps, B environments, D width, A numbers of an encoded action.

    obs [T, B, ...] → encoder → x [B, T, D] → depth × (x + memory(norm(x))) → norm → actor, critic
                        ↑ position in the episode, previous action, previous reward
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from tttstream.errors import ShapeError, StateError
from tttstream.memory import Memory, TTTLayer
from tttstream.state import State
from tttstream_agents import heads as action_heads
from tttstream_agents import memories
from tttstream_agents.encoder import Encoder
from tttstream_agents.errors import ObservationError


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


class Block(nn.Module):
    """x + memory(norm(x))."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(memory.dim)
        self.memory = memory

    def forward(self, x: Tensor, state: Any, reset: Tensor) -> tuple[Tensor, Any]:
        """x [B, T, D], reset [B, T] -> the same shape, and the memory's state."""
        y, state = self.memory(self.norm(x), state, reset)
        return x + y, state


class MemoryPolicy(nn.Module):
    """A policy and a value function that remember, for any environment of gymnasium.

    observation_space, action_space: of one environment.
    memory: a name of `tttstream_agents.memories.names()`: ttt_linear, ttt_mlp, gru, lstm, window, attention,
        framestack, mlp (no memory).
    dim, depth, heads: width, how many memories follow one another, heads of each.
    positions: whether the policy sees how many steps of the episode are behind it, as waves of 4 to 1024 steps; a
        memory that looks things up by content needs them to say how long ago something was.
    previous_action, previous_reward: whether the policy sees its last action, and the reward that came with an
        observation (then `act` and `evaluate` must be given rewards).
    options: what the memory takes besides.

    It holds parameters only: its state goes in and comes out, `State` of tttstream, rows first, zeros where fresh.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        memory: str = "ttt_linear",
        *,
        dim: int = 64,
        depth: int = 1,
        heads: int = 2,
        positions: bool = True,
        previous_action: bool = True,
        previous_reward: bool = False,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ShapeError(f"MemoryPolicy: depth must be at least 1, got {depth}")
        self.observation_space, self.action_space = observation_space, action_space
        self.positions, self.previous_reward = positions, previous_reward
        self.action = action_heads.build(action_space)
        self.remembered = self.action.width if previous_action else 0
        extra = self.remembered + previous_reward + positions * 2 * len(WAVES)
        self.encoder = Encoder(observation_space, dim, extra)
        built = [memories.build(memory, dim=dim, heads=heads, **(options or {})) for _ in range(depth)]
        self.blocks = nn.ModuleList(Block(one) for one in built)
        self.norm = nn.LayerNorm(dim)
        self.actor, self.critic = (
            nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, outputs))
            for outputs in (self.action.outputs, 1)
        )
        with torch.no_grad():
            for parameter in self.actor[-1].parameters():  # every action equally likely at first
                parameter.mul_(0.01)

    @property
    def memories(self) -> list[Memory]:
        """The memories, first to last."""
        return [cast(Block, block).memory for block in self.blocks]

    def initial_state(self, n_envs: int) -> PolicyState:
        """A fresh state of `n_envs` environments: all zeros."""
        first = self.memories[0]
        return PolicyState(
            tuple(one.init_state(n_envs) for one in self.memories),
            first.zeros(n_envs, self.remembered),
            first.zeros(n_envs),
        )

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        state: PolicyState | None,
        starts: Any = None,
        rewards: Any = None,
        *,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """One step of every environment: (action [B, ...], log-probability [B], value [B], state after it).

        obs: a batch of observations [B, ...], tensors or arrays, nested as the space is. state: None for a fresh one.
        starts [B]: true where obs is the first of an episode; what came before is then forgotten. rewards [B]: with
        previous_reward. Raises ObservationError where an observation does not fit its space or is not finite.
        """
        parts = self.encoder.tensors(obs, leading=1)
        batch = parts[0].shape[0]
        state, starts, rewards = self._arguments((batch,), state, starts, rewards)
        beside, age = self._beside(state, starts[None], rewards)
        x, kept = self._remember([part[None] for part in parts], beside, state, starts[None])
        outputs, value = self.actor(x[:, 0]), self.critic(x[:, 0]).squeeze(-1)
        action = self.action.sample(outputs, deterministic)
        previous = self.action.encode(action).to(state.previous.dtype)[:, : self.remembered]
        return action, self.action.log_prob(outputs, action), value, PolicyState(kept, previous, age)

    def evaluate(
        self, obs: Any, actions: Any, state: PolicyState | None, starts: Any = None, rewards: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """A stretch of play all at once: (log-probability, entropy, value), each [T, B], and the state after it.

        obs [T, B, ...] and the actions [T, B, ...] that were taken; starts [T, B] may be true at any step;
        state: as it was before the first step; rewards [T, B]: what came with obs. Says what `act` said, step by step.
        """
        parts = self.encoder.tensors(obs, leading=2, check=False)
        steps, batch = parts[0].shape[:2]
        state, starts, rewards = self._arguments((steps, batch), state, starts, rewards)
        actions = torch.as_tensor(actions, device=state.previous.device)
        if actions.shape != (steps, batch, *cast("tuple[int, ...]", self.action_space.shape)):
            shape = [steps, batch, *cast("tuple[int, ...]", self.action_space.shape)]
            raise ObservationError(f"expected actions of shape {shape}, got {list(actions.shape)}")
        done = self.action.encode(actions).to(state.previous.dtype)[..., : self.remembered]
        beside, age = self._beside(state, starts, rewards, done)
        x, kept = self._remember(parts, beside, state, starts)
        x = x.transpose(0, 1)
        outputs, value = self.actor(x), self.critic(x).squeeze(-1)
        log_prob, entropy = self.action.log_prob(outputs, actions), self.action.entropy(outputs)
        return log_prob, entropy, value, PolicyState(kept, done[-1], age)

    @torch.no_grad()
    def surprise(
        self, obs: Any, state: PolicyState | None, starts: Any = None, rewards: Any = None
    ) -> tuple[Tensor, Tensor]:
        """What a step (arguments as `act`) is to the TTT memories: their inner loss on it before and after they learn
        it, [B] each, the mean of all heads and memories. The state is not changed: call `act` to go on."""
        if not all(isinstance(one, TTTLayer) for one in self.memories):
            raise StateError("only TTT memories are surprised: this policy's memory has no inner loss")
        parts = self.encoder.tensors(obs, leading=1)
        state, starts, rewards = self._arguments((parts[0].shape[0],), state, starts, rewards)
        beside, _ = self._beside(state, starts[None], rewards)
        x = self.encoder([part[None] for part in parts], beside).transpose(0, 1)
        losses = []
        for block, kept in zip(self.blocks, state.memories, strict=True):
            y, _, loss = cast(Any, block).memory(cast(Any, block).norm(x), kept, starts[:, None], return_loss=True)
            x = x + y
            losses.append(torch.stack([loss.before, loss.after]).mean((-2, -1)))
        first, last = torch.stack(losses).mean(0)
        return first, last

    def to_env(self, action: Tensor) -> NDArray[Any]:
        """Actions as the environment takes them: numpy, of the space's type, a Box's cut at its bounds."""
        array = action.detach().cpu().numpy()
        if isinstance(self.action_space, spaces.Box):
            array = np.clip(array, self.action_space.low, self.action_space.high)
        return array.astype(self.action_space.dtype)

    def _beside(
        self, state: PolicyState, starts: Tensor, rewards: Tensor | None, done: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the encoder gets beside the observations [T, B, ...], and the age [B] of the step after them.

        starts [T, B]; rewards [T, B] or [B]; done [T, B, A]: the encoded actions of these steps, None for one step.
        """
        before = state.previous[None]
        if done is not None:
            before = torch.cat([before, done[:-1]])
        step = torch.arange(len(starts), device=starts.device)[:, None]
        first = torch.where(starts, step, -1).cummax(0).values  # where each step's episode began; -1: before these
        age = torch.where(first < 0, state.age + step, (step - first).to(state.age)) % float(WAVES[-1])
        numbers = [torch.where(starts[..., None], 0.0, before)]
        if self.positions:
            numbers.append(position(age))
        if rewards is not None:
            numbers.append(rewards.reshape(*starts.shape, 1).to(before))
        return torch.cat(numbers, -1).to(torch.get_default_dtype()), (age[-1] + 1) % float(WAVES[-1])

    def _remember(
        self, parts: list[Tensor], beside: Tensor, state: PolicyState, starts: Tensor
    ) -> tuple[Tensor, tuple[State, ...]]:
        """Through encoder and memories: features [B, T, D] and the memories' states. Arguments [T, B, ...]."""
        x, kept = self.encoder(parts, beside).transpose(0, 1), []
        for block, one in zip(self.blocks, state.memories, strict=True):
            x, one = block(x, one, starts.transpose(0, 1))
            kept.append(one)
        return self.norm(x), tuple(kept)

    def _arguments(
        self, shape: tuple[int, ...], state: PolicyState | None, starts: Any, rewards: Any
    ) -> tuple[PolicyState, Tensor, Tensor | None]:
        """The other arguments as tensors, checked. shape: [B] or [T, B]."""
        if state is None:
            state = self.initial_state(shape[-1])
        if not isinstance(state, PolicyState):
            raise StateError(f"expected a PolicyState, got {type(state).__name__}")
        if state.previous.shape != (shape[-1], self.remembered):
            raise StateError(
                f"the state is of {len(state.previous)} environments and {state.previous.shape[1]} action numbers, "
                f"expected {shape[-1]} and {self.remembered}"
            )
        device = state.previous.device
        starts = torch.zeros(shape, dtype=torch.bool) if starts is None else torch.as_tensor(starts).bool()
        if starts.shape != shape:
            raise ObservationError(f"expected starts of shape {list(shape)}, got {list(starts.shape)}")
        if not self.previous_reward:
            return state, starts.to(device), None
        if rewards is None:
            raise ObservationError("this policy sees the previous reward: give rewards, those that came with obs")
        starts = starts.to(device)
        rewards = torch.as_tensor(rewards, device=device).to(torch.get_default_dtype())
        if rewards.shape != shape or not bool(rewards.isfinite().all()):
            raise ObservationError(f"expected finite rewards of shape {list(shape)}, got {list(rewards.shape)}")
        return state, starts, torch.where(starts, 0.0, rewards)
