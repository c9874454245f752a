"""Environments by name, and vectors of them in which every episode has its own seed, so that runs can be resumed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from importlib import import_module
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from tttstream.errors import DependencyError
from tttstream_agents.encoder import leaves, name, pick
from tttstream_agents.errors import EnvError, ObservationError, one_line

MEMORY_GYM = ("MortarMayhem", "MysteryPath", "SearingSpotlights", "Endless-")
REGISTER = {
    "popgym": "popgym", "MiniGrid": "minigrid", "BabyAI": "minigrid", "ALE": "ale_py",
    "Vizdoom": "vizdoom.gymnasium_wrapper", **dict.fromkeys(MEMORY_GYM, "memory_gym"),
    "tttstream/Repeat": "tttstream_agents.cards", "tttstream": "tttstream_agents.revisit",
}  # fmt: skip
"""Packages that register environments when they are imported, by the start of the environments' names."""
INSTALL = {
    "popgym": "'tttstream[agents]'", "minigrid": "'tttstream[agents]'", "ale_py": "ale-py",
    "vizdoom.gymnasium_wrapper": "vizdoom",
    "memory_gym": "--no-deps memory-gym pygame-ce",
}  # fmt: skip
"""The arguments of pip install for them. memory-gym pins an old gymnasium, but works with new ones."""

WRAPPERS = ["gymnasium.wrappers", *(f"tttstream_agents.{one}" for one in ("wrappers", "places", "settings"))]


def tree(function: Callable[..., Any], obs: Any, *others: Any) -> Any:
    """Apply a function to each array in observations, which may be nested dicts and tuples."""
    if isinstance(obs, dict):
        return {key: tree(function, value, *(other[key] for other in others)) for key, value in obs.items()}
    if isinstance(obs, tuple):
        return tuple(tree(function, value, *(other[i] for other in others)) for i, value in enumerate(obs))
    return function(obs, *others)


def stack(samples: Sequence[Any]) -> Any:
    """Stack single observations: parts [B, ...]."""
    return tree(lambda *parts: np.stack([np.asarray(one) for one in parts]), samples[0], *samples[1:])


