"""Frames of a gymnasium environment that is played at random."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.frames import Frame
from tttstream.sources.base import Source

try:
    import gymnasium
    from gymnasium.error import DependencyNotInstalled
except ImportError as error:
    raise DependencyError("playing an environment needs gymnasium: pip install gymnasium") from error


class Gym(Source):
    """What an environment shows under random actions: one frame a step, and a new episode where one ends.

    env_id: as gymnasium.make takes it, "CartPole-v1" or "module:ENV_ID"; it must render "rgb_array".
    seed: of the environment and of the actions; the same seed gives the same frames where the environment keeps to it.
    `episodes` counts those begun. time_s goes by the environment's own render_fps, 30 where it names none.

    Raises SourceError where there is no such environment, it shows no pictures, or it fails; DependencyError where a
    package is missing that it needs, with the package's name.
    """

    def __init__(self, env_id: str, *, seed: int = 0) -> None:
        self.name, self._id, self._seed = f"gym:{env_id}", env_id, seed
        self._env: gymnasium.Env[Any, Any] | None = None
        self._restart()
        self.fps = float(self._playing().metadata.get("render_fps") or 30)

    def _playing(self) -> gymnasium.Env[Any, Any]:
        if self._env is None:
            raise SourceError(f"{self.name} is closed; open it again")
        return self._env

    def _restart(self) -> None:
        """Make the environment anew and stand before its first step."""
        self.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of older versions, and of a render mode that is judged below
            env = self._env = self._guard(gymnasium.make, self._id, render_mode="rgb_array", disable_env_checker=True)
        env.action_space.seed(self._seed)
        self._guard(env.reset, seed=self._seed)
        self.episodes, self._index, self._ended = 1, 0, False
        self._picture()

    def _guard(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Call into the environment; whatever it raises becomes one line."""
        try:
            return call(*args, **kwargs)
        except (DependencyNotInstalled, ModuleNotFoundError) as error:
            advice = _one_line(error)  # gymnasium's own names the right extra
            missing = getattr(error, "name", None) or getattr(error.__cause__, "name", None)
            if "pip install" not in advice and missing:
                advice = f"pip install {missing.split('.')[0]}"
            raise DependencyError(f"{self.name} needs a package that is not installed: {advice}") from error
        except gymnasium.error.UnregisteredEnv as error:
            raise SourceError(f"there is no environment {self._id!r}: {_one_line(error)}") from error
        except gymnasium.error.Error as error:
            raise SourceError(f"{self.name} cannot be played: {_one_line(error)}") from error
        except Exception as error:  # an environment is foreign code and may raise anything
            raise SourceError(f"{self.name} failed: {type(error).__name__}: {_one_line(error)}") from error

    def _picture(self) -> NDArray[np.generic]:
        picture = self._guard(self._playing().render)
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] not in (3, 4):
            raise SourceError(f"{self.name} shows no RGB pictures; take an environment with render mode 'rgb_array'")
        return np.array(picture[..., :3])

    def _step(self) -> None:
        """Take the random action that leads to the next frame."""
        env = self._playing()
        if self._ended:
            self._guard(env.reset)
            self.episodes, self._ended = self.episodes + 1, False
            return
        _, _, terminated, truncated, _ = self._guard(env.step, env.action_space.sample())
        self._ended = bool(terminated or truncated)

    def __iter__(self) -> Iterator[Frame]:
        while self._env is not None:
            if self._index:
                self._step()
            self._index += 1
            yield Frame(self._picture(), self._index - 1, (self._index - 1) / (self.fps or 30))

    def position(self) -> dict[str, Any]:
        """The number of the next frame, which with the seed says everything."""
        return {"source": self.name, "index": self._index, "seed": self._seed}

    def seek(self, position: dict[str, Any]) -> None:
        """Play from the start again, without showing it, up to the position."""
        self._check(position)
        if position["seed"] != self._seed:
            raise SourceError(f"{self.name}: the position is of seed {position['seed']}, this source has {self._seed}")
        self._restart()
        for _ in range(position["index"] - 1):
            self._step()
        self._index = position["index"]

    def close(self) -> None:
        """Close the environment."""
        env, self._env = self._env, None
        if env is not None:
            self._guard(env.close)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no reason given"
