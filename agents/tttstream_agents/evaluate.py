"""Evaluation: whole episodes, the same number from each environment, so that short ones are not over-represented."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from tttstream_agents.errors import TrainingError
from tttstream_agents.policy import MemoryPolicy
from tttstream_agents.ppo import Player


class Result(NamedTuple):
    """returns, lengths: of each episode."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]


def evaluate(
    policy: MemoryPolicy,
    envs: Any,
    episodes: int,
    deterministic: bool = False,
    progress: bool = False,
    masks: bool = True,
) -> Result:
    """Play `episodes` episodes in a vector of environments: the first ones of each, equally many or one more.
    progress: show a bar on a terminal. masks: obey masks of legal actions, see `Player`. Raises TrainingError for less
    than one episode."""
    if episodes < 1:
        raise TrainingError(f"episodes must be at least 1, got {episodes}")
    player, batch = Player(envs, policy, masks), envs.num_envs
    each = episodes // batch + (torch.arange(batch) < episodes % batch)
    returns, lengths = torch.zeros(batch, dtype=torch.float64), torch.zeros(batch, dtype=torch.long)
    count = torch.zeros(batch, dtype=torch.long)
    done: list[tuple[float, int]] = []
    with tqdm(total=episodes, unit=" episodes", disable=None if progress else True) as bar:
        while bool((count < each).any()):
            step = player.step(deterministic)
            valid, over = step.valid.cpu(), (step.terminated | step.truncated).cpu()
            returns += torch.where(valid, step.reward.cpu().double(), 0.0)
            lengths += valid
            wanted = over & (count < each)
            done += zip(returns[wanted].tolist(), lengths[wanted].tolist(), strict=True)
            count += over
            returns[over], lengths[over] = 0.0, 0
            bar.update(int(wanted.sum()))
    return Result(np.array([one[0] for one in done]), np.array([one[1] for one in done]))
