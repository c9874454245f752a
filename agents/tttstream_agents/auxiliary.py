"""Auxiliary losses of a policy: rebuild the observation from the features, predict the next one, keep the memory.

Letters: T steps, B environments, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.memory import Delta, Memory, TTTLayer
from tttstream_agents.encoder import Choices, Encoder, Part, Picture

LOSSES = ("rebuild", "predict", "keep")
SIDE = 12  # places along each side of the small picture that is rebuilt


class Auxiliary(nn.Module):
    """The loss of one prediction of the observation from features [T, B, D].

    "rebuild" is of the observation at the same step; "predict" of the next one, from the features and the action
    taken, where it belongs to the same episode. Choices are scored by cross-entropy, numbers by the squared error of
    the encoded ones, pictures by the squared error of their mean over 12 x 12 places; the mean of all parts.

    encoder: of the observations. actions: numbers of an encoded action.
    """

    def __init__(self, name: str, encoder: Encoder, actions: int, dim: int) -> None:
        super().__init__()
        self.ahead = name == "predict"
        sizes = [self._size(cast(Part, part)) for part in encoder.parts]
        self.sizes = sizes
        self.head = nn.Sequential(
            nn.Linear(dim + self.ahead * actions, dim), nn.GELU(), nn.Linear(dim, sum(sizes))
        )  # fmt: skip

    @staticmethod
    def _size(part: Part) -> int:
        return SIDE * SIDE * part.channels if isinstance(part, Picture) else part.size

    def forward(
        self, encoder: Encoder, parts: list[Tensor], features: Tensor, actions: Tensor, starts: Tensor, valid: Tensor
    ) -> Tensor:
        """The mean loss of a sequence, a scalar.

        parts: observations [T, B, ...] as `encoder.tensors` gives them; actions [T, B, A], encoded; starts, valid
        [T, B]. 0 if no step counts.
        """
        if self.ahead:
            features = torch.cat([features, actions], -1)[:-1]
            parts = [part[1:] for part in parts]
            counts = valid[:-1] & ~starts[1:]  # where valid is False, the next row begins an episode
        else:
            counts = valid
        if not bool(counts.any()):
            return features.sum() * 0.0
        guesses, losses = self.head(features[counts]).split(self.sizes, -1), []
        for module, part, guess in zip(encoder.parts, parts, guesses, strict=True):
            losses.append(self._loss(cast(Part, module), part[counts], guess))
        return torch.stack(losses).mean()

    @staticmethod
    def _loss(module: Part, seen: Tensor, guess: Tensor) -> Tensor:
        if isinstance(module, Choices):
            target = module(seen)
            pieces = zip(guess.split(module.sizes, -1), target.split(module.sizes, -1), strict=True)
            return torch.stack([F.cross_entropy(one, other) for one, other in pieces]).mean()
        with torch.no_grad():
            if isinstance(module, Picture):
                target = F.adaptive_avg_pool2d(module.pixels(seen), SIDE).flatten(1)
            else:
                target = module(seen)
        return F.mse_loss(guess, target.to(guess))


@contextmanager
def learning_rates(memories: Sequence[Memory]) -> Iterator[list[Tensor]]:
    """Inside the context every call of the memories adds its learning rates, [B, T, heads] in 0..1, to the list.

    Their mean is the auxiliary loss "keep": a memory that learns only from the tokens that matter keeps what it has
    learned. Raises ConfigError if a memory has no learning rates; TTT layers and delta rules have them.
    """
    rates: list[Tensor] = []
    with ExitStack() as stack:
        for memory in memories:
            if not isinstance(memory, TTTLayer | Delta):
                raise ConfigError(
                    "the auxiliary loss 'keep' needs a memory with learning rates (ttt_linear, ttt_mlp, ttt, delta, "
                    f"gated_delta), {type(memory).__name__} has none"
                )
            hook = memory.rate.register_forward_hook(lambda _module, _args, out: rates.append(out.sigmoid()))
            stack.callback(hook.remove)
        yield rates
