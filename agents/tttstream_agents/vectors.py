"""Vectors of environments of any kind: their autoreset modes, last observations and action masks."""

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray

from tttstream_agents.envs import Episodes, Observer, stack, tree
from tttstream_agents.errors import EnvError, ObservationError


class Copied(Observer):
    """Copies every observation, for environments that overwrite the last one."""

    copies = True

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        return copy.deepcopy(obs), info


def keep_last(envs: Any) -> None:
    """Put `Copied` around the environments of a vector, in place, so that resets do not overwrite the last observation.

    It works only in this process. envs: a gymnasium VectorEnv or a VecEnv of Stable-Baselines3.
    """
    singles = getattr(envs.unwrapped, "envs", None)
    if isinstance(singles, list):
        singles[:] = [env if isinstance(env, Copied | Episodes) else Copied(env) for env in singles]


def mode_of(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The autoreset mode of a vector, NEXT_STEP or SAME_STEP. Raises EnvError if it is disabled or unknown."""
    found = (envs.metadata or {}).get("autoreset_mode", getattr(envs.unwrapped, "autoreset_mode", None))
    if found is None:
        raise EnvError(
            "the autoreset mode of these environments is unknown: set envs.metadata['autoreset_mode'] to "
            "gymnasium.vector.AutoresetMode.NEXT_STEP (the last observation of an episode has its own row) or "
            "SAME_STEP (it is in info['final_obs'])"
        )
    try:
        mode = AutoresetMode(found)
    except ValueError as error:
        raise EnvError(f"metadata['autoreset_mode'] must be an AutoresetMode, got {found!r}") from error
    if mode == AutoresetMode.DISABLED:
        raise EnvError("expected environments that reset themselves (NEXT_STEP or SAME_STEP), got autoreset DISABLED")
    return mode


def own(x: Any) -> Any:
    """Copy observations [B, ...], because a vector may overwrite them."""
    return tree(lambda part: np.array(part), x)


def final_obs(info: Any, rows: Sequence[int]) -> Any:
    """The last observations of the episodes that ended in some environments: parts [len(rows), ...].

    info: of a vector that resets on the SAME step, or of DictInfoToList. Raises EnvError if they are missing.
    """
    try:
        last = [info[row]["final_obs"] if isinstance(info, list) else info["final_obs"][row] for row in rows]
    except (KeyError, IndexError, TypeError):
        last = [None]
    if any(one is None for one in last):
        raise EnvError(
            "the environments reset on the SAME step, but returned no info['final_obs'] at the end of an episode"
        )
    return stack(last)


def action_mask(info: Any, valid: Sequence[bool], choices: int) -> NDArray[np.bool_] | None:
    """The masks of legal actions [B, choices] in a vector's info["action_mask"]; None if there are none.

    valid: False for environments whose episode is over (NEXT_STEP); they need no mask, and all actions are legal. A
    mask of a MultiDiscrete space may be a tuple of masks, as for gymnasium's `sample`. Raises EnvError if only some
    environments give a mask, ObservationError if a mask does not fit.
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
    """Warns once if the last observations of episodes seem to be overwritten by the first ones of the next episodes.

    In this process `keep_last` prevents this. For environments in other processes it can only be guessed from equal
    observations. envs: before their first reset.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        base = envs.unwrapped
        self.possible = isinstance(base, AsyncVectorEnv) and not all(base.call("has_wrapper_attr", "copies"))

    def look(self, last: Any, obs: Any, rows: Any) -> None:
        """Compare the last observations of some rows with the first ones of the next episodes (`obs`, of all rows)."""
        if not self.possible:
            return
        same: list[bool] = []
        tree(lambda a, b: same.append(a.ndim > 1 and np.array_equal(a, np.asarray(b)[rows])), last, obs)
        if all(same):
            self.possible = False
            warnings.warn(
                "the last observation of an episode equals the first of the next: if the environment overwrites its "
                "observations, put tttstream_agents.vectors.Copied around it",
                stacklevel=4,
            )
