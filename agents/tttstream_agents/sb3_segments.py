"""The rollout buffers of `tttstream_agents.sb3`, which store states only at the starts of segments.

Letters: T steps of a rollout, B environments, L steps of a segment, S segments, n numbers of a packed state.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from sb3_contrib.common.recurrent.type_aliases import (
    RecurrentDictRolloutBufferSamples,
    RecurrentRolloutBufferSamples,
    RNNStates,
)
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from tttstream_agents.errors import ObservationError, TrainingError


class _Segments:
    """A rollout buffer that stores states [B, n] only at the starts of segments of L steps."""

    segment: int
    _plain: ClassVar[type[RolloutBuffer]]
    _samples: ClassVar[Any]

    def reset(self: Any) -> None:
        """Remove everything."""
        self._plain.reset(self)
        self.states: list[Tensor] = []

    def add(self: Any, obs: Any, action: Any, reward: Any, *args: Any, lstm_states: RNNStates, **kwargs: Any) -> None:
        """Add a step. lstm_states: before the step. Raises ObservationError for a reward that is not finite."""
        with np.errstate(over="ignore"):
            bad = np.flatnonzero(~np.isfinite(np.asarray(reward).astype(np.float32)))
        if len(bad):
            row = int(bad[0])
            raise ObservationError(f"gave a reward that is not finite in float32, {reward[row]}", row)
        if self.pos % self.segment == 0:
            self.states.append(lstm_states.pi[0][0])
        self._plain.add(self, obs, action, reward, *args, **kwargs)

    def get(self: Any, batch_size: int | None = None) -> Iterator[Any]:
        """Yield batches of whole segments in random order, of about `batch_size` steps and at least two.

        Tensors [S * L, ...], segment after segment, and the states [1, S, n] at their starts. If L does not divide T,
        the last segments are padded with their last step, and the mask is 0 there.
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
