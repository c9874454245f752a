"""Poses of an agent as observations, and a map of places for agents without memory.

Letters: P numbers of a pose, F Fourier features of a pose, N numbers of a flat observation.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tttstream_agents.encoder import pick
from tttstream_agents.envs import Observer
from tttstream_agents.errors import EnvError, ObservationError, SpaceError

Array = NDArray[np.floating[Any]]


def fourier(pose: Any, period: float, waves: int = 0) -> Array:
    """Sines and cosines of poses [..., P] -> [..., 2 * P * waves], periodic with `period`. A NaN gives zeros.

    waves: the largest number of waves in a period; 0 for period / 2, which is enough to distinguish whole numbers.
    """
    count = waves or max(1, int(period) // 2)
    angles = 2 * np.pi * np.asarray(pose, np.float64)[..., None] * np.arange(1, count + 1) / period
    both = np.nan_to_num(np.concatenate([np.sin(angles), np.cos(angles)], -1))
    return both.reshape(*both.shape[:-2], -1)


class Odometry:
    """The pose [P] of an agent, read from info or from the environment, or summed up from the moves of its actions.

    keys: paths in info, with dots between their parts ("pose", "agent.x"); their values are concatenated. A path that
        starts with "env." is an attribute of the unwrapped environment ("env.agent_pos"). "action" is the last action,
        for games in which the action is a place and the observation shows what is there. It is NaN before the first
        action.
    moves: {action: [P numbers]} or a list with an entry for each action; other actions do not change the pose.
    Give either keys or moves. Raises EnvError if a key is missing, ObservationError if a pose is not finite.
    """

    def __init__(
        self, keys: Sequence[str] | str | None = None, moves: Mapping[Any, Any] | Sequence[Any] | None = None
    ) -> None:
        if (keys is None) == (moves is None):
            raise EnvError("expected either keys (of info) or moves (of actions) for the pose")
        self.keys = [keys] if isinstance(keys, str) else list(keys or ())
        pairs = moves.items() if isinstance(moves, Mapping) else enumerate(moves or ())
        self.moves = {int(action): np.asarray(move, np.float64).ravel() for action, move in pairs}
        if moves is not None and len({len(move) for move in self.moves.values()}) != 1:
            raise EnvError(f"expected moves of one length, got {moves!r}")
        self.pose = np.zeros(0)

    def at(self, env: gym.Env[Any, Any], action: Any, info: dict[str, Any]) -> Array:
        """The pose after an action, None at the start of an episode."""
        if self.keys:
            self.pose = np.concatenate([self._part(env, info, key, action) for key in self.keys])
            return self.pose
        if action is None:
            self.pose = np.zeros(len(next(iter(self.moves.values()))))
        else:
            self.pose = self.pose + self.moves.get(int(np.asarray(action).item()), 0.0)
        return _finite(self.pose)

    @staticmethod
    def _part(env: gym.Env[Any, Any], info: dict[str, Any], key: str, action: Any) -> Array:
        first, *rest = key.split(".")
        if key == "action" and action is None:
            return np.full(math.prod(env.action_space.shape or ()), np.nan)
        found: Any = env.unwrapped if first == "env" else {"action": action} if key == "action" else info
        try:
            for name in rest if first == "env" else [first, *rest]:
                found = found[name] if isinstance(found, Mapping) else getattr(found, name)
            pose = np.asarray(found, np.float64).ravel()
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            known = ", ".join(map(str, info)) or "nothing"
            raise EnvError(
                f"there is no pose {key!r}: info has {known}; 'env.NAME' is an attribute of the environment, 'action' "
                "the last action"
            ) from error
        return _finite(pose)


def _finite(pose: Array) -> Array:
    """The pose. Raises ObservationError if it is not finite."""
    if not np.isfinite(pose).all():
        raise ObservationError(f"the pose is not finite: {pose}")
    return pose


class PoseObservation(Observer):
    """Adds the Fourier features of the agent's pose to the observation, under "pose": keys for a memory of places.

    If observations are a Dict, it gets an entry "pose": Box [F]. Other observations become a Dict with the entries
    "observation" and "pose". `around` adds an entry "around": Box [K, F], the features of K poses near the agent.
    `grid` adds an entry "grid": Box [K, F], the features of all cells of a grid. A memory of places can read both
    (`train --places at=pose ask=around`). With the key "action", the features are zeros until the first action.

    keys, moves: the source of the pose, see `Odometry`. period: poses that differ by this much have the same features.
    waves: the number of waves, see `fourier`. around: offsets [K, P]. grid: the number of cells in each of P
    dimensions, at whole numbers from 0. Raises SpaceError if the observations have a part of one of these names.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        keys: Sequence[str] | str | None = None,
        moves: Mapping[Any, Any] | Sequence[Any] | None = None,
        period: float = 32.0,
        waves: int = 16,
        around: Sequence[Sequence[float]] | None = None,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__(env, keys=keys, moves=moves, period=period, waves=waves, around=around, grid=grid)
        if period <= 0 or waves < 1:
            raise EnvError(f"expected a period above 0 and waves of at least 1, got {period} and {waves}")
        self.odometry, self.period, self.waves = Odometry(keys, moves), period, waves
        size = len(self.odometry.at(env, None, env.reset(seed=0)[1]))
        seen = env.observation_space
        parts = dict(seen.spaces) if isinstance(seen, spaces.Dict) else {"observation": seen}
        new = {"pose": True, "around": around is not None, "grid": grid is not None}
        if taken := [name for name, added in new.items() if added and name in parts]:
            raise SpaceError(f"the observations already have a part {taken[0]!r}, which PoseObservation would replace")
        parts["pose"] = spaces.Box(-1.0, 1.0, (2 * size * waves,), np.float32)
        self.around = None if around is None else offsets(around, size)
        self.grid = None
        if grid is not None:
            if len(grid) != size or min(grid) < 1:
                raise EnvError(f"expected a grid of {size} sizes of at least 1, got {grid!r}")
            cells = np.moveaxis(np.indices(tuple(grid)), 0, -1).reshape(-1, size)
            self.grid = fourier(cells, period, waves).astype(np.float32)
        for name, found in (("around", self.around), ("grid", self.grid)):
            if found is not None:
                parts[name] = spaces.Box(-1.0, 1.0, (len(found), 2 * size * waves), np.float32)
        self.observation_space = spaces.Dict(parts)

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        pose = self.odometry.at(self.env, action, info)
        parts = dict(obs) if isinstance(self.env.observation_space, spaces.Dict) else {"observation": obs}
        parts["pose"] = fourier(pose, self.period, self.waves).astype(np.float32)
        if self.around is not None:
            parts["around"] = fourier(pose + self.around, self.period, self.waves).astype(np.float32)
        if self.grid is not None:
            parts["grid"] = self.grid
        return parts, info


