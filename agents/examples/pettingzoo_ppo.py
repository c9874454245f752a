"""A game of two agents that share one policy and have a memory each, trained by this package's PPO.

    python agents/examples/pettingzoo_ppo.py --steps 60000

Each agent is told a card at the start, then sees the other's last action. Both are paid where both say the other's
card: so each has to tell its own, and to remember what it was told.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from tttstream_agents import Config, MemoryPolicy
from tttstream_agents.multiagent import ParallelVector
from tttstream_agents.ppo import Collector, Player, learn


class Cards:
    """The game, with the methods of a `pettingzoo.ParallelEnv`."""

    possible_agents = ("ann", "bob")
    CARDS, STEPS = 3, 6

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        """The card or, later, the other's last action; and which of the two it is."""
        return spaces.MultiDiscrete([self.CARDS, 2])

    def action_space(self, agent: str) -> spaces.Space[Any]:
        """A card to say."""
        return spaces.Discrete(self.CARDS)

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Deal."""
        if seed is not None or not hasattr(self, "draws"):
            self.draws = np.random.default_rng(seed)
        self.cards, self.time = self.draws.integers(self.CARDS, size=2), 0
        return self._seen(self.cards, 0), {}

    def _seen(self, shown: Any, later: int) -> dict[str, Any]:
        return {agent: np.array([shown[i], later]) for i, agent in enumerate(self.possible_agents)}

    def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
        """First each tells something, then both guess."""
        said = np.array([int(actions[agent]) for agent in self.possible_agents])
        self.time += 1
        right = self.time > 1 and bool((said == self.cards[::-1]).all())
        rewards = dict.fromkeys(self.possible_agents, right / (self.STEPS - 1))
        over = dict.fromkeys(self.possible_agents, self.time == self.STEPS)
        return self._seen(said[::-1], 1), rewards, over, dict.fromkeys(self.possible_agents, False), {}

    def close(self) -> None:
        """Nothing to close."""


def main() -> None:
    """Train and print the mean return of the last games."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="steps of agents")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    envs = ParallelVector([Cards] * 16)
    config = Config(n_envs=envs.num_envs, rollout=26, minibatch=208, dim=32, heads=1, lr=3e-3, epochs=4)
    policy = MemoryPolicy(envs.single_observation_space, envs.single_action_space, dim=32, heads=1)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, eps=1e-5)
    collector, returns, steps = Collector(Player(envs, policy), config), [0.0], 0
    while steps < args.steps:
        rollout = collector.collect()
        learn(policy, optimizer, rollout, config)
        returns += [one for one, _ in rollout.ended]
        steps += config.rollout * envs.num_envs
    print(json.dumps({"library": "PettingZoo", "steps": steps, "return": round(float(np.mean(returns[-400:])), 3)}))


if __name__ == "__main__":
    main()
