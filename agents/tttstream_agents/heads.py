"""From a policy's outputs to actions of a gymnasium space and their log-probabilities.

Letters: * any leading sizes, P numbers that the actor puts out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream_agents.encoder import Choices, Numbers
from tttstream_agents.errors import SpaceError

LOG_2PI = math.log(2 * math.pi)


class Categorical(nn.Module):
    """Discrete, MultiDiscrete, MultiBinary: a softmax over the choices of each component. P = all choices together."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.choices = Choices(space)
        self.outputs = self.choices.size

    def _log_probs(self, outputs: Tensor) -> list[Tensor]:
        return [logits.log_softmax(-1) for logits in outputs.split(self.choices.sizes, dim=-1)]

    def fault(self, action: Tensor) -> str | None:
        """What is wrong with actions, if anything."""
        return self.choices.fault(action)

    def sample(self, outputs: Tensor, deterministic: bool = False) -> Tensor:
        """An action [*, shape] for outputs [*, P]: drawn, or the likeliest."""
        picked, first = [], 0
        for logits in self._log_probs(outputs):
            if not deterministic:  # the largest of p / e, e exponential, is a draw from p
                logits = logits - torch.empty_like(logits).exponential_().log()
            picked.append(self.choices.value[first + logits.argmax(-1)])
            first += logits.shape[-1]
        return torch.stack(picked, -1).reshape(*outputs.shape[:-1], *self.choices.shape)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """[*]"""
        return torch.where(self.choices(action) > 0, torch.cat(self._log_probs(outputs), -1), 0.0).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """[*]"""
        return -sum(((logits.exp() * logits).sum(-1) for logits in self._log_probs(outputs)), torch.zeros(()))


class Gaussian(nn.Module):
    """Box: independent normals around the outputs, in the units of the space; P = its numbers.

    A bounded component starts with a mean at its middle and a deviation of half its half range. Draws are not cut at
    the bounds, since a cut action has no density: `MemoryPolicy.to_env` cuts what the environment gets.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.numbers = Numbers(space)
        self.outputs = self.numbers.size
        self.log_std = nn.Parameter(torch.full((self.outputs,), math.log(0.5)))

    def _flat(self, action: Tensor) -> Tensor:
        return action.reshape(*action.shape[: action.dim() - len(self.numbers.shape)], self.outputs)

    def fault(self, action: Tensor) -> str | None:
        """What is wrong with actions, if anything."""
        return self.numbers.fault(action)

    def sample(self, outputs: Tensor, deterministic: bool = False) -> Tensor:
        """An action [*, shape] for outputs [*, P]: drawn, or the mean."""
        draw = outputs if deterministic else outputs + self.log_std.exp() * torch.randn_like(outputs)
        return (self.numbers.middle + self.numbers.reach * draw).reshape(*outputs.shape[:-1], *self.numbers.shape)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """[*]"""
        draw = (self._flat(action) - self.numbers.middle) / self.numbers.reach
        z = (draw - outputs) / self.log_std.exp()
        return -(0.5 * z * z + self.log_std + self.numbers.reach.log() + 0.5 * LOG_2PI).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """[*]"""
        each = self.log_std + self.numbers.reach.log() + 0.5 + 0.5 * LOG_2PI
        return each.sum().expand(outputs.shape[:-1])


def build(space: spaces.Space[Any]) -> Categorical | Gaussian:
    """The head for an action space."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Gaussian(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Categorical(space)
    raise SpaceError(f"cannot act in {space}: expected Discrete, MultiDiscrete, MultiBinary or a Box of floats")
