"""Trunk: the part that the policies of all frameworks share, from encoded observations through memories to features.

Letters: T steps, B environments, N numbers of an observation, D width, A numbers of an encoded action.

    x [T, B, N], position in the episode, previous action, previous reward
        → mix → depth × (x + memory(norm(x))) → norm → features [T, B, D]
"""

import math
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream.errors import ConfigError, StateError
from tttstream.memory import Memory, TTTLayer
from tttstream.state import State
from tttstream_agents import memories
from tttstream_agents.encoder import Choices, Numbers
from tttstream_agents.pose_memory import PoseMemory


class _PolicyFields(NamedTuple):
    memories: tuple[State, ...]
    previous: Tensor
    age: Tensor
    places: tuple[State, ...] = ()


class PolicyState(State, _PolicyFields):
    """The hidden state of a policy in each environment: the states of the memories, the encoded last action [B, A] (A
    may be 0), the steps [B] since the start of the episode, modulo the longest period, and the state of the memory of
    places, if there is one. At first all zeros."""

    __slots__ = ()


WAVES = 2.0 ** torch.arange(2, 11)
"""The periods of the position, 4 to 1024 steps. Each divides the longest one, so the age is stored modulo that."""
LONGEST = 1024.0


def periods(longest: int) -> Tensor:
    """The periods [W] up to `longest`. Raises ConfigError if that is not a period."""
    if longest not in WAVES.tolist():
        raise ConfigError(f"period must be one of {', '.join(f'{wave:g}' for wave in WAVES)}, got {longest!r}")
    return WAVES[longest >= WAVES]


def position(age: Tensor, waves: Tensor) -> Tensor:
    """Sines and cosines with periods [W] of an age [*] in steps -> [*, 2 W]."""
    angle = 2 * math.pi * age[..., None] / waves.to(age)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def mix(numbers: int, dim: int) -> nn.Sequential:
    """The layers from numbers [*, numbers] to tokens [*, dim]."""
    return nn.Sequential(nn.Linear(numbers, dim), nn.GELU(), nn.Linear(dim, dim))


def check_sizes(**sizes: Any) -> None:
    """Raise ConfigError if a size is not a whole number of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {size!r}")


class Played(nn.Module):
    """Encodes actions [*, shape] as numbers [*, A], never all zeros, which means no action. Without a space A is 0."""

    def __init__(self, space: spaces.Space[Any] | None) -> None:
        super().__init__()
        self.part: Choices | Numbers | None = None
        if space is not None:
            self.part = Numbers(space) if isinstance(space, spaces.Box) else Choices(space)
        self.width = 0 if self.part is None else self.part.size + isinstance(self.part, Numbers)

    def forward(self, action: Tensor) -> Tensor:
        assert self.part is not None
        numbers: Tensor = self.part(action)
        return torch.cat([numbers, torch.ones_like(numbers[..., :1])], -1) if self.width > self.part.size else numbers


class Gate(nn.Module):
    """The gate of GTrXL (Parisotto et al., arXiv 1910.06764, section 3.2): a GRU of x and the memory's output y.

    r = sigmoid(W_r y + U_r x), z = sigmoid(W_z y + U_z x - b), h = tanh(W_h y + U_h (r x)), out = (1 - z) x + z h.
    It starts near the identity: b = 2, and the weights of x are small.
    """

    def __init__(self, dim: int, bias: float = 2.0, std: float = 0.02) -> None:
        super().__init__()
        self.of_y, self.of_x = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.of_rx = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), bias))
        for linear in (self.of_x, self.of_rx):
            nn.init.normal_(linear.weight, std=std)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y [B, T, D] -> the same shape."""
        y_r, y_z, y_h = self.of_y(y).chunk(3, -1)
        x_r, x_z = self.of_x(x).chunk(2, -1)
        r, z = (y_r + x_r).sigmoid(), (y_z + x_z - self.bias).sigmoid()
        return torch.lerp(x, (y_h + self.of_rx(r * x)).tanh(), z)


