"""Too long for `make test`: training does not grow with the number of steps, and neither does an endless episode."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import pytest
from gymnasium import spaces

from tttstream_agents.config import Config
from tttstream_agents.train import Run


class Endless(gym.Env[Any, Any]):
    """One episode, for ever."""

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return int(self.np_random.integers(4)), float(action == 1), False, False, {}


@pytest.mark.soak
@pytest.mark.parametrize("endless", [False, True])
def test_memory_is_flat_over_a_million_steps(tmp_path: Path, repeat_first: Any, endless: bool) -> None:
    config = Config(n_envs=64, rollout=64, minibatch=2048, dim=16, heads=1, epochs=1, steps=1_000_000)
    run = Run(dataclasses.replace(config, options={"mini_batch": 8}), Endless if endless else repeat_first)
    sizes = []
    while not run.finished:
        run.update()
        if run.updates % 10 == 0:
            run.save(tmp_path / "checkpoint.pt")
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss / 1e6)
    run.close()
    warm = sizes[len(sizes) // 5]
    assert sizes[-1] - warm < 20, [round(size) for size in sizes]
