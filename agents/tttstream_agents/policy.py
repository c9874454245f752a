"""MemoryPolicy: an actor and a critic with a memory, which is reset at the start of each episode.

Letters: T steps, B environments, D width.

    obs [T, B, ...] → encoder → trunk (its memories) → actor, critic
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from tttstream.errors import ConfigError, StateError
from tttstream_agents import heads as action_heads
from tttstream_agents import pose_memory
from tttstream_agents.auxiliary import LOSSES, Auxiliary, learning_rates
from tttstream_agents.encoder import Encoder, pick
from tttstream_agents.errors import ObservationError
from tttstream_agents.trunk import Played, PolicyState, Trunk


class MemoryPolicy(Trunk):
    """A policy and a value function with a memory, for any environment of gymnasium.

    observation_space, action_space: of one environment.
    memory: a name of `tttstream_agents.memories.names()`: a memory of `tttstream.memory.names()`, framestack, or mlp
        (no memory).
    dim, depth, heads: width, number of memories in series, heads of each.
    positions: whether the policy sees the number of steps since the start of the episode, as sines and cosines with
        periods of 4 to `period` steps (a power of two up to 1024). They let a memory recall by time. If `period` is
        longer than the episodes of training, the policy fails in longer episodes, where these waves have new values.
    previous_action, previous_reward: whether the policy sees its last action, and the reward that came with an
        observation (`act` and `evaluate` then need rewards).
    options: further arguments of the memory.
    cnn: the network for pictures: nature, impala, strided or auto, see `tttstream_agents.encoder.Picture`.
    normalise: scale the numbers of a Box by their running mean and deviation. These are part of the weights and change
        only in `observe`, which training calls after each update, so that `act` and `evaluate` agree.
    gate: a gate around each memory that starts near the identity (GTrXL), instead of a sum.
    places: a memory of places: {"at": a part of a Dict of observations, "ask": parts, ...}, see
        `tttstream_agents.pose_memory`. What it reads replaces the parts "ask".
    auxiliary: losses for `learn_from`: rebuild, predict, keep; see `tttstream_agents.auxiliary`.

    The policy has no state of its own. The state is an argument and a result of every call: a `State` of tttstream,
    whose first dimension is the row, and which is all zeros at the start of an episode.

    If a Dict of observations has a mask of legal actions under "action_mask", `act` and `evaluate` obey it, and the
    network does not see it.

    Raises SpaceError for spaces that are not supported, ConfigError for unknown names and options.
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
        cnn: str = "auto",
        normalise: bool = False,
        gate: bool = False,
        period: int = 1024,
        places: dict[str, Any] | None = None,
        auxiliary: Sequence[str] = (),
    ) -> None:
        action = action_heads.build(action_space)
        seen = action_heads.without_mask(observation_space, action_space)
        encoder = Encoder(seen, cnn, normalise, plain=pose_memory.parts(places))
        super().__init__(
            encoder.size, action_space if previous_action else None, memory, dim=dim, depth=depth, heads=heads,
            positions=positions, rewards=previous_reward, options=options, gate=gate, period=period,
            places=pose_memory.build(encoder.size, encoder.indices(), places, seen),
        )  # fmt: skip
        self.observation_space, self.action_space = observation_space, action_space
        self.previous_reward, self.encoder, self.action = previous_reward, encoder, action
        self.masked = action_heads.masked_part(observation_space, action_space)
        self.actor, self.critic = action_heads.head(dim, self.action.outputs, quiet=True), action_heads.head(dim, 1)
        if set(auxiliary) - set(LOSSES):
            raise ConfigError(f"expected auxiliary losses of {', '.join(LOSSES)}, got {', '.join(auxiliary)}")
        self.encoded, self.keep = Played(action_space), "keep" in auxiliary
        with learning_rates(self.memories if self.keep else []):  # a memory without them is refused here
            self.auxiliary = nn.ModuleDict(
                {name: Auxiliary(name, encoder, self.encoded.width, dim) for name in auxiliary if name != "keep"}
            )

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the auxiliary losses."""
        return (*self.auxiliary, *["keep"] * self.keep)

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        state: PolicyState | None,
        starts: Any = None,
        rewards: Any = None,
        *,
        action_mask: Any = None,
        deterministic: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """Act in every environment. Returns (action [B, ...], log-probability [B], value [B], the next state).

        obs: observations [B, ...], tensors or arrays, nested like the space. state: None for a fresh one. starts [B]:
        true if obs is the first of an episode; the memory is then reset. rewards [B]: the rewards that came with obs,
        needed with previous_reward. action_mask: bool [B, n], true for legal actions, all choices of all components;
        an illegal action has probability 0. None: the mask in obs, if there is one. deterministic: take the most
        probable action.

        Raises ObservationError if an observation does not fit its space or is not finite, or a mask allows no action.
        """
        parts = self.encoder.tensors(obs, leading=1)
        batch = parts[0].shape[0]
        state, starts, rewards = self._arguments((batch,), state, starts, rewards)
        mask = self.legal(obs, (batch,), action_mask)
        x, state = self.remember(self.encoder(parts)[None], state, starts[None], rewards)
        outputs, value = self.actor(x[0]), self.critic(x[0]).squeeze(-1)
        action = self.action.sample(outputs, deterministic, mask)
        return action, self.action.log_prob(outputs, action, mask), value, self.acted(state, self.executed(action))

    def evaluate(
        self,
        obs: Any,
        actions: Any,
        state: PolicyState | None,
        starts: Any = None,
        rewards: Any = None,
        *,
        action_mask: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState]:
        """Evaluate all steps of a rollout in parallel. Returns (log-probability, entropy, value), each [T, B], and the
        next state.

        obs [T, B, ...]; actions [T, B, ...]: those that were taken; state: before the first step; starts [T, B] may be
        true at any step; rewards [T, B] and action_mask [T, B, n]: as in `act`. The results are those of `act` step by
        step; an illegal action has log-probability -inf.
        """
        return self.learn_from(obs, actions, state, starts, rewards, action_mask=action_mask)[:4]

    def learn_from(
        self,
        obs: Any,
        actions: Any,
        state: PolicyState | None,
        starts: Any = None,
        rewards: Any = None,
        *,
        action_mask: Any = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, PolicyState, dict[str, Tensor]]:
        """As `evaluate`, and the auxiliary losses by name, scalars. valid [T, B]: the steps that these include."""
        parts = self.encoder.tensors(obs, leading=2, check=False)
        steps, batch = parts[0].shape[:2]
        state, starts, rewards = self._arguments((steps, batch), state, starts, rewards)
        actions = torch.as_tensor(actions, device=state.previous.device)
        if actions.shape != (steps, batch, *cast("tuple[int, ...]", self.action_space.shape)):
            shape = [steps, batch, *cast("tuple[int, ...]", self.action_space.shape)]
            raise ObservationError(f"expected actions of shape {shape}, got {list(actions.shape)}")
        fault = self.action.fault(actions)
        if fault:
            raise ObservationError(f"the actions contain {fault}: expected {self.action_space}")
        mask = self.legal(obs, (steps, batch), action_mask)
        with learning_rates(self.memories if self.keep else []) as rates:
            x, state = self.remember(self.encoder(parts), state, starts, rewards, self.executed(actions))
        outputs, value = self.actor(x), self.critic(x).squeeze(-1)
        log_prob, entropy = self.action.log_prob(outputs, actions, mask), self.action.entropy(outputs, mask)
        losses: dict[str, Tensor] = {}
        counts = torch.ones_like(starts) if valid is None else valid
        for name, module in self.auxiliary.items():
            losses[name] = module(self.encoder, parts, x, self.encoded(self.executed(actions)).to(x), starts, counts)
        if self.keep:
            losses["keep"] = torch.cat([one[counts.T] for one in rates]).mean() if bool(counts.any()) else x.sum() * 0.0
        return log_prob, entropy, value, state, losses

    def legal(self, obs: Any, shape: tuple[int, ...], action_mask: Any = None) -> Tensor | None:
        """The mask of legal actions [*shape, n]: `action_mask`, or the one in the observations, or None.

        shape: [B] or [T, B]. Raises ObservationError if it does not fit or allows no action.
        """
        if action_mask is None:
            action_mask = self.mask_in(obs)
        if action_mask is None:
            return None
        return action_heads.action_mask(self.action, action_mask, shape, next(self.parameters()).device)

    def observe(self, obs: Any, valid: Tensor) -> None:
        """Add valid [T, B] observations [T, B, ...] to the running statistics (with normalise)."""
        self.encoder.update(self.encoder.tensors(obs, leading=2, check=False), valid)

    def mask_in(self, obs: Any) -> Any:
        """The mask of legal actions under "action_mask" in a Dict of observations, unchecked; None if there is none."""
        return pick(obs, ("action_mask",)) if self.masked else None

    def export(self, folder: str | os.PathLike[str], *, action_mask: bool = False) -> Path:
        """Write one step as policy.pt2 and policy.onnx, see `tttstream_agents.export`. Returns the folder."""
        from tttstream_agents.export import export

        return export(self, folder, action_mask=action_mask)

    @torch.no_grad()
    def surprise(
        self, obs: Any, state: PolicyState | None, starts: Any = None, rewards: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The inner loss of the TTT memories on a step before and after they learn it, [B] each, the mean of all heads
        and memories. Arguments as `act`. The state is not advanced. Raises StateError for other memories."""
        parts = self.encoder.tensors(obs, leading=1)
        state, starts, rewards = self._arguments((parts[0].shape[0],), state, starts, rewards)
        return self.inner_loss(self.encoder(parts)[None], state, starts[None], rewards)

    def executed(self, actions: Tensor) -> Tensor:
        """The actions that the environment executes, which are those that the policy sees as previous ones: clipped at
        the bounds of a Box."""
        if not isinstance(self.action_space, spaces.Box):
            return actions
        low, high = (torch.as_tensor(edge).to(actions) for edge in (self.action_space.low, self.action_space.high))
        return actions.clamp(low, high)

    def to_env(self, action: Tensor) -> NDArray[Any]:
        """Actions for the environment: numpy arrays of the space's type, clipped at the bounds of a Box."""
        action = self.executed(action.detach().cpu())
        array = (action.float() if action.dtype == torch.bfloat16 else action).numpy()
        if isinstance(self.action_space, spaces.Box):  # the bounds may round to other numbers in the actions' type
            array = np.clip(array, self.action_space.low, self.action_space.high)
        return array.astype(self.action_space.dtype)

    def _arguments(
        self, shape: tuple[int, ...], state: PolicyState | None, starts: Any, rewards: Any
    ) -> tuple[PolicyState, Tensor, Tensor | None]:
        """Check the other arguments and convert them to tensors. shape: [B] or [T, B]."""
        if state is None:
            state = self.initial_state(shape[-1])
        if not isinstance(state, PolicyState):
            raise StateError(f"expected a PolicyState, got {type(state).__name__}")
        if state.previous.shape != (shape[-1], self.played.width):
            raise StateError(
                f"the state has {len(state.previous)} environments and {state.previous.shape[1]} action numbers, "
                f"expected {shape[-1]} and {self.played.width}"
            )
        device = state.previous.device
        starts = torch.zeros(shape, dtype=torch.bool) if starts is None else torch.as_tensor(starts).bool()
        if starts.shape != shape:
            raise ObservationError(f"expected starts of shape {list(shape)}, got {list(starts.shape)}")
        if not self.previous_reward:
            return state, starts.to(device), None
        if rewards is None:
            raise ObservationError("this policy sees the previous reward: pass rewards, those that came with obs")
        starts = starts.to(device)
        rewards = torch.as_tensor(rewards, device=device).to(torch.get_default_dtype())
        if rewards.shape != shape or not bool(rewards.isfinite().all()):
            raise ObservationError(f"expected finite rewards of shape {list(shape)}, got {list(rewards.shape)}")
        return state, starts, torch.where(starts, 0.0, rewards)
