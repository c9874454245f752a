"""RLlib's new API stack: an RLModule with a memory, for PPO, APPO and IMPALA, on as many machines as Ray has.

    config = PPOConfig().environment("CartPole-v1").rl_module(
        rl_module_spec=RLModuleSpec(TTTRLModule, model_config={"memory": "ttt_linear", "max_seq_len": 64})
    )

Letters: S sequences, T steps, D width, n numbers of a packed state.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream.errors import ConfigError, DependencyError, StateError
from tttstream.state import pack, unpack
from tttstream_agents import heads as action_heads
from tttstream_agents import pose_memory
from tttstream_agents.encoder import Encoder
from tttstream_agents.errors import ObservationError, SpaceError
from tttstream_agents.trunk import PolicyState, Trunk

try:
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
    from ray.rllib.core.learner.utils import make_target_network
    from ray.rllib.core.rl_module.apis import (
        TARGET_NETWORK_ACTION_DIST_INPUTS,
        InferenceOnlyAPI,
        TargetNetworkAPI,
        ValueFunctionAPI,
    )
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.torch import TorchRLModule
except ModuleNotFoundError as error:
    raise DependencyError(
        f"{error.name} is not installed: pip install 'tttstream[rllib]' (Ray pins a gymnasium of its own: use an "
        "environment for it alone)"
    ) from error

__all__ = ["TTTRLModule"]

DEFAULTS: dict[str, Any] = {
    "memory": "ttt_linear", "dim": 64, "depth": 1, "heads": 2, "positions": True, "previous_action": True,
    "options": None, "places": None,
}  # fmt: skip
UNUSED: dict[str, Any] = {
    field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for field in dataclasses.fields(DefaultModelConfig)
    if field.name not in ("max_seq_len", "vf_share_layers")  # RLlib adds the second one itself
}
"""RLlib's own options of a model, which this module does not use, with their default values."""


