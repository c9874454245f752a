"""Stable-Baselines3: policies with a memory, and a RecurrentPPO that keeps states only where segments begin.

    from tttstream_agents.sb3 import RecurrentPPO

    model = RecurrentPPO("TTTPolicy", env).learn(100_000)

Letters: T steps of a rollout, B environments, L steps of a segment, S segments, n numbers of a packed state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from tttstream.errors import DependencyError, ShapeError
from tttstream.state import pack, unpack
from tttstream_agents.errors import ObservationError, SpaceError, TrainingError
from tttstream_agents.trunk import PolicyState, Trunk

try:
    import sb3_contrib
    from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import (
        RecurrentDictRolloutBufferSamples,
        RecurrentRolloutBufferSamples,
        RNNStates,
    )
    from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
    from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
except ModuleNotFoundError as error:
    raise DependencyError(f"{error.name} is not installed: pip install 'tttstream[sb3]'") from error

__all__ = ["RecurrentPPO", "TTTCnnPolicy", "TTTMultiInputPolicy", "TTTPolicy"]

Pair = tuple[Tensor, Tensor]
OF_LSTM = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")


class Flat(FlattenExtractor):
    """Stable-Baselines3's, with a plain number for its size, which of MultiDiscrete is NumPy's there."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise SpaceError("TTTPolicy sees one row of numbers: for a Dict take TTTMultiInputPolicy")
        super().__init__(observation_space)
        self._features_dim: int = int(self.features_dim)


