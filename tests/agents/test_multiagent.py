"""Several agents with one policy: rows, ends of games, masks, and that an agent's memory is its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream_agents import MemoryPolicy
from tttstream_agents.config import Config
from tttstream_agents.errors import EnvError, SpaceError
from tttstream_agents.multiagent import ParallelVector
from tttstream_agents.ppo import Collector, Player, learn

BOX = spaces.Box(-100.0, 100.0, (2,), np.float32)


class Game:
    """Two agents see (agent, time); games last 3 steps, each second one is truncated."""

    possible_agents = ("a", "b")

    def __init__(self, fault: str = "") -> None:
        self.fault, self.played = fault, -1

    def observation_space(self, agent: str) -> Any:
        return spaces.Discrete(3) if self.fault == "space" and agent == "b" else BOX

    def action_space(self, agent: str) -> Any:
        return spaces.Discrete(3)

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.time, self.played = 0, self.played + 1
        return self._out()

    def _out(self) -> Any:
        obs = {agent: np.array([i, self.time], np.float32) for i, agent in enumerate(self.possible_agents)}
        masks = {"a": {"action_mask": np.array([1, 0, 1])}, "b": {"action_mask": np.array([0, 1, 0])}}
        return obs, {} if self.fault == "no masks" else masks

    def step(self, actions: Any) -> Any:
        assert self.fault == "no masks" or (actions["a"] != 1 and actions["b"] == 1)
        self.time += 1
        over, cut = self.time == 3, self.played % 2 == 1
        obs, infos = self._out()
        ended = dict.fromkeys(self.possible_agents, over and not cut)
        if self.fault == "leaves":
            ended["a"] = True
        return obs, {"a": 1.0, "b": 10.0}, ended, dict.fromkeys(self.possible_agents, over and cut), infos

    def close(self) -> None:
        self.fault = "closed"


@pytest.mark.parametrize("fault", ["", "no masks"])
def test_every_agent_of_every_game_is_a_row(fault: str) -> None:
    torch.manual_seed(0)
    envs = ParallelVector([lambda: Game(fault)] * 2)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=16)
    config = Config(n_envs=4, rollout=12, segment=6, minibatch=12, dim=16, epochs=1)
    collector = Collector(Player(envs, policy), config)
    rollout = collector.collect()
    obs = rollout.obs.transpose(0, 1).unflatten(0, (2, 4)).transpose(0, 1).flatten(1, 2)  # [B, T, 2]
    for row in range(4):
        assert obs[row, :, 0].tolist() == [row % 2] * 12
        assert obs[row, :, 1].tolist() == [0, 1, 2] * 4
    assert (rollout.mask is None) == bool(fault)
    assert sorted(rollout.ended) == [(3.0, 3)] * 8 + [(30.0, 3)] * 8
    first = learn(policy, torch.optim.SGD(policy.parameters(), lr=0.0), rollout, config)["first_ratio"]
    assert first < 1e-5
    envs.close()
    assert {game.fault for game in envs.games} == {"closed"}


def test_a_truncated_game_returns_its_last_observations() -> None:
    envs = ParallelVector([Game])
    envs.reset(seed=0)
    found = [envs.step(np.array([0, 1])) for _ in range(6)]
    assert found[2][2].tolist() == [True, True]
    assert found[5][3].tolist() == [True, True]
    assert [one.tolist() for one in found[5][4]["final_obs"]] == [[0, 3], [1, 3]]
    assert found[5][0].tolist() == [[0, 0], [1, 0]]


def test_mistakes_are_named() -> None:
    with pytest.raises(SpaceError, match="'b' and 'a' have different ones"):
        ParallelVector([lambda: Game("space")])
    envs = ParallelVector([lambda: Game("leaves")])
    envs.reset()
    with pytest.raises(EnvError, match=r"'a'.*left before"):
        envs.step(np.array([0, 1]))
    with pytest.raises(EnvError, match="at least one game"):
        ParallelVector([])
