"""Settings of episodes: random lengths in training, so that a memory does not fail after a fixed length, and options of
every reset."""

import math
from typing import Any

import gymnasium as gym

from tttstream_agents.errors import EnvError


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

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with a random length."""
        obs, info = self.env.reset(seed=seed, options=options)
        draw = self.unwrapped.np_random.random()
        self.limit, self.time = min(self.high, int(self.low * math.exp(draw * math.log((self.high + 1) / self.low)))), 0
        return obs, {**info, "time_limit": self.limit}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; the last one is truncated."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.time += 1
        return obs, reward, terminated, truncated or self.time >= self.limit, info


class ResetOptions(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Passes options to every reset, for environments whose settings are options of a reset, such as Memory Gym's.

    options: as in `reset(options=...)`. A reset with options of its own adds these and has precedence.
    """

    def __init__(self, env: gym.Env[Any, Any], options: dict[str, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, options=options)
        gym.Wrapper.__init__(self, env)
        self.options = dict(options)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode with the options."""
        return self.env.reset(seed=seed, options={**self.options, **(options or {})})
