"""Turns outputs of a policy into actions of a gymnasium space, log-probabilities and entropies.

Letters: * any leading sizes, P outputs of the actor.
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream_agents.encoder import Choices, Numbers
from tttstream_agents.errors import ObservationError, SpaceError

LOG_2PI = math.log(2 * math.pi)


def head(dim: int, outputs: int, quiet: bool = False) -> nn.Sequential:
    """The network of an actor or a critic. quiet: outputs near 0 at first, so that actions are equally likely."""
    layers = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, outputs))
    with torch.no_grad():
        for parameter in layers[-1].parameters() if quiet else ():
            parameter.mul_(0.01)
    return layers


def wide(outputs: Tensor) -> Tensor:
    """Outputs in at least float32. Under autocast they have fewer digits than a ratio of probabilities needs."""
    return outputs if outputs.dtype == torch.float64 else outputs.float()


class Categorical(nn.Module):
    """Discrete, MultiDiscrete, MultiBinary: a softmax over the choices of each component. P = all choices together.

    mask: bool [*, P], True for legal choices, component after component (for MultiBinary: 0 and 1 of each). An illegal
    choice has probability 0 and log-probability -inf.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.choices = Choices(space)
        self.outputs = self.choices.size

    def _log_probs(self, outputs: Tensor, mask: Tensor | None) -> list[Tensor]:
        outputs = wide(outputs)
        if mask is not None:
            outputs = torch.where(mask, outputs, -torch.inf)
        return [logits.log_softmax(-1) for logits in outputs.split(self.choices.sizes, dim=-1)]

    def fault(self, action: Tensor) -> str | None:
        """A description of what is wrong with actions, or None."""
        return self.choices.fault(action)

    def legal(self, mask: Tensor) -> Tensor:
        """Whether each component [*, components] has a legal choice."""
        return torch.stack([part.any(-1) for part in mask.split(self.choices.sizes, dim=-1)], -1)

    def sample(self, outputs: Tensor, deterministic: bool = False, mask: Tensor | None = None) -> Tensor:
        """An action [*, shape] for outputs [*, P]: a random one, or the most probable one."""
        picked, first = [], 0
        for logits in self._log_probs(outputs, mask):
            if not deterministic:  # the index of the largest p / e, with e exponential, has the distribution p
                drawn = logits - torch.empty_like(logits).exponential_().log()
                logits = drawn if mask is None else torch.where(logits == -torch.inf, -torch.inf, drawn)
            picked.append(self.choices.value[first + logits.argmax(-1)])
            first += logits.shape[-1]
        return torch.stack(picked, -1).reshape(*outputs.shape[:-1], *self.choices.shape)

    def log_prob(self, outputs: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """[*]"""
        return torch.where(self.choices(action) > 0, torch.cat(self._log_probs(outputs, mask), -1), 0.0).sum(-1)

    def entropy(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[*]"""
        logits = self._log_probs(outputs, mask)
        if mask is not None:  # 0 * -inf is NaN, and so is its gradient
            logits_or_0 = torch.where(mask, torch.cat(logits, -1), 0.0).split(self.choices.sizes, dim=-1)
        else:
            logits_or_0 = tuple(logits)
        pairs = zip(logits, logits_or_0, strict=True)
        return -sum(((one.exp() * other).sum(-1) for one, other in pairs), torch.zeros(()))


class Gaussian(nn.Module):
    """Box: independent normal distributions, in the units of the space. P = the number of components.

    The mean of a bounded component is at first the middle of its range, the deviation a quarter of its range. Actions
    are not clipped at the bounds, since a clipped action has no density; `MemoryPolicy.to_env` clips them for the
    environment.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.numbers = Numbers(space)
        self.outputs = self.numbers.size
        self.log_std = nn.Parameter(torch.full((self.outputs,), math.log(0.5)))

    def fault(self, action: Tensor) -> str | None:
        """A description of what is wrong with actions, or None."""
        return self.numbers.fault(action)

    def sample(self, outputs: Tensor, deterministic: bool = False, mask: Tensor | None = None) -> Tensor:
        """An action [*, shape] for outputs [*, P]: a random one, or the mean."""
        draw = outputs if deterministic else outputs + self.log_std.exp() * torch.randn_like(outputs)
        return (self.numbers.middle + self.numbers.reach * draw).reshape(*outputs.shape[:-1], *self.numbers.shape)

    def log_prob(self, outputs: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """[*]"""
        draw = (self.numbers.flat(action) - self.numbers.middle) / self.numbers.reach
        z = (draw - wide(outputs)) / self.log_std.exp()
        return -(0.5 * z * z + self.log_std + self.numbers.reach.log() + 0.5 * LOG_2PI).sum(-1)

    def entropy(self, outputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """[*]"""
        each = self.log_std + self.numbers.reach.log() + 0.5 + 0.5 * LOG_2PI
        return each.sum().expand(outputs.shape[:-1])


def build(space: spaces.Space[Any]) -> Categorical | Gaussian:
    """The head for an action space. Raises SpaceError for a space that is not supported."""
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return Gaussian(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Categorical(space)
    raise SpaceError(
        f"the action space {space} is not supported: expected Discrete, MultiDiscrete, MultiBinary or a Box of floats"
    )


def action_mask(head: nn.Module, given: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A checked mask of legal actions as a bool tensor [*shape, P]. given: bools, or numbers 0 and 1.

    Raises ObservationError if it does not fit, or if a row allows no action; the error names the row. Raises SpaceError
    for actions in a Box.
    """
    if not isinstance(head, Categorical):
        raise SpaceError("an action mask is for Discrete, MultiDiscrete or MultiBinary actions, this policy has a Box")
    try:
        mask = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ObservationError(f"expected an action mask of bools, got {type(given).__name__}") from error
    if mask.shape != (*shape, head.outputs):
        raise ObservationError(f"expected an action mask of shape {[*shape, head.outputs]}, got {list(mask.shape)}")
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ObservationError("an action mask contains a number other than 0 and 1")
        mask = mask != 0
    legal = head.legal(mask)
    if not bool(legal.all()):
        place = (~legal).nonzero()[0].tolist()
        component = f" for component {place[-1]} of the action" if legal.shape[-1] > 1 else ""
        row = place[0] if len(shape) == 1 else None
        raise ObservationError(f"the action mask allows no action in row {place[:-1]}{component}", row)
    return mask


def masked_part(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> bool:
    """Whether a Dict of observations has a mask of legal actions under "action_mask".

    Raises SpaceError if that part has another shape, since a policy that ignored it would take illegal actions.
    """
    part = space.spaces.get("action_mask") if isinstance(space, spaces.Dict) else None
    if part is None or not isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return False
    size = Choices(action_space).size
    if part.shape != (size,):
        raise SpaceError(
            f"observation.action_mask: expected {size} zeros and ones, all choices of all components, got {part}: "
            "flatten it, or give the part another name"
        )
    return True


def without_mask(space: spaces.Space[Any], action_space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The observation space without the mask of legal actions; a Dict remains a Dict."""
    if not masked_part(space, action_space):
        return space
    assert isinstance(space, spaces.Dict)
    return spaces.Dict({key: part for key, part in space.spaces.items() if key != "action_mask"})
