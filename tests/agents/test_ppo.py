"""PPO with a memory: both kinds of autoreset, bootstraps, the first ratio, segments, and stale states."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers.vector import DictInfoToList

from tttstream.state import pack
from tttstream.testing import assert_close
from tttstream_agents.config import Config
from tttstream_agents.envs import vector
from tttstream_agents.errors import EnvError, ObservationError
from tttstream_agents.policy import MemoryPolicy
from tttstream_agents.ppo import Collector, Player, advantages, learn, refresh
from tttstream_agents.vectors import Copied

SMALL = Config(n_envs=2, rollout=24, segment=8, minibatch=16, dim=16, epochs=1, gamma=0.9, gae_lambda=0.8)
MODES = ("next_step", "same_step")


def collector(
    make_env: Any, mode: str = "next_step", config: Config = SMALL, memory: str = "ttt_linear", envs: Any = None
) -> Collector:
    """make_env: of one environment; envs: a vector in its place."""
    torch.manual_seed(0)
    envs = vector(make_env, config.n_envs, 0, mode) if envs is None else envs
    policy = MemoryPolicy(
        envs.single_observation_space, envs.single_action_space, memory, dim=16, previous_reward=True
    )  # fmt: skip
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Collector(Player(envs, policy), config)


def timeline(x: torch.Tensor, row: int, config: Config = SMALL) -> torch.Tensor:
    """[L, S, ...] -> [T, ...] of one environment."""
    return x.transpose(0, 1).unflatten(0, (-1, config.n_envs))[:, row].flatten(0, 1)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_memory_is_reset_at_each_episode_start_and_no_row_is_invented(script: Any, mode: str, nested: bool) -> None:
    """The whole of the two modes: what stands in each row, where the memory starts, which row does not count."""
    rollout = collector(lambda: script(nested), mode).collect()
    obs = rollout.obs["a"][0] if nested else rollout.obs
    for row in range(2):
        rows = timeline(obs, row).tolist()
        starts, valid = timeline(rollout.starts, row).tolist(), timeline(rollout.valid, row).tolist()
        expected_obs, expected_starts, expected_valid = [], [], []
        for episode in range(9):
            length = script.LENGTHS[episode % 3]
            for time in range(length + (mode == "next_step")):
                expected_obs.append([episode, time])
                expected_starts.append(time == 0)
                expected_valid.append(time < length)
        assert rows == expected_obs[:24]
        assert starts == expected_starts[:24]
        assert valid == expected_valid[:24]


@pytest.mark.parametrize("mode", MODES)
def test_advantages_are_those_of_each_episode_played_alone(script: Any, mode: str) -> None:
    """Every valid row against the sum over its own episode, whose last value comes from the memory that saw it."""
    play = collector(script, mode)
    policy, config = play.player.policy, play.config
    rollout = play.collect()
    for row in range(2):
        value, advantage = timeline(rollout.value, row), timeline(rollout.advantage, row)
        valid, action = timeline(rollout.valid, row), timeline(rollout.action, row)
        starts = timeline(rollout.starts, row).nonzero().flatten().tolist()
        for episode, first in enumerate(starts[:-1]):
            length = script.LENGTHS[episode % 3]
            obs = torch.tensor([[[episode, t]] for t in range(length + 1)], dtype=torch.float32)
            previous = torch.arange(length + 1.0)[:, None]
            acts = torch.cat([action[first : first + length], torch.zeros(1, dtype=torch.long)])[:, None]
            begin = torch.zeros(length + 1, 1, dtype=torch.bool)
            begin[0] = True
            with torch.no_grad():
                alone = policy.evaluate(obs, acts, None, begin, previous)[2][:, 0]
            torch.testing.assert_close(value[first : first + length], alone[:-1], atol=1e-5, rtol=0)
            if episode % 2 == 0:
                alone[-1] = 0.0  # terminated
            delta = torch.arange(1.0, length + 1) + config.gamma * alone[1:] - alone[:-1]
            weight = config.gamma * config.gae_lambda
            for t in range(length):
                expected = sum(weight**k * delta[t + k] for k in range(length - t))
                torch.testing.assert_close(advantage[first + t], expected, atol=1e-4, rtol=0)
            assert valid[first : first + length].all()


def test_both_modes_play_the_same_episodes_and_learn_the_same(script: Any) -> None:
    """Without the rows that do not count, NEXT_STEP is SAME_STEP (values and advantages; the actions fixed)."""
    found = {}
    for mode in MODES:
        play = collector(script, mode, dataclasses.replace(SMALL, rollout=48, segment=48, minibatch=48))
        act = play.player.policy.act
        play.player.policy.act = lambda *a, act=act, **k: act(*a, **{**k, "deterministic": True})  # type: ignore[method-assign]
        rollout = play.collect()
        keep = rollout.valid[:, 0]
        found[mode] = [x[:, 0][keep][:30] for x in (rollout.value, rollout.advantage, rollout.log_prob)]
    assert_close(found["next_step"], found["same_step"], 1e-4)


def test_the_usual_mask_would_let_the_old_memory_into_the_new_episode(script: Any) -> None:
    """The pitfall: with the mask of SAME_STEP on NEXT_STEP environments, the first observation is not fresh."""
    play = collector(script, "next_step")
    rollout = play.collect()
    naive = torch.zeros(24, dtype=torch.bool)
    valid = timeline(rollout.valid, 0)
    naive[~valid] = True  # done came with the row before
    first = int(timeline(rollout.starts, 0).nonzero()[1])
    assert naive[first - 1]
    assert not naive[first]
    obs = timeline(rollout.obs, 0)[:, None]
    action, previous = timeline(rollout.action, 0)[:, None], timeline(rollout.previous_reward, 0)[:, None]
    with torch.no_grad():
        wrong = play.player.policy.evaluate(obs, action, None, naive[:, None], previous)[2][first, 0]
    assert abs(float(wrong - timeline(rollout.value, 0)[first])) > 1e-4


def test_advantages_against_the_sum_that_defines_them() -> None:
    generator = torch.Generator().manual_seed(0)
    reward, value, following = (torch.randn(9, 2, generator=generator) for _ in range(3))
    done = torch.rand(9, 2, generator=generator) < 0.3
    terminated = done & (torch.rand(9, 2, generator=generator) < 0.5)
    found = advantages(reward, value, following, terminated, done, 0.9, 0.7)
    for b in range(2):
        for t in range(9):
            total, weight = 0.0, 1.0
            for k in range(t, 9):
                target = reward[k, b] + (0.0 if terminated[k, b] else 0.9 * following[k, b])
                total += weight * float(target - value[k, b])
                weight *= 0.9 * 0.7
                if done[k, b]:
                    break
            assert found[t, b] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("memory", ["ttt_linear", "ttt_mlp", "gru", "window", "framestack"])
@pytest.mark.parametrize("mode", MODES)
def test_the_ratio_of_the_first_epoch_is_one(script: Any, mode: str, memory: str) -> None:
    """Over several rollouts, with the weights unchanged: what was acted is what is evaluated, in every segment."""
    play = collector(script, mode, memory=memory)
    for _ in range(3):
        r = play.collect()
        log_prob, _, value, _ = play.player.policy.evaluate(r.obs, r.action, r.states, r.starts, r.previous_reward)
        torch.testing.assert_close(
            (log_prob - r.log_prob)[r.valid].exp(), torch.ones(int(r.valid.sum())), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(value, r.value, atol=1e-4, rtol=0)
        optimizer = torch.optim.SGD(play.player.policy.parameters(), lr=0.0)
        assert learn(play.player.policy, optimizer, r, SMALL)["first_ratio"] < 1e-5


def test_stale_states_are_recomputed(script: Any) -> None:
    play = collector(script)
    policy = play.player.policy
    play.collect()
    rollout = play.collect()
    assert_close(pack(refresh(policy, rollout, 2)), pack(rollout.states), 1e-4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    fresh = refresh(policy, rollout, 2)
    assert torch.equal(pack(fresh)[:2], pack(rollout.states)[:2])
    assert float((pack(fresh) - pack(rollout.states))[2:].abs().max()) > 1e-3
    learn(policy, torch.optim.Adam(policy.parameters()), rollout, dataclasses.replace(SMALL, recompute=True, epochs=2))


def test_one_state_is_stored_for_each_segment(script: Any) -> None:
    rollout = collector(script).collect()
    assert rollout.states.rows == 2 * 3
    assert rollout.starts.shape == (8, 6)
    assert not pack(rollout.states).requires_grad


def test_returns_and_lengths_of_episodes(script: Any) -> None:
    for mode in MODES:
        play = collector(script, mode)
        ended = [*play.collect().ended, *play.collect().ended]
        assert ended[:6:2] == [(6.0, 3), (15.0, 5), (10.0, 4)]


def test_environments_that_do_not_reset_themselves_are_refused(script: Any) -> None:
    envs = SyncVectorEnv([script], autoreset_mode=AutoresetMode.DISABLED)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space)
    with pytest.raises(EnvError, match="reset themselves"):
        Player(envs, policy)


def test_a_closed_environment_is_named() -> None:
    envs = vector(lambda: gym.make("CartPole-v1"), 2, 0)
    player = Player(envs, MemoryPolicy(envs.single_observation_space, envs.single_action_space))
    player.step()
    envs.close()
    envs.envs = ()  # type: ignore[union-attr]
    with pytest.raises(EnvError, match="failed in step"):
        player.step()


def test_actions_reach_the_environment_inside_their_bounds() -> None:
    seen = []

    class Watch(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            seen.append(np.asarray(action))
            return super().step(action)

    envs = vector(lambda: Watch(gym.make("Pendulum-v1")), 2, 0)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space)
    with torch.no_grad():
        policy.action.log_std.fill_(2.0)  # type: ignore[operator]
    player = Player(envs, policy)
    raw = torch.cat([player.step().action for _ in range(20)])
    assert float(raw.abs().max()) > 2
    assert np.abs(seen).max() <= 2


class Reused(VectorEnv[Any, Any, Any]):
    """Two scripts that reset themselves on the SAME step; every array that comes back is written over by the next."""

    def __init__(self, script: Any, metadata: Any) -> None:
        self.singles, self.num_envs, self.metadata = [script(), script()], 2, metadata
        self.single_observation_space, self.single_action_space = script().observation_space, spaces.Discrete(3)
        self.observation_space = batch_space(self.single_observation_space, 2)
        self.action_space = batch_space(self.single_action_space, 2)
        self.obs, self.reward = np.zeros((2, 2), np.float32), np.zeros(2, np.float32)
        self.ended, self.cut = np.zeros(2, bool), np.zeros(2, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        for row, env in enumerate(self.singles):
            self.obs[row] = env.reset()[0]
        return self.obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        info = {"final_obs": np.full(2, None, dtype=object)}
        for row, env in enumerate(self.singles):
            self.obs[row], self.reward[row], self.ended[row], self.cut[row], _ = env.step(actions[row])
            if self.ended[row] or self.cut[row]:
                info["final_obs"][row] = self.obs[row].copy()
                self.obs[row] = env.reset()[0]
        return self.obs, self.reward, self.ended, self.cut, info


SAME = AutoresetMode.SAME_STEP
VECTORS = {
    "own": lambda script: vector(lambda: script(reuse=True), 2, 0, "same_step"),
    "own, in processes": lambda script: vector(lambda: script(reuse=True), 2, 0, "same_step", workers=1),
    "sync": lambda script: SyncVectorEnv([lambda: script(reuse=True)] * 2, copy=False, autoreset_mode=SAME),
    "a list of infos": lambda script: DictInfoToList(
        SyncVectorEnv([lambda: script(reuse=True)] * 2, copy=False, autoreset_mode=SAME)
    ),
    "shared memory": lambda script: AsyncVectorEnv(
        [lambda: Copied(script(reuse=True))] * 2, copy=False, autoreset_mode=SAME
    ),
    "no metadata but an attribute": lambda script: SyncVectorEnv([lambda: script(reuse=True)] * 2, autoreset_mode=SAME),
    "all arrays": lambda script: Reused(script, {"autoreset_mode": "SameStep"}),
}


def same_rollouts(found: Any, expected: Any) -> None:
    for name in ("obs", "starts", "valid", "previous_reward", "value", "advantage"):
        assert_close(getattr(found, name), getattr(expected, name), 1e-6)


@pytest.mark.parametrize("kind", VECTORS)
def test_stored_observations_are_copied(script: Any, kind: str) -> None:
    """Environments and vectors that write each array over the last train on the same numbers as those that do not."""
    made = VECTORS[kind](script)
    if kind.startswith("no metadata"):
        made.metadata.pop("autoreset_mode")
    play = collector(None, envs=made)
    found = [play.collect(), play.collect()]
    made.close()
    again = collector(script, "same_step")
    for one in found:
        same_rollouts(one, again.collect())


@pytest.mark.parametrize("mode", MODES)
def test_stored_observations_in_dictionaries_are_copied(script: Any, mode: str) -> None:
    kind = {"next_step": AutoresetMode.NEXT_STEP, "same_step": SAME}[mode]
    envs = SyncVectorEnv([lambda: script(True, reuse=True)] * 2, copy=False, autoreset_mode=kind)
    found, expected = collector(None, envs=envs).collect(), collector(lambda: script(True), mode).collect()
    assert torch.equal(found.obs["a"][0], expected.obs["a"][0])
    for name in ("value", "advantage"):
        assert_close(getattr(found, name), getattr(expected, name), 1e-6)


def test_a_process_that_overwrites_its_observations_is_named(script: Any) -> None:
    """What it sends is lost before it comes here."""

    class Constant(script):  # type: ignore[misc]
        def _obs(self) -> Any:
            self.shared[:] = self.time
            return self.shared

    envs = AsyncVectorEnv([Constant] * 2, autoreset_mode=SAME)
    play = collector(None, envs=envs)
    with pytest.warns(UserWarning, match="Copied around it"):
        play.collect()
    envs.close()


def test_vectors_that_do_not_say_how_they_reset_themselves(script: Any) -> None:
    for metadata, says in (
        ({}, r"is unknown: set envs.metadata\['autoreset_mode'\]"),
        (None, "autoreset mode of these environments is unknown"),
        ({"autoreset_mode": "sometimes"}, "must be an AutoresetMode, got 'sometimes'"),
        ({"autoreset_mode": AutoresetMode.DISABLED}, "got autoreset DISABLED"),
    ):
        with pytest.raises(EnvError, match=says):
            collector(None, envs=Reused(script, metadata))

    class Silent(Reused):
        def step(self, actions: Any) -> Any:
            return (*super().step(actions)[:4], {})

    with pytest.raises(EnvError, match="returned no info\\['final_obs'\\]"):
        collector(None, envs=Silent(script, {"autoreset_mode": SAME})).collect()


@pytest.mark.parametrize(
    ("fault", "step", "mode", "says"),
    [
        ("nan", 2, "next_step", r"environment 1, after 2 steps in it: observation holds NaN"),
        ("nan", 2, "same_step", r"environment 1, after 2 steps in it: observation holds NaN"),
        (
            "nan",
            8,
            "same_step",
            r"environment 1, after 8 steps in it: observation holds NaN",
        ),  # the end of a cut episode
        ("reward", 3, "same_step", r"environment 1 gave a reward that is not finite in float32, inf, in step 3"),
        ("reward", 3, "next_step", r"environment 1 gave a reward that is not finite in float32, inf, in step 3"),
    ],
)
def test_what_is_not_finite_is_named_by_environment_and_step(
    script: Any, fault: str, step: int, mode: str, says: str
) -> None:
    makers = iter([script, lambda: script(faults={step: fault})])
    with pytest.raises(ObservationError, match=says):
        collector(lambda: next(makers)(), mode).collect()
