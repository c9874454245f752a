"""Wrappers that change the settings of an environment: random lengths of episodes, options of resets, fewer actions."""

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tttstream_agents.envs import Observer, legal_actions
from tttstream_agents.errors import EnvError, SpaceError


class SampledTimeLimit(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Truncates every episode after a random number of steps from `low` to `high`, uniform in its logarithm.

    The environment needs episodes longer than `high`. The seed of the episode determines its length, which a reset
    returns as info["time_limit"].
    """

    def __init__(self, env: gym.Env[Any, Any], low: int, high: int) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, low=low, high=high)
        gym.Wrapper.__init__(self, env)
        if not 1 <= low <= high:
            raise EnvError(f"expected 1 <= low <= high, got {low = }, {high = }")
        self.low, self.high, self.limit, self.time = low, high, low, 0
        self.random: np.random.Generator | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with a random length."""
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:  # some environments have a generator of their own
            self.random = None if self.unwrapped.np_random_seed == seed else np.random.default_rng(seed)
        draw = (self.random or self.unwrapped.np_random).random()
        self.limit, self.time = min(self.high, int(self.low * math.exp(draw * math.log((self.high + 1) / self.low)))), 0
        return obs, {**info, "time_limit": self.limit}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; the last one is truncated."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.time += 1
        return obs, reward, terminated, truncated or self.time >= self.limit, info


class ResetOptions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Passes options to every reset, for environments whose settings are options of a reset, such as Memory Gym's.

    options: as in `reset(options=...)`. Options that are given to a reset itself have precedence.
    """

    def __init__(self, env: gym.Env[Any, Any], options: dict[str, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, options=options)
        gym.Wrapper.__init__(self, env)
        self.options = dict(options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with the options."""
        return self.env.reset(seed=seed, options={**self.options, **(options or {})})


class SomeActions(Observer, gym.ActionWrapper[Any, Any, Any]):
    """Keeps some actions of a Discrete environment: action i is keep[i]. MiniGrid's Memory needs the first three of
    seven. A mask of legal actions is reduced to the kept actions; it is read from info["action_mask"] or from a method
    `action_masks()`, as in sb3-contrib.

    Raises SpaceError if the action space is not Discrete, EnvError for an action that it does not have.
    """

    def __init__(self, env: gym.Env[Any, Any], keep: Sequence[int]) -> None:
        super().__init__(env, keep=keep)
        space = env.action_space
        if not isinstance(space, spaces.Discrete):
            raise SpaceError(f"SomeActions needs a Discrete action space, this one is {space}")
        if not len(keep) or len({*keep}) < len(keep) or not all(space.contains(np.int64(one)) for one in keep):
            raise EnvError(f"expected different actions of {space}, got {list(keep)}")
        self.keep, self._places = [int(one) for one in keep], [int(one) - int(space.start) for one in keep]
        self.action_space = spaces.Discrete(len(keep))

    def action(self, action: Any) -> int:
        """The action of the environment."""
        return self.keep[int(action)]

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        mask = legal_actions(self.env, info)
        return obs, info if mask is None else {**info, "action_mask": np.asarray(mask)[self._places]}
