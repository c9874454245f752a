"""The data of the supervised probe: sequences of random play, with the right action of each step as label.

Letters: T steps of a sequence, S sequences, E environments, C actions.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tttstream_agents.envs import close, tree, vector
from tttstream_agents.errors import EnvError

MOST_ACTIONS = 32
TRIES = 100_000
"""The number of actions tried in copies of an environment, for one data set. A copy takes about 0.1 ms."""


class Data(NamedTuple):
    """obs: observations [T, S, ...]. starts: bool [T, S]. answers: bool [T, S, C], true for the right actions; a step
    without a label has none."""

    obs: Any
    starts: Tensor
    answers: Tensor


def actions(space: spaces.Space[Any]) -> list[Any]:
    """The actions of a Discrete or a MultiDiscrete space, at most MOST_ACTIONS. Raises EnvError."""
    if isinstance(space, spaces.Discrete):
        found = list(range(int(space.start), int(space.start + space.n)))
    elif isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        if np.prod(space.nvec.astype(float)) > MOST_ACTIONS:
            raise _too_many(int(np.prod(space.nvec.astype(float))))
        found = [space.start + np.array(index) for index in np.ndindex(*space.nvec)]
    else:
        raise EnvError(f"the right action can be found for Discrete and small MultiDiscrete spaces, not for {space}")
    return found


def _too_many(count: int) -> EnvError:
    return EnvError(f"there are {count} actions, too many to try each: choose another target, first, back:K or count")


def collect(
    make_env: Callable[[], gym.Env[Any, Any]], steps: int, sequences: int, seed: int, answers: bool, n_envs: int = 16,
    quiet: bool = True,
) -> Data:  # fmt: skip
    """Play sequences at random, each from a reset.

    answers: find the right actions. If every action has to be tried for this, at most TRIES are tried in total, so in
    environments with many actions only a random share of the steps has a label.
    """
    envs = vector(make_env, min(n_envs, sequences), seed, "same_step")
    envs.action_space.seed(seed)
    draws, rows = np.random.default_rng(seed), list[Data]()
    finder = Finder(envs, steps * sequences, seed) if answers else None
    rounds = -(-sequences // envs.num_envs)
    with tqdm(total=rounds * steps, desc="playing", unit=" steps", leave=False, disable=True if quiet else None) as bar:
        for _ in range(rounds):
            seen, begun, right = [], [], []
            obs, info = envs.reset()
            starts = np.ones(envs.num_envs, bool)
            for _ in range(steps):
                seen.append(tree(np.array, obs))
                begun.append(starts)
                right.append(np.zeros((envs.num_envs, 0), bool) if finder is None else finder(info))
                obs, _, ended, cut, info = envs.step(_sample(envs, info, draws))
                starts = ended | cut
                bar.update()
            whole = tree(lambda *x: torch.as_tensor(np.stack(x)), *seen)
            rows.append(Data(whole, torch.as_tensor(np.stack(begun)), torch.as_tensor(np.stack(right))))
    close(envs)
    found = tree(lambda *x: torch.cat(x, 1)[:, :sequences], *(row.obs for row in rows))
    return Data(found, *(torch.cat(x, 1)[:, :sequences] for x in zip(*(row[1:] for row in rows), strict=True)))


def _sample(envs: Any, info: dict[str, Any], draws: np.random.Generator) -> Any:
    """Draw random actions, only legal ones if the environments give masks."""
    masks, space = info.get("action_mask"), envs.single_action_space
    if masks is None or not isinstance(space, spaces.Discrete):
        return envs.action_space.sample()
    allowed = [np.asarray(mask, np.int8) if np.any(mask) else None for mask in masks]
    return np.array([space.start + draws.choice(np.flatnonzero(a)) if a is not None else space.start
                     for a in allowed])  # fmt: skip


class Finder:
    """Finds the right actions in each environment of a vector: info["answer"], the attribute `answer`, or the actions
    with the highest reward in copies of the environment, unless all have the same.

    envs: the vector. steps: the number of steps of one environment in total; it determines the share that is tried.
    """

    def __init__(self, envs: Any, steps: int, seed: int) -> None:
        self.envs, self.actions = envs, actions(envs.single_action_space)
        self.share = TRIES / (steps * len(self.actions))
        self.draws = np.random.default_rng([seed, 1])

    def __call__(self, info: dict[str, Any]) -> NDArray[Any]:
        """Return the right actions, bool [E, C]. info: of the vector's last step."""
        found = np.zeros((self.envs.num_envs, len(self.actions)), bool)
        tried = self.draws.random(len(found)) < self.share
        for row, env in enumerate(self.envs.envs):
            known = self._told(info, row) if "answer" in info else getattr(env.unwrapped, "answer", None)
            if known is not None:
                found[row, [place for place, action in enumerate(self.actions) if np.array_equal(action, known)]] = True
            elif tried[row]:
                found[row] = self.best(env.unwrapped)
        return found

    @staticmethod
    def _told(info: dict[str, Any], row: int) -> Any:
        """The answer in a vector's info for a row; -1 if there is none."""
        return info["answer"][row] if "_answer" not in info or info["_answer"][row] else -1

    def best(self, env: Any) -> NDArray[Any]:
        """The actions with the highest reward, bool [C]; none if all have the same reward."""
        if len(self.actions) > MOST_ACTIONS:
            raise _too_many(len(self.actions))
        fixed = [value for value in vars(env).values() if isinstance(value, spaces.Space)] + [env.spec]
        rewards = np.array([self._tried(env, action, fixed) for action in self.actions])
        best = rewards == rewards.max()
        return best & ~best.all()

    @staticmethod
    def _tried(env: Any, action: Any, fixed: list[Any]) -> float:
        """Return the reward of an action in a copy of the environment. The copy and the original share the objects in
        `fixed`."""
        try:
            return float(copy.deepcopy(env, {id(one): one for one in fixed}).step(action)[1])
        except Exception as error:  # an environment is foreign code and may raise anything
            raise EnvError(
                f"the right answer cannot be found by trying actions in a copy of {env}: {type(error).__name__}; "
                "choose another target, first, back:K or count"
            ) from error
