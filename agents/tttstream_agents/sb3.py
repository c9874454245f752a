"""Stable-Baselines3: policies with a memory, and a RecurrentPPO that stores only the states at starts of segments.

    from tttstream_agents.sb3 import RecurrentPPO

    model = RecurrentPPO("TTTPolicy", env).learn(100_000)

Letters: T steps of a rollout, B environments, L steps of a segment, S segments, n numbers of a packed state.
"""

import inspect
import math
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from tttstream.errors import ConfigError, DependencyError, StateError
from tttstream.state import pack, unpack
from tttstream_agents import pose_memory
from tttstream_agents.envs import tree
from tttstream_agents.errors import ObservationError, SpaceError, TrainingError
from tttstream_agents.heads import Categorical, action_mask, masked_part, without_mask
from tttstream_agents.trunk import PolicyState, Trunk, check_sizes
from tttstream_agents.vectors import keep_last

try:
    import sb3_contrib
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
    from stable_baselines3.common.preprocessing import get_flattened_obs_dim
    from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
except ModuleNotFoundError as error:
    raise DependencyError(f"{error.name} is not installed: pip install 'tttstream[sb3]'") from error

from tttstream_agents.sb3_segments import DictSegmentBuffer, SegmentBuffer

__all__ = ["RecurrentPPO", "TTTCnnPolicy", "TTTMultiInputPolicy", "TTTPolicy"]

Pair = tuple[Tensor, Tensor]
OF_LSTM = ("lstm_hidden_size", "n_lstm_layers", "shared_lstm", "enable_critic_lstm", "lstm_kwargs")


LOST = "the policy is no longer finite: lower learning_rate, or check the scale of rewards and observations"


def finite(obs: Any) -> bool:
    """Whether observations, arrays or tensors, maybe nested, contain neither NaN nor infinity."""
    found: list[bool] = []
    tree(lambda x: found.append(bool(torch.as_tensor(x).isfinite().all())), obs)
    return all(found)


class Flat(FlattenExtractor):
    """Stable-Baselines3's FlattenExtractor, with a Python integer as its size (it is NumPy's for MultiDiscrete)."""

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise SpaceError("TTTPolicy flattens observations: use TTTMultiInputPolicy for a Dict")
        super().__init__(observation_space)
        self._features_dim: int = int(self.features_dim)


def indices(extractor: Any) -> dict[str, list[int]]:
    """Map the name of each part of a Dict, except pictures, to its indices in the features of a CombinedExtractor. The
    result is empty for other extractors."""
    found, first = {}, 0
    for name, part in getattr(extractor, "extractors", {}).items():
        size = getattr(part, "features_dim", 0) or get_flattened_obs_dim(extractor._observation_space[name])
        if isinstance(part, torch.nn.Flatten):
            found[name] = list(range(first, first + size))
        first += size
    return found


