"""PettingZoo's parallel environments as a vector: all agents share one policy, each has its own memory.

Letters: G games, A agents in each, B = G * A rows, agent after agent.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tttstream_agents.envs import stack
from tttstream_agents.errors import EnvError, SpaceError


class ParallelVector(VectorEnv[Any, Any, Any]):
    """A vector with a row for every agent of every game. A game resets for all its agents on the step on which it ends.

    makers: each makes a parallel environment of PettingZoo (`possible_agents`, `observation_space(agent)`,
    `action_space(agent)`, `reset`, `step`). info["action_mask"] has the masks of legal actions if all agents have one.

    Raises SpaceError if the agents have different spaces, and EnvError if an agent leaves before its game ends
    (`supersuit.black_death_v3` prevents this).
    """

    def __init__(self, makers: Sequence[Callable[[], Any]]) -> None:
        self.games = [make() for make in makers]
        if not self.games:
            raise EnvError("expected at least one game")
        self.agents = list(self.games[0].possible_agents)
        first = self.games[0]
        for game in self.games:
            for agent in self.agents:
                for kind in ("observation_space", "action_space"):
                    if getattr(game, kind)(agent) != getattr(first, kind)(self.agents[0]):
                        raise SpaceError(
                            f"one policy for all agents needs one {kind}, but {agent!r} and {self.agents[0]!r} have "
                            f"different ones: use supersuit.pad_observations_v0 and pad_action_space_v0"
                        )
        self.single_observation_space: spaces.Space[Any] = first.observation_space(self.agents[0])
        self.single_action_space: spaces.Space[Any] = first.action_space(self.agents[0])
        self.num_envs = len(self.games) * len(self.agents)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start all games; the seed of game i is seed + i."""
        obs: list[Any] = []
        infos: list[dict[str, Any]] = []
        for index, game in enumerate(self.games):
            self._begin(game, None if seed is None else seed + index, options, obs, infos)
        return stack(obs), self._masks(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step in all games. Raises EnvError if an agent leaves a game before its end."""
        obs: list[Any] = []
        infos: list[dict[str, Any]] = []
        final = np.full(self.num_envs, None, dtype=object)
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        count = len(self.agents)
        for index, game in enumerate(self.games):
            rows = range(index * count, (index + 1) * count)
            taken = {agent: actions[row] for agent, row in zip(self.agents, rows, strict=True)}
            seen, rewards, ended, cut, info = game.step(taken)
            missing = [agent for agent in self.agents if agent not in seen]
            over = [bool(ended.get(agent) or cut.get(agent)) for agent in self.agents]
            if missing or (any(over) and not all(over)):
                raise EnvError(
                    f"agents {missing or [a for a, out in zip(self.agents, over, strict=True) if out]} left before "
                    "their game ended: put supersuit.black_death_v3 around it"
                )
            for agent, row in zip(self.agents, rows, strict=True):
                reward[row], terminated[row], truncated[row] = rewards[agent], bool(ended[agent]), bool(cut[agent])
                if over[0]:
                    final[row] = seen[agent]
            if over[0]:
                self._begin(game, None, None, obs, infos)
            else:
                obs += [seen[agent] for agent in self.agents]
                infos += [info.get(agent, {}) for agent in self.agents]
        more = {"final_obs": final} if any(one is not None for one in final) else {}
        return stack(obs), reward, terminated, truncated & ~terminated, {**self._masks(infos), **more}

    def _begin(self, game: Any, seed: Any, options: Any, obs: list[Any], infos: list[dict[str, Any]]) -> None:
        seen, info = game.reset(seed=seed, options=options)
        obs += [seen[agent] for agent in self.agents]
        infos += [info.get(agent, {}) for agent in self.agents]

    @staticmethod
    def _masks(infos: list[dict[str, Any]]) -> dict[str, Any]:
        masks = [info.get("action_mask") for info in infos]
        return {} if any(mask is None for mask in masks) else {"action_mask": np.stack(masks)}  # type: ignore[arg-type]

    def close_extras(self, **kwargs: Any) -> None:
        """Close the games."""
        for game in self.games:
            game.close()