def offsets(around: Sequence[Sequence[float]], size: int) -> Array:
    """Offsets of poses as an array [K, P]. Raises EnvError unless each has P = size numbers."""
    found: Array = np.asarray(around, np.float64)
    if found.ndim != 2 or found.shape[1] != size or not len(found):
        raise EnvError(f"expected offsets of {size} numbers each, got {around!r}")
    return found


class PlaceMap:
    """A matrix of constant size that learns values by place: the delta rule over random Fourier features of the pose.

    W += k (v - W^T k)^T with a unit key k [F] of the pose and a value v [N] (Widrow and Hoff, 1960). With orthogonal
    keys the last value of each place is read back exactly. pose_size: P. scale: the distance at which places become
    distinct, in the unit of the pose. features: F, at least twice the number of places.
    """

    def __init__(self, pose_size: int, numbers: int, features: int = 512, scale: float = 0.5, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.turns = generator.normal(0.0, 1.0 / scale, (pose_size, features // 2))
        self.weights = np.zeros((len(self.turns.T) * 2, numbers + 1))

    def key(self, pose: Any) -> Array:
        """Compute the keys [..., F] of poses [..., P].

        Keys have length 1. The dot product of two keys is about exp(-distance² / (2 scale²)). The key of a pose of NaNs
        is zero, so nothing is learned for it.
        """
        angles = np.asarray(pose, np.float64) @ self.turns
        both = np.nan_to_num(np.concatenate([np.sin(angles), np.cos(angles)], -1))
        return both / np.sqrt(self.turns.shape[1])

    def write(self, pose: Any, value: Any) -> None:
        """Learn the value [N] of a place."""
        key, target = self.key(pose), np.append(np.asarray(value, np.float64), 1.0)
        self.weights += np.outer(key, target - key @ self.weights)

    def read(self, pose: Any) -> Array:
        """The values of places [..., P], and how well each place is known (0 to 1): [..., N + 1]."""
        found: Array = self.key(pose) @ self.weights
        return found


class MapObservation(Observer):
    """Gives agents without memory a map of the observations at the places around them, see `PlaceMap`.

    Observations become one row: the flat observation, then for each offset in `around` the map's values at the pose
    plus this offset, and how well that place is known. The map is read before it learns the observation, and is empty
    at the start of each episode. keys, moves: the source of the pose, see `Odometry`. around: offsets [K, P]; None for
    the current place only. show: the part of a Dict of observations that the map learns; None for all. scale,
    features: of `PlaceMap`.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        keys: Sequence[str] | str | None = None,
        moves: Mapping[Any, Any] | Sequence[Any] | None = None,
        around: Sequence[Sequence[float]] | None = None,
        show: str | None = None,
        scale: float = 0.5,
        features: int = 512,
    ) -> None:
        super().__init__(env, keys=keys, moves=moves, around=around, show=show, scale=scale, features=features)
        self.odometry, self.show, self.scale, self.features = Odometry(keys, moves), show, scale, features
        flat = spaces.utils.flatten_space(env.observation_space)
        kept = self._kept(env.observation_space)
        if not isinstance(flat, spaces.Box):
            raise SpaceError(f"observations of {env.observation_space} cannot be flattened to one row of numbers")
        self._numbers = spaces.utils.flatdim(kept)
        self._size = len(self.odometry.at(env, None, env.reset(seed=0)[1]))
        self.around = np.zeros((1, self._size)) if around is None else offsets(around, self._size)
        count = (self._numbers + 1) * len(self.around)
        low, high = (np.append(edge, np.full(count, sign * np.inf)) for edge, sign in ((flat.low, -1), (flat.high, 1)))
        self.observation_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)

    def _kept(self, space: spaces.Space[Any]) -> spaces.Space[Any]:
        if self.show is None:
            return space
        if not isinstance(space, spaces.Dict) or self.show not in space.spaces:
            raise SpaceError(f"there is no part {self.show!r} to show in observations of {space}")
        return space[self.show]

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        if action is None:
            self.map = PlaceMap(self._size, self._numbers, self.features, self.scale)
        space, pose = self.env.observation_space, self.odometry.at(self.env, action, info)
        read = self.map.read(pose + self.around).ravel()
        shown = obs if self.show is None else pick(obs, (self.show,))
        self.map.write(pose, spaces.utils.flatten(self._kept(space), shown))
        return np.append(np.asarray(spaces.utils.flatten(space, obs), np.float64), read).astype(np.float32), info