class TTTPolicy(RecurrentActorCriticPolicy):
    """Stable-Baselines3's features extractor, a trunk with a memory, and its actor and critic, which share both.

    memory, dim, depth, heads, positions, previous_action, options: as `tttstream_agents.MemoryPolicy`. places: the
    same, for TTTMultiInputPolicy. The other arguments are those of sb3-contrib's policy, without those of its LSTM.

    If a Dict of observations has a mask of legal actions (Discrete, MultiDiscrete) under "action_mask", the policy
    obeys it, and the features extractor does not see it. `tttstream_agents.ActionMaskObservation` copies it from info.

    A state is a pair, as in sb3-contrib: twice the packed state [1, B, n] of all environments.
    """

    FEATURES: ClassVar[Any] = Flat

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
        places: dict[str, Any] | None = None,
        features_extractor_class: Any = None,
        **kwargs: Any,
    ) -> None:
        foreign = [name for name in OF_LSTM if name in kwargs]
        if foreign:
            raise ConfigError(f"policy_kwargs: {', '.join(foreign)} describe an LSTM: say memory, dim, depth and heads")
        known = [*inspect.signature(RecurrentActorCriticPolicy).parameters][3:]
        unknown = sorted(set(kwargs) - set(known))
        if unknown:
            own = [
                name for name, one in inspect.signature(TTTPolicy).parameters.items() if one.kind == one.KEYWORD_ONLY
            ]
            both = [*own, *(name for name in known if name not in (*own, *OF_LSTM))]
            raise ConfigError(f"policy_kwargs: unknown {', '.join(unknown)}; known are {', '.join(both)}")
        if not kwargs.get("share_features_extractor", True):
            raise ConfigError("actor and critic share one memory, so they need one features extractor, not two")
        check_sizes(dim=dim, depth=depth, heads=heads)
        if np.any(getattr(action_space, "start", 0)):
            raise SpaceError(
                f"Stable-Baselines3 counts actions from 0, this space is {action_space}: put "
                "gymnasium.wrappers.TransformAction around the environment"
            )
        masked = masked_part(observation_space, action_space)
        if masked and isinstance(action_space, spaces.MultiBinary):
            raise SpaceError("an action mask in Stable-Baselines3 is for Discrete and MultiDiscrete actions")
        super().__init__(
            observation_space, action_space, lr_schedule, lstm_hidden_size=dim, shared_lstm=True,
            enable_critic_lstm=False, features_extractor_class=features_extractor_class or self.FEATURES, **kwargs,
        )  # fmt: skip
        self._head = Categorical(action_space) if masked else None
        self.memory_kwargs: dict[str, Any] = {
            "memory": memory, "dim": dim, "depth": depth, "heads": heads, "positions": positions,
            "previous_action": previous_action, "options": options, "places": places,
        }  # fmt: skip
        trunk = Trunk(
            self.features_dim, action_space if previous_action else None, memory, dim=dim, depth=depth, heads=heads,
            positions=positions, options=options,
            places=pose_memory.build(self.features_dim, indices(self.features_extractor), places, observation_space),
        )  # fmt: skip
        if not all(one.bounded for one in trunk.memories):
            raise ConfigError(f"the state of {memory!r} grows, and sb3-contrib's states cannot: use 'window'")
        self._fresh = trunk.initial_state(1)
        size = pack(self._fresh).shape[1]
        # RecurrentPPO reads these two of lstm_actor, predict() reads the third.
        trunk.num_layers, trunk.hidden_size = 1, size  # type: ignore[assignment]
        self.lstm_hidden_state_shape = (1, 1, size)
        self.lstm_actor = cast(Any, trunk)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def trunk(self) -> Trunk:
        """The trunk, which sb3-contrib calls lstm_actor."""
        return cast(Trunk, self.lstm_actor)

    def make_features_extractor(self) -> Any:
        """As Stable-Baselines3, for observations without the mask of legal actions."""
        space = without_mask(self.observation_space, self.action_space)
        return self.features_extractor_class(space, **self.features_extractor_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.memory_kwargs}

    def _remember(
        self, obs: Any, states: tuple[Tensor, ...], episode_starts: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, PolicyState]:
        """Latents [S * L, dim] and the next state, for S concatenated sequences of L steps."""
        features = cast(Tensor, self.extract_features(obs, self.features_extractor))
        count, size, flat = len(features), self.lstm_hidden_state_shape[2], states[0]
        rows = flat.shape[1] if flat.dim() == 3 else 0
        if flat.shape != (1, rows, size) or not rows or count % rows or (actions is None and rows != count):
            raise StateError(f"expected a state of shape {[1, count, size]}, got {list(flat.shape)}")
        if episode_starts.numel() != count:
            raise ObservationError(f"expected episode_start of shape {[count]}, got {list(episode_starts.shape)}")
        bad = ~features.isfinite().all(-1)
        if bad.any():
            row = int(bad.nonzero()[0])
            what = "the features of an observation contain" if finite(obs) else "an observation contains"
            raise ObservationError(f"{what} NaN or infinity", row if rows == count > 1 else None)

        def sequence(x: Tensor) -> Tensor:
            return x.view(rows, -1, *x.shape[1:]).transpose(0, 1)

        done = None
        if actions is not None:
            done = sequence(actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape)))
        state = unpack(states[0][0], self._fresh)
        starts = sequence(episode_starts.reshape(-1)) > 0
        latent, state = self.trunk.remember(sequence(features), state, starts, actions=done)
        if not latent.isfinite().all():
            raise TrainingError(LOST)
        return latent.transpose(0, 1).flatten(0, 1), state

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions for observations of one or several environments, and the state for the next call, as in sb3-contrib.

        state: the result of the last call, a pair of arrays [1, B, n]; None for a fresh one. episode_start [B]: true
        at the first step of an episode. Raises StateError or ObservationError if the shapes do not fit.
        """
        if state is not None and (not isinstance(state, tuple | list) or len(state) != 2):
            raise StateError(f"expected the state that predict returned, a pair of arrays, got {type(state).__name__}")
        return super().predict(observation, state, episode_start, deterministic)

    def forward(
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Act in every environment. Returns actions, values, log-probabilities and states."""
        latent, state = self._remember(obs, lstm_states.pi, episode_starts)
        distribution = self._distribution(latent, obs)
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape))
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        pair = self._pair(state, actions)
        return actions, values, log_prob, RNNStates(pair, pair)

    def evaluate_actions(
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, log-probabilities and entropies of S sequences, computed in parallel, with resets inside."""
        latent, _ = self._remember(obs, lstm_states.pi, episode_starts, actions)
        distribution = self._distribution(latent, obs)
        values = self.value_net(self.mlp_extractor.forward_critic(latent))
        return values, distribution.log_prob(actions), cast(Tensor, distribution.entropy())

    def get_distribution(self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor) -> tuple[Any, Pair]:
        """The action distribution, and the next state, which does not contain the action yet."""
        latent, state = self._remember(obs, lstm_states, episode_starts)
        flat = pack(state)[None]
        return self._distribution(latent, obs), (flat, flat)

    def predict_values(self, obs: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor) -> Tensor:
        """The values of one step."""
        latent, _ = self._remember(obs, lstm_states, episode_starts)
        return self.value_net(self.mlp_extractor.forward_critic(latent))

    def _predict(
        self, observation: Any, lstm_states: tuple[Tensor, ...], episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Pair]:
        latent, state = self._remember(observation, lstm_states, episode_starts)
        actions = self._distribution(latent, observation).get_actions(deterministic=deterministic)
        return actions, self._pair(state, actions.reshape(-1, *cast("tuple[int, ...]", self.action_space.shape)))

    def _distribution(self, latent: Tensor, obs: Any) -> Any:
        """The action distribution for latents [*, dim]; illegal actions have probability 0."""
        latent = self.mlp_extractor.forward_actor(latent)
        if self._head is None:
            return self._get_action_dist_from_latent(latent)
        mask = action_mask(self._head, obs["action_mask"], (len(latent),), latent.device)
        logits = torch.where(mask, self.action_net(latent), -torch.inf)
        return self.action_dist.proba_distribution(action_logits=logits)

    def _pair(self, state: PolicyState, actions: Tensor) -> Pair:
        flat = pack(self.trunk.acted(state, actions))[None]
        return flat, flat


class TTTCnnPolicy(TTTPolicy):
    """TTTPolicy with NatureCNN, for pictures."""

    FEATURES = NatureCNN


class TTTMultiInputPolicy(TTTPolicy):
    """TTTPolicy with CombinedExtractor, for Dict observations."""

    FEATURES = CombinedExtractor


class RecurrentPPO(sb3_contrib.RecurrentPPO):
    """sb3-contrib's RecurrentPPO with the policies of this file and a buffer that stores few states.

    policy: "TTTPolicy", "TTTCnnPolicy", "TTTMultiInputPolicy", or a class derived from them. segment: steps of a
    training sequence; None for n_steps, or if batch_size is smaller, for nearly equal parts of n_steps of at most
    batch_size steps. batch_size counts steps, in whole segments. The other arguments are those of sb3-contrib.

    `save` also stores the hidden state of every environment: a model that is loaded with force_reset=False and the same
    environments continues inside their episodes.

    Raises TrainingError for settings that do not fit together, ObservationError for values that are not finite.
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
        kind = self.policy_aliases.get(policy) if isinstance(policy, str) else policy
        if not (isinstance(kind, type) and issubclass(kind, TTTPolicy)):
            raise TrainingError(
                f"expected one of {', '.join(self.policy_aliases)}, got {getattr(policy, '__name__', policy)}; "
                "for an LSTM: policy_kwargs={'memory': 'lstm'}"
            )
        super().__init__(policy, env, *args, **kwargs)

    @staticmethod
    def _wrap_env(*args: Any, **kwargs: Any) -> Any:
        env = sb3_contrib.RecurrentPPO._wrap_env(*args, **kwargs)
        keep_last(env)
        return env

    def _setup_model(self) -> None:
        if self._last_obs is not None and (count := len(np.atleast_1d(self._last_episode_starts))) != self.n_envs:
            raise TrainingError(
                f"this model was saved with {count} environments and now has {self.n_envs}: use as many, or load it "
                "with force_reset=True, which resets all"
            )
        steps = self.n_steps
        self.n_steps = 1  # a small buffer, which is replaced below
        super()._setup_model()
        self.n_steps = steps
        if steps * self.n_envs < 2:
            raise TrainingError("a rollout of one step is too short to train on: raise n_steps")
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
        if self.live_state.shape[1] != self.n_envs:  # loaded with another number of environments, which are reset
            self._set_live_state(self.live_state.new_zeros(1, self.n_envs, self.live_state.shape[2]))
        return super()._setup_learn(*args, **kwargs)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        """As sb3-contrib. An ObservationError for a value that is not finite names the environment and the step."""
        try:
            return super().collect_rollouts(*args, **kwargs)
        except ObservationError as error:
            who = "an environment" if error.row is None and self.n_envs > 1 else f"environment {error.row or 0}"
            raise ObservationError(f"{who}, after {self.num_timesteps // self.n_envs} steps in it: {error}") from error

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        for row, info in enumerate(infos):
            if info.get("TimeLimit.truncated") and not finite(info.get("terminal_observation", ())):
                raise ObservationError("the last observation of an episode contains NaN or infinity", row)

    def train(self) -> None:
        """As sb3-contrib. Raises TrainingError if weights are no longer finite."""
        super().train()
        if not all(bool(parameter.isfinite().all()) for parameter in self.policy.parameters()):
            raise TrainingError(LOST)

    @property
    def live_state(self) -> Tensor:
        """The current packed hidden state [1, B, n] of every environment."""
        return cast(RNNStates, self._last_lstm_states).pi[0]

    def _set_live_state(self, flat: Tensor) -> None:
        self._last_lstm_states = RNNStates((flat, flat), (flat, flat))

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        modules, tensors = super()._get_torch_save_params()
        return modules, [*tensors, "live_state"]
