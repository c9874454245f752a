"""Wrappers that add the readout and the surprise of a memory to observations, for agents without memory.

TTTMemoryObservation is for one environment, TTTMemoryVectorObservation for a vector of them. SurpriseReward and
SurpriseVectorReward around them reward the surprise.
"""

from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from tttstream.errors import ConfigError
from tttstream.memory.ttt import TTTState
from tttstream.streams.normaliser import Normaliser
from tttstream_agents.envs import Observer, legal_actions, tree
from tttstream_agents.errors import EnvError, ObservationError, SpaceError
from tttstream_agents.heads import Categorical
from tttstream_agents.heads import build as build_head
from tttstream_agents.reader import MemoryReader
from tttstream_agents.vectors import Overwritten, final_obs, keep_last, mode_of


def _reader_for(space: spaces.Space[Any], reader: MemoryReader | None) -> MemoryReader:
    reader = MemoryReader(space) if reader is None else reader
    if reader.space != space:
        raise SpaceError(f"the reader was made for observations of {reader.space}, the environment has {space}")
    return reader.eval().requires_grad_(False)


def _wider(space: spaces.Space[Any], numbers: int) -> spaces.Box:
    """The flat observation space, followed by the readout and the surprise."""
    flat = spaces.utils.flatten_space(space)
    if not isinstance(flat, spaces.Box):
        raise SpaceError(f"observations of {space} cannot be flattened to one row of numbers")
    more = np.full(numbers, np.inf, np.float32)
    with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
        low, high = (edge.astype(np.float32) for edge in (flat.low, flat.high))
    return spaces.Box(np.concatenate([low, -more]), np.concatenate([high, more]), dtype=np.float32)


def _narrow(flat: Any) -> NDArray[np.float32]:
    """A flat observation in float32; larger values are clipped."""
    most = np.finfo(np.float32).max
    return np.clip(np.asarray(flat), -most, most).astype(np.float32)


class TTTMemoryObservation(Observer):
    """Observations become one row: flat observation, readout of the memory, surprise, which is also info["surprise"].

    The memory is reset with each episode. reader: the memory; None for one with random weights.
    """

    def __init__(self, env: gym.Env[Any, Any], reader: MemoryReader | None = None) -> None:
        super().__init__(env, reader=reader)
        self.reader = _reader_for(env.observation_space, reader)
        self.observation_space = _wider(env.observation_space, self.reader.dim + 1)
        self._state = self.reader.initial_state(1)

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        batch = tree(lambda x: np.asarray(x)[None], obs)
        readout, surprise, self._state = self.reader.read(batch, self._state, [action is None])
        flat = spaces.utils.flatten(self.env.observation_space, obs)
        row = np.concatenate([_narrow(flat), readout[0].numpy(), surprise.numpy()])
        return row, {**info, "surprise": float(surprise)}


class TTTMemoryVectorObservation(VectorWrapper[Any, Any, Any, Any, Any]):
    """TTTMemoryObservation for a vector of environments with any autoreset mode.

    With SAME_STEP, info["final_obs"] has the last observation of an episode, with the readout of the memory before its
    reset, and info["final_surprise"] its surprise.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], reader: MemoryReader | None = None) -> None:
        super().__init__(env)
        self._mode = mode_of(env)
        if self._mode == AutoresetMode.SAME_STEP:
            keep_last(env)
            self._overwritten = Overwritten(env)
        self.reader = _reader_for(env.single_observation_space, reader)
        self.single_observation_space = _wider(env.single_observation_space, self.reader.dim + 1)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._state = self.reader.initial_state(env.num_envs)
        self._over = np.zeros(env.num_envs, dtype=bool)

    def _row(self, obs: Any, readout: torch.Tensor, surprise: torch.Tensor) -> NDArray[np.float32]:
        space = self.env.single_observation_space
        singles = [tree(lambda x, i=i: x[i], obs) for i in range(len(surprise))]
        flat = np.stack([_narrow(spaces.utils.flatten(space, one)) for one in singles])
        return np.concatenate([flat, readout.numpy(), surprise.numpy()[:, None]], 1)

    def _read(self, obs: Any, info: dict[str, Any], starts: NDArray[Any]) -> tuple[NDArray[np.float32], dict[str, Any]]:
        if isinstance(info, list):
            raise EnvError("the infos are a list: put DictInfoToList around TTTMemoryVectorObservation, not inside")
        readout, surprise, self._state = self.reader.read(obs, self._state, starts)
        return self._row(obs, readout, surprise), {**info, "surprise": surprise.numpy()}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment, with a fresh memory. Raises ConfigError for a reset_mask."""
        mask = np.ones(self.num_envs, dtype=bool)
        if options is not None and "reset_mask" in options:
            raise ConfigError("a reset_mask is for environments without autoreset")
        self._over[:] = False
        return self._read(*self.env.reset(seed=seed, options=options), starts=mask)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step in every environment."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        done = terminated | truncated
        begun = done if self._mode == AutoresetMode.SAME_STEP else self._over
        if self._mode == AutoresetMode.SAME_STEP and done.any():
            rows = done.nonzero()[0]
            last = final_obs(info, rows)
            self._overwritten.look(last, obs, rows)
            old = cast(TTTState, self._state[torch.as_tensor(rows)])
            seen = self.reader.read(last, old, np.zeros(len(rows), dtype=bool))
            final = np.full(self.num_envs, None, dtype=object)
            final[rows] = list(self._row(last, seen.readout, seen.surprise))
            info = {**info, "final_obs": final}
            final_surprise = np.zeros(self.num_envs, dtype=np.float32)
            final_surprise[rows] = seen.surprise.numpy()
            info["final_surprise"] = final_surprise
        self._over = done
        row, info = self._read(obs, info, begun)
        return row, reward, terminated, truncated, info


