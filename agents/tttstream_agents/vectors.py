"""Vectors of environments of any kind: how they reset themselves, their last observations, their action masks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray

from tttstream_agents.envs import Episodes, stack, tree
from tttstream_agents.errors import EnvError, ObservationError


class Copied(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Copies every observation, for environments that write each one into the same array."""

    copies = True

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's."""
        obs, info = self.env.reset(seed=seed, options=options)
        return copy.deepcopy(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's."""
        obs, *others = self.env.step(action)
        return (copy.deepcopy(obs), *others)


def keep_last(envs: Any) -> None:
    """Make the environments of a vector `Copied`, so that the last observation of an episode outlives the next reset.

    In place, and only in this process. envs: a gymnasium VectorEnv or a VecEnv of Stable-Baselines3.
    """
    singles = getattr(envs.unwrapped, "envs", None)
    if isinstance(singles, list):
        singles[:] = [env if isinstance(env, Copied | Episodes) else Copied(env) for env in singles]


def mode_of(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """How a vector resets itself, NEXT_STEP or SAME_STEP. Raises EnvError if it does not, or does not say."""
    found = (envs.metadata or {}).get("autoreset_mode", getattr(envs.unwrapped, "autoreset_mode", None))
    if found is None:
        raise EnvError(
            "these environments do not say how they reset themselves: set envs.metadata['autoreset_mode'] to "
            "gymnasium.vector.AutoresetMode.NEXT_STEP (an episode's last observation comes in a row of its own) or "
            "SAME_STEP (it comes in info['final_obs'])"
        )
    try:
        mode = AutoresetMode(found)
    except ValueError as error:
        raise EnvError(f"metadata['autoreset_mode'] must be an AutoresetMode, got {found!r}") from error
    if mode == AutoresetMode.DISABLED:
        raise EnvError("expected environments that reset themselves (NEXT_STEP or SAME_STEP), got autoreset DISABLED")
    return mode


def own(x: Any) -> Any:
    """A copy of observations [B, ...]: a vector may write the next ones into the same arrays."""
    return tree(lambda part: np.array(part), x)


def final_obs(info: Any, rows: Sequence[int]) -> Any:
    """The last observations of the episodes that ended in some environments, side by side: parts [len(rows), ...].

    info: of a vector that resets itself on the SAME step, also as DictInfoToList makes it. Raises EnvError.
    """
    try:
        last = [info[row]["final_obs"] if isinstance(info, list) else info["final_obs"][row] for row in rows]
    except (KeyError, IndexError, TypeError):
        last = [None]
    if any(one is None for one in last):
        raise EnvError("the environments reset themselves on the SAME step, but gave no info['final_obs'] at an end")
    return stack(last)


def action_mask(info: Any, valid: Sequence[bool], choices: int) -> NDArray[np.bool_] | None:
    """The masks of legal actions [B, choices] in a vector's info["action_mask"]; None if there are none.

    valid: False for environments whose episode is over (NEXT_STEP): they may give none, and all is legal there. A mask
    of a MultiDiscrete space may be a tuple of masks, as gymnasium's `sample` takes it. Raises EnvError if some give
    no mask, ObservationError where one does not fit.
    """
    listed = isinstance(info, list)
    masks = [one.get("action_mask") for one in info] if listed else info.get("action_mask")
    if masks is None or (listed and all(one is None for one in masks)):
        return None
    given = [one is not None for one in masks] if listed else info.get("_action_mask", [True] * len(valid))
    found = np.ones((len(valid), choices), dtype=bool)
    for row, (mask, has, counts) in enumerate(zip(masks, given, valid, strict=True)):
        if not counts:
            continue
        if not has:
            raise EnvError(f"environment {row} gave no info['action_mask'], and others did")
        flat = np.concatenate([np.ravel(part) for part in mask]) if isinstance(mask, tuple) else np.ravel(mask)
        if flat.shape != (choices,) or not np.isin(flat, (0, 1)).all():
            raise ObservationError(
                f"environment {row}: expected info['action_mask'] of {choices} zeros and ones, got {mask!r:.80}", row
            )
        found[row] = flat.astype(bool)
    return found


class Overwritten:
    """Warns, once, where the last observations of episodes look overwritten by the first ones of the next.

    In this process `keep_last` sees to it. A process of its own sends what an environment has by then, and from here
    one can only compare. envs: before their first reset.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        base = envs.unwrapped
        self.possible = isinstance(base, AsyncVectorEnv) and not all(base.call("has_wrapper_attr", "copies"))

    def look(self, last: Any, obs: Any, rows: Any) -> None:
        """last: the last observations of some rows of the vector; obs: the first ones of the next, of all rows."""
        if not self.possible:
            return
        same: list[bool] = []
        tree(lambda a, b: same.append(a.ndim > 1 and np.array_equal(a, np.asarray(b)[rows])), last, obs)
        if all(same):
            self.possible = False
            warnings.warn(
                "the last observation of an episode equals the first of the next: if the environment writes each "
                "observation over the one before, put tttstream_agents.vectors.Copied around it",
                stacklevel=4,
            )
