"""The pose of an environment's agent: values of its info, its observation or its own attributes, found by key."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.frames import MOST_NUMBERS
from tttstream.poses import Form, Part, PoseMissing
from tttstream.poses.form import declared, part, unit_of

READY = {
    "minigrid": "unwrapped.agent_pos,unwrapped.agent_dir:quarters",
    "miniworld": "unwrapped.agent.pos,unwrapped.agent.dir:rad",
    "vizdoom": "game.POSITION_X,game.POSITION_Y,game.ANGLE:deg",
}
"""Names for the keys of common environments."""
ROOTS = ("info", "obs", "unwrapped", "game")
STEPS = re.compile(r"\.([^.\[\]]+)|\[(-?\d+)\]")


class Probe:
    """Reads a pose from an environment.

    keys: the keys of `--pose`: paths that begin with info, obs, unwrapped (the environment without wrappers) or game (a
    variable of ViZDoom by name), with units, "info.position[0],unwrapped.agent.dir:rad"; or one of the names in READY.
    A path leads to a number or a vector of numbers. form: the form of the poses, known after the first. Raises
    SourceError for an invalid path.
    """

    def __init__(self, keys: str) -> None:
        self.keys = keys
        self._paths = [(path, unit, *_parsed(path)) for path, unit in declared(READY.get(keys.strip(), keys))]
        self.form: Form | None = None

    def __call__(self, observation: Any, info: Any, env: Any) -> NDArray[np.float64] | None:
        """The pose [P], None between two games of ViZDoom, whose picture is black then. Raises PoseMissing if a key
        does not exist (the message names the existing keys), or if a number is not finite.
        """
        parts: list[Part] = []
        values: list[float] = []
        for path, unit, root, steps in self._paths:
            bare = getattr(env, "unwrapped", env)
            if root == "game":
                if getattr(bare, "state", self) is None:
                    return None
                found = _game_variable(bare, path, steps)
            else:
                found = _walked({"info": info, "obs": observation, "unwrapped": bare}[root], root, steps)
            numbers = _numbers(found, path)
            parts += part(path, unit_of(path, unit), len(numbers))
            values += numbers
        form = self.form or Form(parts)
        if form.raw != len(values):
            raise PoseMissing(f"the pose has {len(values)} numbers, those before had {form.raw}")
        raw = np.array(values)
        fault = form.fault(raw) if np.isfinite(raw).all() else f"its numbers are not finite: {values!s:.80}"
        if fault is not None:
            raise PoseMissing(f"--pose {self.keys}: {fault}")
        self.form = form
        return form.encode(raw)


def _parsed(path: str) -> tuple[str, list[str | int]]:
    """The root of a path and its steps: names and indices."""
    root = re.split(r"[.\[]", path)[0]
    found = list(STEPS.finditer(path, len(root)))
    if root not in ROOTS or "".join(step[0] for step in found) != path[len(root) :] or (root != "obs" and not found):
        raise SourceError(
            f"--pose: {path!r} is no key of an environment; expected info.NAME, obs, obs.NAME, obs[0], unwrapped.NAME "
            f"or game.VARIABLE, or one of {', '.join(READY)}"
        )
    return root, [step[1] if step[1] is not None else int(step[2]) for step in found]


def _walked(value: Any, so_far: str, steps: Sequence[str | int]) -> Any:
    for step in steps:
        try:
            if isinstance(step, int) or isinstance(value, Mapping):
                value = value[step]
            else:
                value = getattr(value, step)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise PoseMissing(f"--pose: {so_far} has no {step!r}; it {_offers(value)}") from error
        so_far += f"[{step}]" if isinstance(step, int) else f".{step}"
    return value


def _offers(value: Any) -> str:
    """The keys that a value offers, for messages."""
    if isinstance(value, Mapping):
        names = sorted(map(str, value))
    elif isinstance(value, (np.ndarray, list, tuple)):
        return f"has {len(value)} values" if np.ndim(value) else "is one number"
    else:
        names = sorted(name for name in getattr(value, "__dict__", {}) if not name.startswith("_"))
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"has {shown}" if names else f"is {value!r:.40}" if not isinstance(value, Mapping) else "is empty"


def _numbers(found: Any, path: str) -> list[float]:
    try:
        array = np.asarray(found)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf" or array.ndim > 1 or not 1 <= array.size <= MOST_NUMBERS:
        what = f"an array {list(array.shape)}" if array.ndim else f"{found!r:.40}"
        raise PoseMissing(f"--pose: {path} is {what}, expected a number or up to {MOST_NUMBERS} of them")
    return [float(number) for number in np.atleast_1d(array)]


def _game_variable(bare: Any, path: str, steps: Sequence[str | int]) -> float:
    """A game variable of ViZDoom, also if it is not part of the state."""
    game: Any = getattr(bare, "game", None)
    name = steps[0]
    if not hasattr(game, "get_game_variable") or len(steps) != 1:
        raise PoseMissing(f"--pose: {path} is a variable of ViZDoom's game, and {type(bare).__name__} is no such game")
    from importlib import import_module

    variables = import_module("vizdoom").GameVariable  # the game itself was made by this package
    if not hasattr(variables, str(name)):
        names = [one for one in dir(variables) if one.isupper()]
        raise PoseMissing(f"--pose: ViZDoom has no variable {name!r}; it has {', '.join(names[:20])}, …")
    return float(game.get_game_variable(getattr(variables, str(name))))
