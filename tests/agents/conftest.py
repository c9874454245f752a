"""Small environments whose every observation and reward is known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces


class Script(gym.Env[Any, Any]):
    """Observations (episode, step), reward = step + 1 after each step. Episodes 0, 1, 2 … last 3, 5, 4, 3, 5, 4 …
    steps; each second one is truncated, the others terminated.

    nested: observations in a dictionary with a tuple. drawn: the number of each episode comes from its seed.
    faults: {total step: what happens}, of "nan", "raise", "reward". reuse: each observation is written over the last.
    """

    LENGTHS = (3, 5, 4)

    def __init__(
        self, nested: bool = False, drawn: bool = False, faults: dict[int, str] | None = None, reuse: bool = False
    ) -> None:
        self.nested, self.drawn, self.faults, self.reuse = nested, drawn, faults or {}, reuse
        self.shared: Any = np.zeros(2, np.float32)
        self.whole = {"a": (self.shared,), "b": 1}
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = (
            spaces.Dict({"a": spaces.Tuple((box,)), "b": spaces.Discrete(2)}) if nested else box
        )  # fmt: skip
        self.action_space = spaces.Discrete(3)
        self.episode, self.time, self.total = -1, 0, 0

    def _obs(self) -> Any:
        obs = np.array([self.episode, self.time], np.float32)
        if self.faults.get(self.total) == "nan":
            obs[1] = np.nan
        if self.reuse:
            self.shared[:] = obs
            return self.whole if self.nested else self.shared
        return {"a": (obs,), "b": 1} if self.nested else obs

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = int(self.np_random.integers(99)) if self.drawn else self.episode + 1
        self.time = 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time, self.total = self.time + 1, self.total + 1
        if self.faults.get(self.total) == "raise":
            raise RuntimeError("the simulator\ncrashed")
        over = self.time == self.LENGTHS[self.episode % 3]
        cut = self.episode % 2 == 1
        reward = float("inf") if self.faults.get(self.total) == "reward" else float(self.time)
        return self._obs(), reward, over and not cut, over and cut, {}


class RepeatFirst(gym.Env[Any, Any]):
    """Shows one of `choices` at first and noise afterwards; the reward is for saying it again, `steps` times."""

    def __init__(self, steps: int = 10, choices: int = 3) -> None:
        self.steps, self.choices = steps, choices
        self.observation_space = self.action_space = spaces.Discrete(choices)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.first, self.time = int(self.np_random.integers(self.choices)), 0
        return self.first, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        reward = (1.0 if int(action) == self.first else -1.0) / self.steps
        return int(self.np_random.integers(self.choices)), reward, self.time == self.steps, False, {}


@pytest.fixture
def script() -> type[Script]:
    return Script


@pytest.fixture
def repeat_first() -> type[RepeatFirst]:
    return RepeatFirst
