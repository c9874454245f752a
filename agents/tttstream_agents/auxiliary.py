"""Auxiliary losses of a policy: rebuild the observation from the features, predict the next one, keep the memory.

Letters: T steps, B environments, D width.
"""

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
SIDE = 12  # cells along each side of a picture


class Auxiliary(nn.Module):
    """Predicts observations from the features [T, B, D] of a policy, and returns the loss.

    "rebuild" predicts the observation of the same step. "predict" predicts the next one of the same episode, from the
    features and the action. The loss is the mean over the parts of an observation: cross-entropy for choices, the
    squared error of the encoded values for numbers, and for pictures that of their means in 12 x 12 cells.

    encoder: of the observations. actions: the size of an encoded action.
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
        """The mean loss over the valid steps of a sequence, a scalar; 0 if there are none.

        parts: observations [T, B, ...] from `encoder.tensors`. actions: encoded, [T, B, A]. starts, valid: [T, B].
        """
        if self.ahead:
            features = torch.cat([features, actions], -1)[:-1]
            parts = [part[1:] for part in parts]
            counts = valid[:-1] & ~starts[1:]  # after a step that is not valid a new episode starts
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
