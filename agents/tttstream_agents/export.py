"""Exports one step of a policy for deployment: policy.pt2 (torch.export) and policy.onnx, with the state in and out.

Letters: B environments, n numbers of the packed state, P outputs of the actor.

    state [B, n], starts [B], previous_action [B, ...], observation → action [B, ...], logits [B, P], value [B], state
"""

import os
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from tttstream.errors import ConfigError
from tttstream.io import exported
from tttstream.memory import TTTLayer
from tttstream.state import pack, unpack
from tttstream_agents.encoder import leaves
from tttstream_agents.heads import Categorical
from tttstream_agents.trunk import PolicyState

MemoryPolicy: TypeAlias = Any  # that of tttstream_agents.policy, whose method `export` calls this module

EXAMPLES = 2  # environments in the example that is traced


class PolicyStep(exported.Step):
    """The exported module: one deterministic step of a policy, which does not check values.

    Its inputs are those of `example`, in this order; it returns (action, logits, value, state). state is the packed
    state without the previous action. That is an input of its own: the action that was executed. starts: true at the
    first step of an episode; state and previous_action are ignored there, but must not be NaN.
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("action", "logits", "value", "next_state")

    def __init__(self, policy: MemoryPolicy, action_mask: bool) -> None:
        super().__init__()
        self.policy, self.masked = policy, action_mask

    def fresh(self) -> PolicyState:
        """A fresh state of one environment, without the previous action. It is not an attribute, because torch.export
        compares the elements of tuples before and after, and an index into a state selects rows."""
        state = self.policy.initial_state(1)
        return state._replace(previous=state.previous[:, :0])

    def example(self, batch: int = EXAMPLES) -> dict[str, Tensor]:
        """Inputs by name, for `batch` environments at the start of an episode."""
        policy, rows = self.policy, (batch,)
        device = next(policy.parameters()).device
        inputs: dict[str, Any] = {
            "state": pack(self.fresh()).expand(batch, -1).clone(),
            "starts": torch.ones(rows, dtype=torch.bool),
        }
        if policy.played.width:
            inputs["previous_action"] = _sample(policy.action_space, batch)
        if policy.previous_reward:
            inputs["previous_reward"] = torch.zeros(rows)
        for path, space in leaves(policy.encoder.space):
            inputs[".".join(["observation", *map(str, path)])] = _sample(space, batch)
        if self.masked:
            inputs["action_mask"] = torch.ones(batch, policy.action.outputs, dtype=torch.bool)
        return {name: value.to(device) for name, value in inputs.items()}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy, rest = self.policy, list(inputs)
        flat, starts = rest.pop(0), rest.pop(0)
        # a reset is a fresh state, which is all zeros; the memory then needs no reset of its own
        state = unpack(torch.where(starts[:, None], 0.0, flat), self.fresh())
        if policy.played.width:
            played = policy.played(rest.pop(0)).to(state.previous)
            state = state._replace(previous=torch.where(starts[:, None], 0.0, played))
        rewards = None
        if policy.previous_reward:
            rewards = torch.where(starts, 0.0, rest.pop(0))[None]
        mask = rest.pop() if self.masked else None
        x, state = policy.remember(policy.encoder(rest)[None], state, None, rewards)
        logits, value = policy.actor(x[0]), policy.critic(x[0]).squeeze(-1)
        action = policy.action.sample(logits, True, mask)
        if mask is not None:
            logits = torch.where(mask, logits, -torch.inf)
        action = policy.executed(action)
        return action, logits, value, pack(state._replace(previous=state.previous[:, :0]))


def _sample(space: spaces.Space[Any], batch: int) -> Tensor:
    """An element of a space, `batch` times."""
    if isinstance(space, spaces.Box):
        one: Any = np.clip(np.zeros(space.shape), space.low, space.high).astype(space.dtype)
    elif isinstance(space, spaces.Discrete):
        one = np.asarray(space.start)
    elif isinstance(space, spaces.MultiDiscrete):
        one = space.start
    else:
        one = np.zeros(cast(Any, space.shape), space.dtype)
    return torch.as_tensor(np.stack([one] * batch))


def export(policy: MemoryPolicy, folder: str | os.PathLike[str], *, action_mask: bool = False) -> Path:
    """Write policy.pt2, policy.onnx and policy.json (the names, types and shapes of inputs and outputs) into a folder.

    action_mask: add a mask of legal actions [B, P] as the last input; it is always there if observations contain one.
    The number of environments is free. Raises ConfigError for a memory whose state grows, and for ttt_conv, whose inner
    gradient has no ONNX operator; DependencyError without onnx.
    """
    if not all(one.bounded for one in policy.memories):
        raise ConfigError("the state of this policy's memory grows, an exported state cannot: train with 'window'")
    masked = policy.masked or action_mask
    if masked and not isinstance(policy.action, Categorical):
        raise ConfigError("an action mask is for Discrete, MultiDiscrete or MultiBinary actions, this policy has a Box")
    if any(isinstance(one, TTTLayer) and one.inner.name == "conv" for one in policy.memories):
        raise ConfigError("memory 'ttt_conv' cannot be exported, ONNX has no gradient of a convolution: use 'ttt_mlp'")
    training = policy.training
    try:
        return exported.write(PolicyStep(policy, masked), folder, "policy", _described(policy))
    finally:
        policy.train(training)


def _described(policy: MemoryPolicy) -> dict[str, Any]:
    return {
        "observation_space": str(policy.observation_space), "action_space": str(policy.action_space),
        "log_std": None if isinstance(policy.action, Categorical) else policy.action.log_std.tolist(),
    }  # fmt: skip
