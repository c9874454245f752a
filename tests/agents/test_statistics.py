"""Running statistics: gymnasium's numbers, exact resumption, frozen in evaluation, acting and evaluating agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.utils import RunningMeanStd
from gymnasium.wrappers.vector import NormalizeReward

from tttstream_agents import MemoryPolicy
from tttstream_agents.checkpoint import load_policy
from tttstream_agents.config import Config
from tttstream_agents.envs import vector
from tttstream_agents.evaluate import evaluate
from tttstream_agents.ppo import Collector, Player, learn
from tttstream_agents.statistics import RewardScale, Running
from tttstream_agents.train import Run, train

SMALL = Config(
    n_envs=2, rollout=16, segment=8, minibatch=16, dim=16, epochs=2, steps=16 * 2 * 4, checkpoint_every=2,
    normalise_observations=True, normalise_rewards=True,
)  # fmt: skip


def test_means_and_variances_are_gymnasiums() -> None:
    own, other = Running(3, prior=1e-4), RunningMeanStd(shape=(3,))
    generator = np.random.default_rng(0)
    for size in (5, 1, 40):
        rows = generator.normal(3.0, [1.0, 10.0, 0.0], (size, 3))
        own.update(torch.as_tensor(rows))
        other.update(rows)
    np.testing.assert_allclose(own.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(own.var, other.var, rtol=1e-12, atol=1e-20)
    seen = own(torch.tensor([[1e9, 3.0, float(own.mean[2])]]))
    assert seen[0, 0] == 10.0
    assert abs(float(seen[0, 2])) < 1e-3
    own.update(torch.zeros(0, 3))
    np.testing.assert_allclose(own.mean, other.mean, rtol=1e-12)


def test_rewards_are_gymnasiums(script: Any) -> None:
    """On SAME_STEP environments; the steps that count on NEXT_STEP environments give the same."""
    other = NormalizeReward(SyncVectorEnv([script, script], autoreset_mode=AutoresetMode.SAME_STEP), gamma=0.9)
    other.reset()
    expected = np.array([other.step(np.zeros(2, int))[1] for _ in range(24)])
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        envs, own, found = SyncVectorEnv([script, script], autoreset_mode=mode), RewardScale(2, 0.9), []
        envs.reset()
        valid = torch.ones(2, dtype=torch.bool)
        for _ in range(32):
            _, reward, terminated, truncated, _ = envs.step(np.zeros(2, int))
            ended, cut = torch.as_tensor(terminated), torch.as_tensor(truncated)
            scaled = own(torch.as_tensor(reward), valid, ended, cut)
            if valid[0]:
                found.append(scaled.numpy())
            valid = ~(ended | cut) if mode == AutoresetMode.NEXT_STEP else valid
        np.testing.assert_allclose(found[:24], expected, rtol=1e-6)


def test_acting_and_evaluating_agree_and_statistics_are_part_of_the_weights(script: Any) -> None:
    torch.manual_seed(0)
    envs = vector(script, 2, 0)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=16, normalise=True)
    play = Collector(Player(envs, policy), SMALL)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    before = play.collect()
    policy.observe(before.obs, before.valid)
    rows = before.obs[before.valid]
    kept = policy.state_dict()["encoder.parts.0.statistics.mean"]
    torch.testing.assert_close(kept.float(), rows.mean(0), atol=1e-4, rtol=1e-4)
    rollout = play.collect()
    assert learn(policy, optimizer, rollout, SMALL)["first_ratio"] < 1e-5
    assert torch.equal(policy.state_dict()["encoder.parts.0.statistics.mean"], kept)
    expected = (rows - rows.mean(0)) / rows.std(0, correction=0)
    torch.testing.assert_close(policy.encoder([rows]), expected, atol=1e-3, rtol=1e-3)


def test_a_resumed_run_is_the_same_bit_for_bit_and_evaluation_changes_nothing(tmp_path: Path, script: Any) -> None:
    def fast(folder: Path, **more: Any) -> None:
        config = dataclasses.replace(SMALL, **more.pop("changes", {}))
        train(config, folder, make_env=lambda: script(drawn=True), quiet=True, tensorboard=False, **more)

    fast(tmp_path / "whole")
    fast(tmp_path / "parts", minutes=0)
    for _ in range(3):
        fast(tmp_path / "parts", minutes=0, resume=True)
    found = [Run(SMALL, lambda: script(drawn=True)) for _ in range(2)]
    for run, name in zip(found, ("whole", "parts"), strict=True):
        run.restore(tmp_path / name / "checkpoint.pt")
    one, other = (run.policy.state_dict() for run in found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert one["encoder.parts.0.statistics.count"] > 50
    scales = [run.collector.scale.state_dict() for run in found]
    assert all(torch.equal(scales[0][name], scales[1][name]) for name in scales[0])
    assert float(scales[0]["running.var"][0]) != 1.0

    envs = vector(script, 2, 1)
    policy = load_policy(tmp_path / "whole", envs)
    result = evaluate(policy, envs, 4)
    assert set(result.returns.tolist()) <= {6.0, 15.0, 10.0}  # rewards as they are
    assert all(torch.equal(policy.state_dict()[name], one[name]) for name in one)


def test_training_works_with_scales_far_from_one() -> None:
    """The number to repeat comes as 1,000,000 + 5 or - 5: without statistics the policy cannot tell them apart."""

    class Far(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64), spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.time = 0
            return self._out(), {}

        def _out(self) -> Any:
            self.sign = int(self.np_random.integers(2))
            return np.array([1e6 + 5.0 * (2 * self.sign - 1)])

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.time += 1
            reward = 100.0 * float(int(action) == self.sign)
            return self._out(), reward, self.time == 10, False, {}

    means = {}
    for normalise in (False, True):
        config = Config(
            n_envs=8, rollout=20, segment=20, minibatch=80, dim=16, lr=3e-3, epochs=4, steps=3200, memory="mlp",
            normalise_observations=normalise, normalise_rewards=True,
        )  # fmt: skip
        run = Run(config, Far)
        while not run.finished:
            run.update()
        means[normalise] = np.mean([one[0] for one in list(run.recent)[-32:]])
    assert means[True] > 750 > 650 > means[False], means