def make(
    env_id: str,
    render_mode: str | None = None,
    env_args: dict[str, Any] | None = None,
    wrappers: Sequence[Any] = (),
) -> gym.Env[Any, Any]:
    """Make an environment by its gymnasium id, also of popgym, MiniGrid, ALE, Memory Gym and ViZDoom if installed.

    env_id: "module:ID" imports a module that registers the environment. env_args: arguments of the environment.
    wrappers: innermost first, each a name or {name: {argument: value}}; see `wrapper`.

    Texts are removed from Dict observations, and the cells of MiniGrid become choices. Raises EnvError, or
    DependencyError if a package is missing.
    """
    package = next((package for start, package in REGISTER.items() if env_id.startswith(start)), None)
    # some environments take no render_mode
    arguments: dict[str, Any] = {**(env_args or {}), **({} if render_mode is None else {"render_mode": render_mode})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about older versions and failed checks of other packages
        try:
            if package is not None:
                gym_register = getattr(import_module(package), "register_envs", None)
                if package == "ale_py" and gym_register is None:
                    gym.register_envs(import_module(package))
            env: gym.Env[Any, Any] = gym.make(env_id, disable_env_checker=True, **arguments)
        except (gym.error.DependencyNotInstalled, ModuleNotFoundError) as error:
            what = getattr(error, "name", None) or " ".join(str(error).split())
            advice = f": pip install {INSTALL[package]}" if package is not None else ""
            raise DependencyError(f"{env_id} needs a package that is not installed ({what}){advice}") from error
        except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:  # no such name, or no such version
            raise EnvError(f"there is no environment {env_id!r}: {one_line(error)}") from error
        except Exception as error:  # an environment is foreign code and may raise anything
            raise EnvError(f"{env_id} cannot be made: {one_line(error)}") from error
    if isinstance(env.observation_space, spaces.Dict):
        env = Seen(env)
    for one in wrappers:
        env = wrapper(env, one)
    return env


def wrapper(env: gym.Env[Any, Any], described: Any) -> gym.Env[Any, Any]:
    """Add a wrapper to an environment.

    described: the name of the wrapper, or {name: {argument: value}}. A name is that of a class in one of the modules in
    `WRAPPERS`, or "module:Class". Lists among the values become tuples. Raises EnvError for an unknown name or wrong
    arguments.
    """
    if isinstance(described, str):
        described = {described: {}}
    if not isinstance(described, dict) or len(described) != 1:
        raise EnvError(f"expected a wrapper as a name or {{name: {{argument: value}}}}, got {described!r}")
    ((title, arguments),) = described.items()
    if not isinstance(arguments, dict | None):
        raise EnvError(f"wrapper {title}: expected {{argument: value}}, got {arguments!r}")
    module, _, name = str(title).rpartition(":")
    places = [module] if module else WRAPPERS
    try:
        found = next((one for place in places if (one := getattr(import_module(place), name, None))), None)
    except ImportError as error:
        raise EnvError(f"wrapper {title}: {one_line(error)}") from error
    if not isinstance(found, type) or not issubclass(found, gym.Wrapper):
        raise EnvError(f"there is no wrapper {title!r} in {' or '.join(places)}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in (arguments or {}).items()}
    try:
        return found(env, **values)
    except Exception as error:  # a wrapper is foreign code and may raise anything
        raise EnvError(f"wrapper {title} cannot be put around {env}: {one_line(error)}") from error


class Seen(gym.ObservationWrapper[Any, Any, Any]):
    """Removes texts from Dict observations, and makes choices of the cells [h, w, 3] of a MiniGrid picture."""

    CELL = (11, 6, 4)  # kinds of things, colours, states

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        parts = dict(without_texts(env.observation_space).spaces)
        picture = parts.get("image")
        if type(env.unwrapped).__module__.startswith("minigrid") and picture is not None and picture.shape is not None:
            parts["image"] = spaces.MultiDiscrete(np.broadcast_to(self.CELL, picture.shape).copy(), dtype=np.int64)
        self.observation_space = spaces.Dict(parts)

    def observation(self, observation: Any) -> Any:
        return only(self.observation_space, observation)


def without_texts(space: spaces.Dict) -> spaces.Dict:
    """A Dict space without texts (gymnasium's, and the missions of MiniGrid), also inside nested Dicts."""
    parts = {}
    for key, part in space.spaces.items():
        if not isinstance(part, spaces.Text) and not any(
            kind.__name__ == "MissionSpace" for kind in type(part).__mro__
        ):
            parts[key] = without_texts(part) if isinstance(part, spaces.Dict) else part
    return spaces.Dict(parts)


def only(space: spaces.Space[Any], obs: Any) -> Any:
    """The parts of an observation that are in a space."""
    return {key: only(part, obs[key]) for key, part in space.spaces.items()} if isinstance(space, spaces.Dict) else obs


class Observer(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """The base class of wrappers that change every observation and its info, also those of resets, in `seen`."""

    def __init__(self, env: gym.Env[Any, Any], **arguments: Any) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, **arguments)
        gym.Wrapper.__init__(self, env)

    def seen(self, obs: Any, info: dict[str, Any], action: Any, over: bool) -> tuple[Any, dict[str, Any]]:
        """The new observation and info. action: None at the start of an episode. over: the episode ended here."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        return self.seen(*super().reset(seed=seed, options=options), None, False)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        obs, reward, terminated, truncated, info = super().step(action)
        obs, info = self.seen(obs, info, action, terminated or truncated)
        return obs, reward, terminated, truncated, info


def legal_actions(env: gym.Env[Any, Any], info: dict[str, Any]) -> Any:
    """The mask of legal actions in info, or of a method `action_masks()` as in sb3-contrib; None if there is none."""
    mask = info.get("action_mask")
    return env.get_wrapper_attr("action_masks")() if mask is None and env.has_wrapper_attr("action_masks") else mask


class Position(NamedTuple):
    """The progress of an environment: number of the episode, steps and actions [steps, ...] in it."""

    episode: int
    steps: int
    actions: NDArray[Any]


def smallest(space: spaces.Space[Any]) -> np.dtype[Any]:
    """The smallest type that can store every action of a space, for example a byte for 0 to 255."""
    if isinstance(space, spaces.Discrete):
        return np.result_type(*(np.min_scalar_type(int(end)) for end in (space.start, space.start + space.n - 1)))
    if isinstance(space, spaces.MultiDiscrete):
        ends = space.start.min(), (space.start + space.nvec).max() - 1
        return np.result_type(*(np.min_scalar_type(int(end)) for end in ends))
    return np.dtype(object if space.dtype is None else space.dtype)


class Episodes(gym.Wrapper[Any, Any, Any, Any]):
    """Starts each episode with its own seed and stores its actions, so that a run can be resumed inside an episode.

    seed: of the run. index: of this environment in its vector. unseen: use seeds that training never uses.
    limit: the number of actions stored. A longer episode cannot be resumed; a resumed run starts a new one instead.
    Raises ObservationError for an observation with a wrong shape, which a vector with shared memory would reshape.
    Observations are copied, because an environment may overwrite the last one. If an environment has a method
    `action_masks`, as in sb3-contrib, its result becomes info["action_mask"].
    """

    copies = True

    def __init__(
        self, env: gym.Env[Any, Any], seed: int, index: int, unseen: bool = False, limit: int = 100_000
    ) -> None:  # fmt: skip
        super().__init__(env)
        self.run, self.index, self.unseen, self.limit = seed, index, unseen, limit
        self._parts = [(path, part.shape) for path, part in leaves(env.observation_space)]
        self.episode, self.steps, self.over, self._done = -1, 0, False, bytearray()
        self.differs = False  # whether the last `seek` led elsewhere
        self.first_info: dict[str, Any] = {}
        self._kept = smallest(env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the next episode, with its own seed unless one is given."""
        self.episode, self.steps, self.over, self._done = self.episode + 1, 0, False, bytearray()
        numbers = [self.run, self.index, self.episode, *[1] * self.unseen]
        own = int(np.random.SeedSequence(numbers).generate_state(1)[0])
        obs, info = self.env.reset(seed=own if seed is None else seed, options=options)
        self.first_info = self._masked(info)
        return self._checked(obs), self.first_info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step. After the end of an episode (only if a run was resumed there) start the next one."""
        if self.over:
            obs, info = self.reset()
            return obs, 0.0, False, False, info
        self.steps += 1
        if self.steps <= self.limit:
            self._done += np.asarray(action, self._kept).tobytes()
        obs, reward, terminated, truncated, info = self.env.step(action)
        amount = np.asarray(reward, dtype=np.float64).item()
        info = info if terminated or truncated else self._masked(info)
        return self._checked(obs), amount, bool(terminated), bool(truncated), info

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        mask = None if "action_mask" in info else legal_actions(self.env, info)
        return info if mask is None else {**info, "action_mask": mask}

    def _checked(self, obs: Any) -> Any:
        for path, shape in self._parts:
            found = np.shape(pick(obs, path))
            if shape is not None and found != shape:
                raise ObservationError(f"{name(path)}: expected shape {list(shape)}, got {list(found)}")
        return deepcopy(obs)

    def position(self) -> Position:
        """The progress of this environment."""
        if self.steps > self.limit:
            self._done = bytearray()
        actions = np.frombuffer(bytes(self._done), self._kept).astype(self.action_space.dtype)
        return Position(self.episode, self.steps, actions.reshape(-1, *(self.action_space.shape or ())))

    def seek(self, positions: Sequence[Position], seen: Sequence[tuple[Any, float]] | None = None) -> Any:
        """Replay this environment's episode up to its entry in `positions`. If the episode is too long, or differs from
        what was `seen` (the last observation and the return so far of each environment), start the next one and return
        its first observation; else return None."""
        episode, steps, actions = positions[self.index]
        known = steps <= self.limit
        self.episode, self.differs = episode - known, False
        obs, _ = self.reset()
        if not known:
            return obs
        total, ended = 0.0, False
        for action in actions:
            ended |= self.over
            obs, reward, terminated, truncated, _ = self.step(action)
            self.over, total = terminated or truncated, total + float(np.float32(reward))
        if seen is not None:
            last, returned = seen[self.index]
            self.differs = ended or not alike(obs, last) or not (self.over or np.isclose(total, returned))
        return self.reset()[0] if self.differs else None


def alike(obs: Any, other: Any) -> bool:
    """Whether two observations are equal up to rounding."""
    same: list[bool] = []
    tree(lambda a, b: same.append(np.allclose(np.float64(a), np.float64(b), rtol=1e-3, atol=1e-5)), obs, other)
    return all(same)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence gymnasium's warnings; errors are reported once, by the caller."""
    said, gym.logger.min_level = gym.logger.min_level, 60
    try:
        yield
    finally:
        gym.logger.min_level = said


def close(envs: Any) -> None:
    """Close a vector of environments, even if it failed or its processes do not respond."""
    with quiet():
        try:
            envs.close()
        except Exception:  # an environment is foreign code and may raise anything
            for process in getattr(envs, "processes", ()):
                process.terminate()
            envs.closed = True


def vector(
    make_env: Callable[[], gym.Env[Any, Any]],
    n_envs: int,
    seed: int,
    autoreset: str = "next_step",
    workers: int = 0,
    unseen: bool = False,
) -> SyncVectorEnv[Any, Any] | AsyncVectorEnv[Any, Any]:
    """A vector of `n_envs` environments, each in an `Episodes`, in this process or (workers > 0) one process each."""
    mode = {"next_step": AutoresetMode.NEXT_STEP, "same_step": AutoresetMode.SAME_STEP}[autoreset]
    makers = [lambda index=index: Episodes(make_env(), seed, index, unseen) for index in range(n_envs)]
    kind: Any = AsyncVectorEnv if workers else SyncVectorEnv
    return kind(makers, autoreset_mode=mode)