class Block(nn.Module):
    """x + memory(norm(x)), or gate(x, memory(norm(x)))."""

    def __init__(self, memory: Memory, gate: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(memory.dim)
        self.memory = memory
        self.gate = Gate(memory.dim) if gate else None

    def forward(self, x: Tensor, state: Any, reset: Tensor | None) -> tuple[Tensor, Any]:
        """x [B, T, D], reset [B, T] or None -> the same shape as x, and the memory's state."""
        y, state = self.memory(self.norm(x), state, reset)
        return self.mixed(x, y), state

    def mixed(self, x: Tensor, y: Tensor) -> Tensor:
        """Combine x and the memory's output y [B, T, D]."""
        return x + y if self.gate is None else self.gate(x, y)


class Trunk(nn.Module):
    """Memories in series, between the encoder of observations and the heads for actions and values.

    numbers: N. action_space: that of the previous action, None if the trunk does not see it. rewards: whether it sees
    the reward that came with an observation. memory, dim, depth, heads, positions, options, gate, period: as
    `MemoryPolicy`. places: a memory of places in front of it. Raises ConfigError for unknown names and
    wrong sizes.
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
        gate: bool = False,
        period: int = 1024,
        places: PoseMemory | None = None,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, depth=depth, heads=heads)
        self.places = places
        numbers = numbers if places is None else places.size
        self.waves = periods(period) if positions else WAVES[:0]
        self.played = Played(action_space)
        self.mix = mix(numbers + self.played.width + rewards + 2 * len(self.waves), dim)
        try:
            built = [memories.build(memory, dim=dim, heads=heads, **(options or {})) for _ in range(depth)]
        except TypeError as error:
            raise ConfigError(f"memory {memory!r} cannot be made with options {options}: {error}") from error
        self.blocks = nn.ModuleList(Block(one, gate) for one in built)
        self.norm = nn.LayerNorm(dim)

    @property
    def memories(self) -> list[Memory]:
        """The memories, from first to last."""
        return [cast(Block, block).memory for block in self.blocks]

    def initial_state(self, n_envs: int) -> PolicyState:
        """A fresh state of `n_envs` environments: all zeros."""
        first = self.memories[0]
        return PolicyState(
            tuple(one.init_state(n_envs) for one in self.memories),
            first.zeros(n_envs, self.played.width),
            first.zeros(n_envs),
            () if self.places is None else (self.places.init_state(n_envs),),
        )

    def remember(
        self,
        x: Tensor,
        state: PolicyState,
        starts: Tensor | None,
        rewards: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> tuple[Tensor, PolicyState]:
        """The features [T, B, D] of a sequence of steps, and the next state.

        x [T, B, N]; starts [T, B]: true at the first step of an episode, None if there is no start; rewards [T, B]:
        those that came with x, if the trunk sees them; actions [T, B, ...]: those that were taken. For a single step
        actions may be None; `acted` then adds the action to the state.
        """
        done = self.played(actions).to(state.previous) if actions is not None and self.played.width else None
        reset = _any(starts)
        x, places = self._placed(x, state, reset)
        tokens, age = self._tokens(x, state, reset, rewards, done)
        tokens, kept = tokens.transpose(0, 1), []
        for block, one in zip(self.blocks, state.memories, strict=True):
            tokens, one = block(tokens, one, None if reset is None else reset.transpose(0, 1))
            kept.append(one)
        previous = state.previous if done is None else done[-1]
        return self.norm(tokens).transpose(0, 1), PolicyState(tuple(kept), previous, age, places)

    def acted(self, state: PolicyState, action: Tensor) -> PolicyState:
        """Add the action [B, ...] of the last step to the state."""
        return state._replace(previous=self.played(action).to(state.previous)) if self.played.width else state

    @torch.no_grad()
    def inner_loss(
        self, x: Tensor, state: PolicyState, starts: Tensor, rewards: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The inner loss of the TTT memories on one step before and after they learn it, [B] each, the mean of all
        heads and memories. Arguments [1, B, ...] of `remember`. Raises StateError for other memories."""
        if not all(isinstance(one, TTTLayer) for one in self.memories):
            raise StateError("this policy's memory has no inner loss, so it has no surprise: use a TTT memory")
        reset = _any(starts)
        x, _ = self._placed(x, state, reset)
        tokens, losses = self._tokens(x, state, reset, rewards, None)[0].transpose(0, 1), []
        for block, kept in zip(self.blocks, state.memories, strict=True):
            y, _, loss = cast(Any, block).memory(cast(Any, block).norm(tokens), kept, starts.T, return_loss=True)
            tokens = cast(Block, block).mixed(tokens, y)
            losses.append(torch.stack([loss.before, loss.after]).mean((-2, -1)))
        before, after = torch.stack(losses).mean(0)
        return before, after

    def _placed(self, x: Tensor, state: PolicyState, reset: Tensor | None) -> tuple[Tensor, tuple[State, ...]]:
        """The output of the memory of places for x [T, B, N], and its next state. Without such a memory, x."""
        if self.places is None:
            return x, ()
        rows = None if reset is None else reset.transpose(0, 1)
        x, kept = self.places(x.transpose(0, 1), state.places[0], rows)
        return x.transpose(0, 1), (kept,)

    def _tokens(
        self, x: Tensor, state: PolicyState, starts: Tensor | None, rewards: Tensor | None, done: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens [T, B, D], and the age [B] of the next step. starts: None if no episode starts. done [T, B, A]: the
        encoded actions."""
        step = torch.arange(len(x), device=x.device)[:, None]
        age = state.age + step
        if starts is not None:
            first = torch.where(starts, step, -1).cummax(0).values  # the start of each episode; -1 if it is earlier
            age = torch.where(first < 0, age, (step - first).to(age))
        age = age % LONGEST
        numbers = [x]
        if self.played.width:
            before = state.previous[None]
            if done is not None:
                before = torch.cat([before, done[:-1]])
            numbers.append(before if starts is None else torch.where(starts[..., None], 0.0, before))
        if len(self.waves):
            numbers.append(position(age, self.waves))
        if rewards is not None:
            numbers.append(rewards.reshape(*x.shape[:2], 1))
        dtype = cast(nn.Linear, self.mix[0]).weight.dtype
        tokens = self.mix(torch.cat([part.to(dtype) for part in numbers], -1))
        return tokens, (age[-1] + 1) % LONGEST


def _any(starts: Tensor | None) -> Tensor | None:
    """None if no episode starts, which saves time. Only on the CPU, where the test is cheap."""
    if starts is None or starts.device.type != "cpu" or torch.compiler.is_compiling():
        return starts
    return starts if bool(starts.any()) else None
