"""Training does not grow with the number of steps, nor does an endless episode: a short form, and a million steps."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import pytest
import torch
from gymnasium import spaces

from tttstream_agents.config import Config
from tttstream_agents.train import Run


class Endless(gym.Env[Any, Any]):
    """One episode without an end."""

    def __init__(self) -> None:
        self.observation_space = spaces.Discrete(4)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return int(self.np_random.integers(4)), float(action == 1), False, False, {}


def held() -> int:
    """Bytes of all tensors there are."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({one.data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.parametrize("endless", [False, True])
def test_tensors_do_not_accumulate(repeat_first: Any, endless: bool) -> None:
    config = Config(n_envs=4, rollout=32, minibatch=64, dim=16, heads=1, epochs=1)
    run = Run(config, Endless if endless else repeat_first)
    sizes = []
    for _ in range(5):
        run.update()
        sizes.append(held())
    run.close()
    assert sizes[-1] == sizes[2], sizes


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
