"""Wrappers that append a memory: their outputs equal those of the memory alone, in both autoreset modes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList

from tttstream.errors import StateError
from tttstream_agents import (
    Config,
    MemoryReader,
    SurpriseReward,
    SurpriseVectorReward,
    TTTMemoryObservation,
    TTTMemoryVectorObservation,
    pretrain,
)
from tttstream_agents.errors import EnvError, SpaceError, TrainingError
from tttstream_agents.train import train

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]


def reused(script: Any) -> Any:
    """One that writes each observation over the last."""
    return lambda: script(reuse=True)


def episodes(script: Any, reader: MemoryReader | None = None, count: int = 9) -> list[list[Any]]:
    """Rows of each episode of a single environment, the last observation included."""
    env, out = TTTMemoryObservation(script(), reader), []
    for _ in range(count):
        obs, info = env.reset()
        rows, over = [obs], False
        assert info["surprise"] == pytest.approx(obs[-1])
        while not over:
            obs, _, terminated, truncated, info = env.step(0)
            rows.append(obs)
            over = terminated or truncated
        assert env.observation_space.contains(obs)
        out.append(rows)
    return out


def test_what_is_appended_is_the_memorys(script: Any) -> None:
    reader = MemoryReader(script().observation_space, dim=8)
    state = reader.initial_state(1)
    for episode in episodes(script, reader, 3):
        for time, row in enumerate(episode):
            reading = reader.read(row[None, :2], state, [time == 0])
            state = reading.state
            np.testing.assert_allclose(row[2:10], reading.readout[0], atol=1e-6)
            np.testing.assert_allclose(row[10], reading.surprise[0], rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_equals_single_environments(script: Any, mode: AutoresetMode) -> None:
    single = episodes(script)
    env = TTTMemoryVectorObservation(SyncVectorEnv([script, script], autoreset_mode=mode))
    obs, _ = env.reset()
    assert env.observation_space.contains(obs)
    rows, finals = [obs[1]], []
    for _ in range(20):
        obs, _, terminated, truncated, info = env.step(np.zeros(2, dtype=int))
        done = terminated | truncated
        rows.append(obs[1])
        np.testing.assert_allclose(info["surprise"], obs[:, -1])
        if mode == AutoresetMode.SAME_STEP and done[1]:
            finals.append(info["final_obs"][1])
    if mode == AutoresetMode.NEXT_STEP:
        expected = [row for episode in single for row in episode]
    else:
        expected = [row for episode in single for row in episode[:-1]]
        np.testing.assert_allclose(finals, [episode[-1] for episode in single][: len(finals)], atol=1e-5)
    np.testing.assert_allclose(rows, expected[:21], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_nested_observations(script: Any, mode: AutoresetMode) -> None:
    env = TTTMemoryVectorObservation(SyncVectorEnv([lambda: script(nested=True)] * 2, autoreset_mode=mode))
    env.reset()
    for _ in range(8):
        obs = env.step(np.zeros(2, dtype=int))[0]
        assert env.observation_space.contains(obs)


@pytest.mark.parametrize("mode", MODES)
def test_surprise_is_rewarded(script: Any, mode: AutoresetMode) -> None:
    """A vector pays what a single environment pays, and nothing for the step that begins an episode."""
    single = SurpriseReward(TTTMemoryObservation(script()), scale=1.0, warmup=1)
    paid = []
    for _ in range(8):
        single.reset()
        over = False
        while not over:
            _, reward, terminated, truncated, info = single.step(0)
            paid.append(reward - info["extrinsic_reward"])
            over = terminated or truncated
    assert max(paid) > 0
    assert min(paid) == 0
    vector = SyncVectorEnv([script], autoreset_mode=mode)
    env = SurpriseVectorReward(TTTMemoryVectorObservation(vector), scale=1.0, warmup=1)
    env.reset()
    found, begins = [], False
    for _ in range(24):
        _, reward, terminated, truncated, info = env.step(np.zeros(1, dtype=int))
        bonus = float((reward - info["extrinsic_reward"])[0])
        if begins and mode == AutoresetMode.NEXT_STEP:
            assert bonus == 0
        else:
            found.append(bonus)
        begins = bool((terminated | truncated)[0])
    np.testing.assert_allclose(found, paid[: len(found)], atol=1e-3)


class Odd(gym.Env[Any, Any]):
    """One observation all along, but for a single other one at step 20 of 40."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (4,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.array([0.5, -0.2, 0.1, 0.3], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        row = np.array([0.5, -0.2, 0.1, 0.3], np.float32)
        return -row[::-1] if self.time == 20 else row, 0.0, False, self.time >= 40, {}


def test_what_is_rewarded_is_the_event_and_not_the_beginning() -> None:
    """A fresh memory knows nothing in every episode; that is no news after the first."""
    env, paid = SurpriseReward(TTTMemoryObservation(Odd()), scale=1.0), np.zeros((30, 41))
    for episode in paid:
        env.reset()
        for step in range(1, 41):
            episode[step] = env.step(0)[1]
    mean = paid[10:].mean(0)
    assert not mean[:9].any()
    assert mean[20] > 2.0
    assert mean[20] > 0.5 * mean.sum()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of wrapped environments and infinite bounds
def test_the_checker_of_gymnasium_passes_and_specs_rebuild_the_wrappers() -> None:
    env = SurpriseReward(TTTMemoryObservation(gym.make("CartPole-v1")))
    check_env(env, skip_render_check=True)
    again = gym.make(env.spec)
    assert isinstance(again, SurpriseReward)
    np.testing.assert_array_equal(again.reset(seed=3)[0], env.reset(seed=3)[0])