class Policy(nn.Module):
    """The acting part: from observations and a state to features and the inputs of an action distribution."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], chosen: Any) -> None:
        super().__init__()
        self.action = action_heads.build(action_space)
        seen = action_heads.without_mask(observation_space, action_space)
        self.encoder = Encoder(seen)
        self.masked = action_heads.masked_part(observation_space, action_space)
        previous, memory = chosen["previous_action"], chosen["memory"]
        sizes = {name: value for name, value in chosen.items() if name not in ("previous_action", "memory", "places")}
        places = pose_memory.build(self.encoder.size, self.encoder.indices(), chosen["places"], seen)
        self.trunk = Trunk(self.encoder.size, action_space if previous else None, memory, places=places, **sizes)
        if not all(one.bounded for one in self.trunk.memories):
            raise ConfigError(f"the state of {memory!r} grows, and a state of RLlib cannot: use 'window'")
        self.actor = action_heads.head(chosen["dim"], self.action.outputs, quiet=True)
        self._fresh = self.trunk.initial_state(1)

    def remember(self, batch: dict[str, Any], acting: bool = False) -> tuple[Tensor, PolicyState]:
        """Features [S, T, D] and the next state. No episode starts inside a sequence."""
        parts = self.encoder.tensors(batch[Columns.OBS], leading=2, check=acting)
        x = self.encoder(parts).transpose(0, 1)
        state = unpack(self._state_in(batch, len(x[0])), self._fresh)
        starts = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        actions = None if acting else batch[Columns.ACTIONS].transpose(0, 1)
        features, state = self.trunk.remember(x, state, starts, actions=actions)
        return features.transpose(0, 1), state

    def _state_in(self, batch: dict[str, Any], rows: int) -> Tensor:
        """The packed states [S, n] of a batch. Raises StateError if they are missing or do not fit."""
        given = batch.get(Columns.STATE_IN)
        flat = given.get("memory") if isinstance(given, dict) else None
        shape = [rows, pack(self._fresh).shape[1]]
        if flat is None:
            raise StateError(
                f"there is no {Columns.STATE_IN!r} with 'memory' in the batch: give {{'memory': a tensor {shape}}}, at "
                "first module.get_initial_state() for each row, then the last 'state_out'"
            )
        if list(flat.shape) != shape:
            raise StateError(f"{Columns.STATE_IN!r}: expected 'memory' of shape {shape}, got {list(flat.shape)}")
        return torch.as_tensor(flat)

    def inputs(self, features: Tensor, batch: dict[str, Any], acting: bool = False) -> Tensor:
        """The inputs of RLlib's action distribution. Illegal actions have probability 0: their logits are the smallest
        finite number, not -inf, since RLlib multiplies probabilities by logits."""
        outputs: Tensor = self.actor(features)
        if self.masked:
            given, shape = torch.as_tensor(batch[Columns.OBS]["action_mask"]), tuple(features.shape[:2])
            if not acting:  # RLlib pads sequences with zeros; those steps do not count
                given = torch.where((given != 0).any(-1, keepdim=True), given != 0, True)
            mask = action_heads.action_mask(self.action, given, shape, features.device)
            outputs = torch.where(mask, outputs, torch.finfo(outputs.dtype).min)
        if isinstance(self.action, action_heads.Gaussian):
            outputs = torch.cat([outputs, self.action.log_std.expand_as(outputs)], -1)
        return outputs


class TTTRLModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, ValueFunctionAPI):
    """A policy with a memory for RLlib. STATE_IN and STATE_OUT contain {"memory": [S, n]}, zeros for a fresh state.

    model_config: memory, dim, depth, heads, positions, previous_action, options, places as `MemoryPolicy`, and RLlib's
    own max_seq_len, the steps of a training sequence. Observations: those of `MemoryPolicy`, not preprocessed. Actions:
    Discrete and MultiDiscrete from 0, and Box, which RLlib scales to its bounds.

    If a Dict of observations has a mask of legal actions under "action_mask", the policy obeys it, and the network does
    not see it.

    The module samples the actions itself, since the previous action is an input of the memory.
    """

    def setup(self) -> None:
        """Build the networks; RLlib calls it."""
        given = dict(self.model_config or {})
        rllibs = {field.name for field in dataclasses.fields(DefaultModelConfig)}  # it adds some, even unasked
        unknown = sorted(set(given) - set(DEFAULTS) - rllibs)
        if unknown:
            known = ", ".join([*DEFAULTS, "max_seq_len"])
            raise ConfigError(f"model_config: unknown {', '.join(unknown)}; known are {known}")
        foreign = sorted(name for name, value in given.items() if name in rllibs and value != UNUSED.get(name, value))
        if foreign:
            raise ConfigError(
                f"model_config: {', '.join(foreign)} has no effect here: use memory (an LSTM: memory='lstm'), dim, "
                "depth and heads"
            )
        chosen = {**DEFAULTS, **{name: value for name, value in given.items() if name in DEFAULTS}}
        space = self.action_space
        if isinstance(space, spaces.Box):
            space = spaces.Box(-1.0, 1.0, space.shape, np.float32)
        elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete) or np.any(space.start):
            raise SpaceError(
                f"the action space {space} is not supported: expected Box, or Discrete or MultiDiscrete from 0"
            )
        if isinstance(space, spaces.MultiDiscrete):
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(input_lens=space.nvec.tolist())
        self.policy = Policy(self.observation_space, space, chosen)
        self.critic = action_heads.head(chosen["dim"], 1)

    def get_non_inference_attributes(self) -> list[str]:
        """The attributes that env runners do not need."""
        return ["critic", "_old_policy"]

    def get_initial_state(self) -> dict[str, Any]:
        """A fresh memory of one environment."""
        return {"memory": pack(self.policy.trunk.initial_state(1))[0].numpy()}

    def make_target_networks(self) -> None:
        """Copy the acting part, for APPO."""
        self._old_policy = make_target_network(self.policy)

    def get_target_network_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """The pairs (trained part, copy)."""
        return [(self.policy, self._old_policy)]

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The inputs of the action distribution of the copy."""
        return {TARGET_NETWORK_ACTION_DIST_INPUTS: self._old_policy.inputs(self._old_policy.remember(batch)[0], batch)}

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return self._act(batch, explore=True)

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        return self._act(batch, explore=False)

    @torch.no_grad()
    def _act(self, batch: dict[str, Any], explore: bool) -> dict[str, Any]:
        features, state = self.policy.remember(batch, acting=True)
        inputs = self.policy.inputs(features, batch, acting=True)
        distribution = self.get_exploration_action_dist_cls().from_logits(inputs)
        actions = (distribution if explore else distribution.to_deterministic()).sample()
        state = self.policy.trunk.acted(state, actions[:, -1])
        return {
            Columns.ACTIONS: actions, Columns.ACTION_LOGP: distribution.logp(actions),
            Columns.ACTION_DIST_INPUTS: inputs, Columns.STATE_OUT: {"memory": pack(state)},
        }  # fmt: skip

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        for name in (Columns.REWARDS, Columns.ADVANTAGES, Columns.VALUE_TARGETS):
            if name in batch and not bool(torch.as_tensor(batch[name]).isfinite().all()):
                row = int((~torch.as_tensor(batch[name]).isfinite()).nonzero()[0, 0])
                raise ObservationError(f"{name!r} of sequence {row} contain NaN or infinity: check the rewards")
        features, _state = self.policy.remember(batch)
        return {Columns.ACTION_DIST_INPUTS: self.policy.inputs(features, batch), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values [S, T] of a training batch. embeddings: its features, if they are known."""
        features = self.policy.remember(batch)[0] if embeddings is None else embeddings
        return self.critic(features).squeeze(-1)
