"""Environments by name and in vectors: their observations, wrong shapes, and episodes with seeds outside training."""

from __future__ import annotations

import gc
import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from tttstream_agents.envs import Episodes, Seen, close, make, vector
from tttstream_agents.errors import EnvError
from tttstream_agents.policy import MemoryPolicy
from tttstream_agents.ppo import Player

BOX = spaces.Box(-1, 1, (3,), np.float32)


class Faulty(gym.Env[Any, Any]):
    """Declares observations of 3 numbers; after the first `good` steps it returns the given values."""

    observation_space, action_space = BOX, spaces.Discrete(2)

    def __init__(self, shape: tuple[int, ...] = (3,), reward: Any = 0.0, good: int = 2) -> None:
        self.shape, self.reward, self.good = shape, reward, good

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.time += 1
        bad = self.time > self.good
        return np.zeros(self.shape if bad else 3, np.float32), self.reward if bad else 0.0, False, False, {}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"shape": (1,)}, r"in step: ObservationError: observation: expected shape \[3\], got \[1\]"),
        ({"shape": ()}, r"expected shape \[3\], got \[\]"),
        ({"reward": np.zeros(2)}, "in step: ValueError"),
    ],
    ids=str,
)
def test_observations_that_do_not_fit_their_space_are_named(
    fault: dict[str, Any], says: str, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also in processes, where shared memory would broadcast one number to three. The warning appears once."""
    envs = vector(lambda: Faulty(**fault), 2, 0, workers=workers)
    player = Player(envs, MemoryPolicy(BOX, Faulty.action_space, dim=8, heads=1))
    for _ in range(2):
        player.step()
    with pytest.raises(EnvError, match=says):
        player.step()
    assert capfd.readouterr() == ("", "")
    envs.close()


class Dying(Faulty):
    """Its process ends in the middle of a step, as where there is no memory left."""

    def step(self, action: Any) -> Any:
        os._exit(9)


def test_a_process_that_dies_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    envs = vector(Dying, 2, 0, workers=1)
    player = Player(envs, MemoryPolicy(BOX, Faulty.action_space, dim=8, heads=1))
    with pytest.raises(EnvError, match="in step: its process died"):
        player.step()
    close(envs)
    del player, envs
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_reward_in_an_array_of_one_is_a_number() -> None:
    env = Episodes(Faulty(reward=np.ones(1), good=0), 0, 0)
    env.reset()
    assert env.step(0)[1] == 1.0


def test_texts_are_left_out_at_every_depth() -> None:
    text = spaces.Text(5)

    class Talking(Faulty):
        observation_space = spaces.Dict({"a": BOX, "said": text, "in": spaces.Dict({"b": BOX, "too": text})})

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            return self.observation_space.sample(), {}

    env = Seen(Talking())
    assert env.observation_space == spaces.Dict({"a": BOX, "in": spaces.Dict({"b": BOX})})
    assert env.observation_space.contains(env.reset()[0])


def test_missions_of_babyai_are_left_out() -> None:
    pytest.importorskip("minigrid")
    env = make("BabyAI-GoToRedBallGrey-v0")
    assert isinstance(env.observation_space, spaces.Dict)
    assert sorted(env.observation_space) == ["direction", "image"]
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_unseen_episodes_are_others() -> None:
    class Drawn(Faulty):
        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return self.np_random.random(3).astype(np.float32), {}

    trained, unseen, again = (vector(Drawn, 2, 1, unseen=flag).reset()[0] for flag in (False, True, True))
    assert not (trained == unseen).any()
    np.testing.assert_array_equal(unseen, again)


def test_environments_by_name() -> None:
    env = make("MiniGrid-MemoryS7-v0")
    assert sorted(env.observation_space.spaces) == ["direction", "image"]  # type: ignore[attr-defined]
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains({**obs, "image": obs["image"].astype("int64")})
    for _ in range(50):
        obs = env.step(env.action_space.sample())[0]
        assert (obs["image"] < env.observation_space["image"].nvec).all()  # type: ignore[index]
    assert make("popgym-RepeatFirstEasy-v0").observation_space.n == 4  # type: ignore[attr-defined]
    with pytest.raises(EnvError, match="no environment 'NoSuch-v3'"):
        make("NoSuch-v3")