def test_a_readers_weights_are_constant_until_it_is_trained() -> None:
    reader = MemoryReader(Odd().observation_space, dim=8)
    TTTMemoryObservation(Odd(), reader)
    assert not any(parameter.requires_grad for parameter in reader.parameters())
    pretrain(reader, Odd, steps=64, n_envs=2, segment=8)
    assert all(parameter.requires_grad for parameter in reader.parameters())


def test_pretraining_on_random_play_learns_to_predict() -> None:
    reader = MemoryReader(gym.make("CartPole-v1").observation_space, dim=16)
    before = reader.memory.start.clone()
    losses = pretrain(reader, lambda: gym.make("CartPole-v1"), steps=10_000, n_envs=4, segment=32, lr=3e-3)
    assert np.mean(losses[-5:]) < 0.87 * np.mean(losses[:3])
    assert not torch.equal(before, reader.memory.start)


def test_pretraining_needs_an_observation_that_follows_another() -> None:
    class Short(gym.wrappers.TimeLimit[Any, Any]):
        """Episodes of one step, but for those of an environment that continues after so many resets."""

        def __init__(self, after: int) -> None:
            super().__init__(gym.make("CartPole-v1"), 1)
            self.left = after

        def reset(self, **kwargs: Any) -> Any:
            self.left -= 1
            self._max_episode_steps = 1 if self.left > 0 else 100
            return super().reset(**kwargs)

    reader = MemoryReader(gym.make("CartPole-v1").observation_space, dim=8)
    with pytest.raises(TrainingError, match="nothing to predict"):
        pretrain(reader, lambda: Short(1000), steps=64, n_envs=2, segment=8)
    losses = pretrain(reader, lambda: Short(30), steps=256, n_envs=2, segment=8)
    assert 0 < len(losses) < 16
    assert all(parameter.isfinite().all() for parameter in reader.parameters())


def test_a_trained_agents_memory_works_in_another_agent(tmp_path: Any) -> None:
    config = Config(n_envs=2, rollout=16, minibatch=16, dim=16, steps=32, previous_action=False, positions=False)
    train(config, tmp_path / "a", quiet=True, tensorboard=False)
    reader = MemoryReader.from_run(tmp_path / "a")
    env = TTTMemoryObservation(gym.make("CartPole-v1"), reader)
    assert env.observation_space.shape == (4 + 16 + 1,)
    assert env.observation_space.contains(env.reset(seed=0)[0])
    train(Config(n_envs=2, rollout=16, minibatch=16, dim=16, steps=32), tmp_path / "b", quiet=True, tensorboard=False)
    with pytest.raises(TrainingError, match="no-previous-action"):
        MemoryReader.from_run(tmp_path / "b")


def test_mistakes_are_named(script: Any) -> None:
    with pytest.raises(SpaceError, match="was made for"):
        TTTMemoryObservation(script(), MemoryReader(spaces.Discrete(3)))
    with pytest.raises(StateError, match="needs a memory with an inner loss"):
        MemoryReader(spaces.Discrete(3), "gru")
    env = SurpriseReward(script())
    env.reset()
    with pytest.raises(EnvError, match="TTTMemoryObservation inside"):
        env.step(0)
    with pytest.raises(EnvError, match="reset themselves"):
        TTTMemoryVectorObservation(SyncVectorEnv([script], autoreset_mode=AutoresetMode.DISABLED))


@pytest.mark.parametrize("mode", MODES)
def test_environments_that_overwrite_their_observations(script: Any, mode: AutoresetMode) -> None:
    """Observations, last observations and bonus are equal for one environment and for a vector of them."""
    for alone, copying in zip(episodes(reused(script)), episodes(script), strict=True):
        np.testing.assert_array_equal(alone, copying)

    def play(make: Any, copy: bool) -> list[Any]:
        inner = SyncVectorEnv([make] * 2, copy=copy, autoreset_mode=mode)
        env, found = SurpriseVectorReward(TTTMemoryVectorObservation(inner), warmup=1), []
        found.append(env.reset()[0])
        for _ in range(20):
            obs, reward, terminated, truncated, info = env.step(np.zeros(2, dtype=int))
            last = [one for one in info.get("final_obs", ()) if one is not None]
            found += [obs, reward, info["surprise"], info["extrinsic_reward"], *last]
            assert len(last) == (terminated | truncated).sum() or mode == AutoresetMode.NEXT_STEP
        return found

    for one, other in zip(play(reused(script), copy=False), play(script, copy=True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vectors_that_the_wrappers_cannot_read(script: Any) -> None:
    listed = TTTMemoryVectorObservation(DictInfoToList(SyncVectorEnv([script])))
    with pytest.raises(EnvError, match="put DictInfoToList around TTTMemoryVectorObservation"):
        listed.reset()
    inside = SurpriseVectorReward(DictInfoToList(TTTMemoryVectorObservation(SyncVectorEnv([script]))))
    inside.reset()
    with pytest.raises(EnvError, match="put DictInfoToList around SurpriseVectorReward"):
        inside.step(np.zeros(1, dtype=int))
    around = DictInfoToList(SurpriseVectorReward(TTTMemoryVectorObservation(SyncVectorEnv([script]))))
    assert around.reset()[1][0]["surprise"] >= 0
    disabled = SyncVectorEnv([script], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(EnvError, match="got autoreset DISABLED"):
        SurpriseVectorReward(disabled)