class ActionMaskObservation(Observer):
    """Copies info["action_mask"] into the observations, where the policies of all adapters find it.

    Observations become a Dict {"observation": the one of env, "action_mask": MultiBinary}; a Dict gets the second
    entry.
    Instead of info, an environment may have a method `action_masks()`, as in sb3-contrib.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        head = build_head(env.action_space)
        if not isinstance(head, Categorical):
            raise SpaceError("an action mask is for Discrete, MultiDiscrete or MultiBinary actions, this is a Box")
        self._choices = head.outputs
        seen = env.observation_space
        self._parts = dict(seen.spaces) if isinstance(seen, spaces.Dict) else {"observation": seen}
        self.observation_space = spaces.Dict({**self._parts, "action_mask": spaces.MultiBinary(self._choices)})

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        mask = legal_actions(self.env, info)
        if mask is None:
            raise EnvError("the environment has neither info['action_mask'] nor a method action_masks()")
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        if flat.shape != (self._choices,):
            raise ObservationError(f"expected info['action_mask'] of {self._choices} numbers, got {len(flat)}")
        if over and not flat.any():  # after the last step no action is legal, and none is taken
            flat = np.ones_like(flat)
        parts = obs if isinstance(self.env.observation_space, spaces.Dict) else {"observation": obs}
        return {**parts, "action_mask": flat.astype(np.int8)}, info


class PartObservation(gym.ObservationWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replaces a Dict of observations by one of its parts."""

    def __init__(self, env: gym.Env[Any, Any], key: str) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, key=key)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict) or key not in space.spaces:
            raise SpaceError(f"there is no part {key!r} in observations of {space}")
        self.key, self.observation_space = key, space[key]

    def observation(self, observation: Any) -> Any:
        return observation[self.key]


class Bonus:
    """The reward for surprise: scale * min(z, most), with z the standard score of the surprise, if positive.

    The surprise of a fresh memory is high and falls with every step. So the mean is that of the episode, the deviation
    that of all episodes, and the first `warmup` steps of an episode have no reward.
    """

    def __init__(self, scale: float, most: float, warmup: int) -> None:
        self.scale, self.most, self.warmup = scale, most, warmup
        self.normaliser, self.age = Normaliser(), 0

    def restart(self) -> None:
        """Start an episode."""
        self.normaliser.restart()
        self.age = 0

    def of(self, surprise: float) -> float:
        """The reward for the next step of the episode."""
        score = self.normaliser.push(surprise)
        self.age += 1
        return self.scale * min(max(score, 0.0), self.most) if self.age > self.warmup else 0.0


class SurpriseReward(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Adds a reward for the surprise of each step (see `Bonus`).

    env: a TTTMemoryObservation, or a wrapper around one.
    """

    def __init__(self, env: gym.Env[Any, Any], scale: float = 0.01, most: float = 5.0, warmup: int = 8) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, scale=scale, most=most, warmup=warmup)
        gym.Wrapper.__init__(self, env)
        self._bonus = Bonus(scale, most, warmup)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._bonus.restart()
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; info["extrinsic_reward"] is the reward of the environment. Raises EnvError without
        info["surprise"]."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if "surprise" not in info:
            raise EnvError("no info['surprise']: put a TTTMemoryObservation inside this wrapper")
        bonus = self._bonus.of(info["surprise"])
        return obs, float(reward) + bonus, terminated, truncated, {**info, "extrinsic_reward": float(reward)}


class SurpriseVectorReward(VectorWrapper[Any, Any, Any, Any, Any]):
    """SurpriseReward for a vector of environments; the step of an autoreset has no reward."""

    def __init__(
        self, env: VectorEnv[Any, Any, Any], scale: float = 0.01, most: float = 5.0, warmup: int = 8
    ) -> None:  # fmt: skip
        super().__init__(env)
        self._bonus = [Bonus(scale, most, warmup) for _ in range(env.num_envs)]
        self._same_step = mode_of(env) == AutoresetMode.SAME_STEP
        self._over = np.zeros(env.num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in every environment."""
        self._over[:] = False
        for bonus in self._bonus:
            bonus.restart()
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take a step; info["extrinsic_reward"] has the rewards [B] of the environments. Raises EnvError without
        info["surprise"]."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        if isinstance(info, list):
            raise EnvError("the infos are a list: put DictInfoToList around SurpriseVectorReward, not inside")
        if "surprise" not in info:
            raise EnvError("no info['surprise']: put a TTTMemoryVectorObservation inside this wrapper")
        done = terminated | truncated
        surprise = info["surprise"]
        if self._same_step and done.any():  # the last observation belongs to this reward, not the first
            surprise = np.where(done, info["final_surprise"], surprise)
        earned = np.zeros(self.num_envs)
        for row in np.flatnonzero(~self._over):
            earned[row] = self._bonus[row].of(float(surprise[row]))
        for row in np.flatnonzero(done):
            self._bonus[row].restart()
        self._over = np.zeros_like(done) if self._same_step else done
        return obs, reward + earned, terminated, truncated, {**info, "extrinsic_reward": np.array(reward)}