class TTTPolicy(RecurrentActorCriticPolicy):
    """Stable-Baselines3's features, then a trunk that remembers, then its actor and critic, which share both.

    memory, dim, depth, heads, positions, previous_action: as `tttstream_agents.MemoryPolicy`; options: what the memory
    takes besides. Further arguments as sb3-contrib's policy, the ones that describe its LSTM apart.

    A state is the packed state [1, B, n] of all environments, given twice, because sb3-contrib's states are pairs.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *,
        memory: str = "ttt_linear",
        dim: int = 64,
        depth: int = 1,
        heads: int = 2,
        positions: bool = True,
        previous_action: bool = True,
        options: dict[str, Any] | None = None,
        features_extractor_class: Any = Flat,
        **kwargs: Any,
    ) -> None:
        foreign = [name for name in OF_LSTM if name in kwargs]
        if foreign:
            raise ShapeError(f"policy_kwargs: {', '.join(foreign)} describe an LSTM: say memory, dim, depth and heads")
        if not kwargs.get("share_features_extractor", True):
            raise ShapeError("actor and critic share one memory, so they need one features extractor, not two")
        super().__init__(
            observation_space, action_space, lr_schedule, lstm_hidden_size=dim, shared_lstm=True,
            enable_critic_lstm=False, features_extractor_class=features_extractor_class, **kwargs,
        )  # fmt: skip
        self.memory_kwargs: dict[str, Any] = {
            "memory": memory, "dim": dim, "depth": depth, "heads": heads, "positions": positions,
            "previous_action": previous_action, "options": options,
        }  # fmt: skip
        trunk = Trunk(
            self.features_dim, action_space if previous_action else None, memory, dim=dim, depth=depth, heads=heads,
            positions=positions, options=options,
        )  # fmt: skip
        if not all(one.bounded for one in trunk.memories):
            raise ShapeError(f"memory {memory!r} grows, sb3-contrib's states cannot: take 'window'")
        self._fresh = trunk.initial_state(1)
        size = pack(self._fresh).shape[1]
        # RecurrentPPO asks lstm_actor for these two, predict() for the third.
        trunk.num_layers, trunk.hidden_size = 1, size  # type: ignore[assignment]
        self.lstm_hidden_state_shape = (1, 1, size)
        self.lstm_actor = cast(Any, trunk)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def trunk(self) -> Trunk:
        """Where the memory is; sb3-contrib's name for its place is lstm_actor."""
        return cast(Trunk, self.lstm_actor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.memory_kwargs}

    def _remember(
        self, obs: Any, states: tuple[Tensor, ...], episode_starts: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, PolicyState]:
        """Latents [S * L, dim] and the state after; S sequences of L steps each, one below the other."""
        rows = states[0].shape[1]
        features = cast(Tensor, self.extract_features(obs, self.features_extractor))
        if not features.isfinite().all():
            raise ObservationError("an observation holds NaN or infinity")

        def sequence(x: Tensor) -> Tensor:
            return x.view(rows, -1, *x.shape[1:]).transpose(0, 1)

        done = None
        if actions is not None:
            done = sequence(actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape)))
        state = unpack(states[0][0], self._fresh)
        latent, state = self.trunk.remember(sequence(features), state, sequence(episode_starts) > 0, actions=done)
        return latent.transpose(0, 1).flatten(0, 1), state

    def forward(
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """One step of every environment: actions, values, log-probabilities, states."""
        latent, state = self._remember(obs, lstm_states.pi, episode_starts)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        pair = self._pair(state, actions)
        return actions, values, log_prob, RNNStates(pair, pair)

    def evaluate_actions(
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probabilities and entropies of S sequences, all steps in parallel, with resets inside."""
        latent, _ = self._remember(obs, lstm_states.pi, episode_starts, actions)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values, distribution.log_prob(actions), cast(Tensor, distribution.entropy())

    def get_distribution(self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor) -> tuple[Any, Pair]:
        """The distribution of actions, and the state without the action, which is not chosen yet."""
        latent, state = self._remember(obs, lstm_states, episode_starts)
        flat = pack(state)[None]
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent)), (flat, flat)

    def predict_values(self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor) -> Tensor:
        """Values of one step."""
        latent, _ = self._remember(obs, lstm_states, episode_starts)
        return self.value_net(self.mlp_extractor.forward_critic(latent))

    def _predict(
        self, observation: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Pair]:
        latent, state = self._remember(observation, lstm_states, episode_starts)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._pair(state, actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape)))

    def _pair(self, state: PolicyState, actions: Tensor) -> Pair:
        flat = pack(self.trunk.acted(state, actions))[None]
        return flat, flat


class TTTCnnPolicy(TTTPolicy):
    """TTTPolicy over NatureCNN, for pictures."""

    def __init__(self, *args: Any, features_extractor_class: Any = NatureCNN, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class TTTMultiInputPolicy(TTTPolicy):
    """TTTPolicy over CombinedExtractor, for dictionaries of observations."""

    def __init__(self, *args: Any, features_extractor_class: Any = CombinedExtractor, **kwargs: Any) -> None:
        super().__init__(*args, features_extractor_class=features_extractor_class, **kwargs)


class _Segments:
    """A rollout buffer that keeps [B, n] states where segments of L steps begin, and nothing of those in between."""

    segment: int
    _plain: ClassVar[type[RolloutBuffer]]
    _samples: ClassVar[Any]

    def reset(self: Any) -> None:
        """Empty it."""
        self._plain.reset(self)
        self.states: list[Tensor] = []

    def add(self: Any, *args: Any, lstm_states: RNNStates, **kwargs: Any) -> None:
        """One step, as sb3-contrib's; lstm_states are those before it."""
        if self.pos % self.segment == 0:
            self.states.append(lstm_states.pi[0][0])
        self._plain.add(self, *args, **kwargs)

    def get(self: Any, batch_size: int | None = None) -> Iterator[Any]:
        """Whole segments in random order, `batch_size` steps at a time, or as near to that as whole segments allow,
        and never a step alone, whose advantage cannot be normalised.

        Tensors [S * L, ...], segment after segment, and the states [1, S, n] where they begin. Where L does not
        divide T the last ones are filled up with their last step; the mask is 0 there.
        """
        if not self.full:
            raise TrainingError("the rollout buffer is not full yet")
        length, count = self.segment, self.n_envs * len(self.states)
        states = torch.cat(self.states).to(self.device)
        each = count if batch_size is None else max(1, batch_size // length)
        order = np.random.permutation(count)
        steps = np.arange(len(self.states) * length).reshape(-1, length)  # of each segment, some beyond the end
        real = (steps < self.buffer_size).sum(1)[order // self.n_envs]
        batches, begin = [], 0
        for end in [*range(each, count, each), count]:
            if real[begin:end].sum() >= 2:
                batches.append(order[begin:end])
                begin = end
        batches[-1] = np.concatenate([batches[-1], order[begin:]])

        def cut(x: Any, rows: Any) -> Tensor:
            """[T, B, ...] -> [S * L, ...]; segment k of environment b is row k * B + b."""
            taken = np.minimum(steps[rows // self.n_envs], self.buffer_size - 1)
            return self.to_torch(x[taken, rows[:, None] % self.n_envs].reshape(-1, *x.shape[2:]))

        for rows in batches:
            flat = states[torch.as_tensor(rows, device=states.device)][None]
            obs = self.observations
            yield self._samples(
                {key: cut(x, rows) for key, x in obs.items()} if isinstance(obs, dict) else cut(obs, rows),
                cut(self.actions, rows).float(), cut(self.values, rows), cut(self.log_probs, rows),
                cut(self.advantages, rows), cut(self.returns, rows), RNNStates((flat, flat), (flat, flat)),
                cut(self.episode_starts, rows),
                self.to_torch((steps[rows // self.n_envs] < self.buffer_size).astype(np.float32).flatten()),
            )  # fmt: skip


class SegmentBuffer(_Segments, RecurrentRolloutBuffer):
    """See `_Segments`."""

    _plain, _samples = RolloutBuffer, RecurrentRolloutBufferSamples


class DictSegmentBuffer(_Segments, RecurrentDictRolloutBuffer):
    """See `_Segments`; for dictionaries of observations."""

    _plain, _samples = DictRolloutBuffer, RecurrentDictRolloutBufferSamples


class RecurrentPPO(sb3_contrib.RecurrentPPO):
    """sb3-contrib's RecurrentPPO with the policies of this file and a buffer that does not grow with their state.

    policy: "TTTPolicy", "TTTCnnPolicy", "TTTMultiInputPolicy", or a class derived from them.
    segment: steps of a training sequence; None for n_steps, or where batch_size is less for parts of n_steps as equal
    as can be and no longer than it. batch_size counts steps, in whole segments. Further arguments as sb3-contrib's.
    `save` keeps the live memory of every environment too: what is loaded with force_reset=False, in the environments it
    played in, goes on inside their episodes.
    """

    policy_aliases: ClassVar[dict[str, Any]] = {
        "TTTPolicy": TTTPolicy,
        "TTTCnnPolicy": TTTCnnPolicy,
        "TTTMultiInputPolicy": TTTMultiInputPolicy,
    }

    n_steps: int
    batch_size: int

    def __init__(self, policy: Any, env: Any, *args: Any, segment: int | None = None, **kwargs: Any) -> None:
        self.segment = segment
        super().__init__(policy, env, *args, **kwargs)

    def _setup_model(self) -> None:
        steps = self.n_steps
        self.n_steps = 1  # the buffer that sb3-contrib makes is at once replaced
        super()._setup_model()
        self.n_steps = steps
        if not isinstance(self.policy, TTTPolicy):
            raise TrainingError(
                f"expected one of {', '.join(self.policy_aliases)}, got {type(self.policy).__name__}; "
                "for an LSTM: policy_kwargs={'memory': 'lstm'}"
            )
        if steps * self.n_envs < 2:
            raise TrainingError("a rollout of one step teaches nothing: raise n_steps")
        if self.batch_size < 1:
            raise TrainingError(f"batch_size must be at least 1, got {self.batch_size}")
        segment = self.segment
        if segment is None:
            segment = math.ceil(steps / math.ceil(steps / self.batch_size))
        if not 1 <= segment <= steps:
            raise TrainingError(f"segment must be between 1 and n_steps = {steps}, got {segment}")
        kind = DictSegmentBuffer if isinstance(self.observation_space, spaces.Dict) else SegmentBuffer
        buffer = kind(
            steps, self.observation_space, self.action_space, (1, 1, 1, 1), self.device, gamma=self.gamma,
            gae_lambda=self.gae_lambda, n_envs=self.n_envs,
        )  # fmt: skip
        buffer.segment = segment
        self.rollout_buffer = buffer
        self._set_live_state(self.live_state)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.live_state.shape[1] != self.n_envs:  # loaded for another number of environments, which are reset
            self._set_live_state(self.live_state.new_zeros(1, self.n_envs, self.live_state.shape[2]))
        return super()._setup_learn(*args, **kwargs)

    @property
    def live_state(self) -> Tensor:
        """The packed memory [1, B, n] of every environment as it now is."""
        return cast(RNNStates, self._last_lstm_states).pi[0]

    def _set_live_state(self, flat: Tensor) -> None:
        self._last_lstm_states = RNNStates((flat, flat), (flat, flat))

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return modules, [*tensors, "live_state"]
