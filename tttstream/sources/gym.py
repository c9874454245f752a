"""Frames of a gymnasium environment that is played at random or by a policy, with the pose of its agent."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.frames import Frame
from tttstream.poses import Form, PoseMissing
from tttstream.sources.base import Source
from tttstream.sources.policy import Policy, found, fresh
from tttstream.sources.probe import Probe

try:
    import gymnasium
    from gymnasium.error import DependencyNotInstalled
except ImportError as error:
    raise DependencyError("playing an environment needs gymnasium: pip install gymnasium") from error


PATIENCE = 1000  # steps in a row without a pose, then the source is given up


class Gym(Source):
    """The rendered frames of an environment with random actions or a policy: one frame for each step; a new episode
    follows the end of an episode.

    env_id: an id for gymnasium.make, "CartPole-v1" or "module:ENV_ID"; the environment must support "rgb_array". seed:
    of the environment and the actions; the same seed gives the same frames if the environment is deterministic.
    `episodes` is the number of episodes so far. time_s follows from the environment's render_fps, 30 if it has none.
    pose: the keys of the pose, as in `tttstream.sources.probe.Probe`. on_error: for frames without a pose. "skip" skips
    them and counts them in `skipped` and `unposed` (the time advances, the number does not); "raise" raises
    SourceError. A key that was never present raises SourceError in both cases. policy: (observation, info, env) ->
    action, or its name "MODULE:CALLABLE". A class is instantiated with the environment; a function must be
    deterministic, otherwise `seek` cannot find positions again.

    Raises SourceError if there is no such environment, it renders no pictures, or it fails; DependencyError, with the
    name of the package, if it needs a missing package.
    """

    def __init__(
        self,
        env_id: str,
        *,
        seed: int = 0,
        pose: str | None = None,
        policy: str | Policy | None = None,
        on_error: str = "skip",
    ) -> None:
        self.name, self._id, self._seed = f"gym:{env_id}", env_id, seed
        self._strict = on_error == "raise"
        self._probe = None if pose is None else Probe(pose)
        self._policy = None if policy is None else found(policy)
        self._env: gymnasium.Env[Any, Any] | None = None
        self._seen: tuple[Any, Any] = None, None  # the last observation and info
        self._first_missing = ""
        self._restart()
        self.fps = float(self._playing().metadata.get("render_fps") or 30)

    def _playing(self) -> gymnasium.Env[Any, Any]:
        if self._env is None:
            raise SourceError(f"{self.name} is closed; open it again")
        return self._env

    def _restart(self) -> None:
        """Create the environment again, before its first step."""
        self.close()
        with warnings.catch_warnings():
            # Warnings of older versions, and about the render mode, which is checked below
            warnings.simplefilter("ignore")
            env = self._env = self._guard(gymnasium.make, self._id, render_mode="rgb_array", disable_env_checker=True)
        env.action_space.seed(self._seed)
        self._seen = self._guard(env.reset, seed=self._seed)
        self._act = None if self._policy is None else fresh(self._policy)
        self.episodes, self._index, self._steps, self._ended = 1, 0, 0, False
        self.skipped = self.unposed = 0
        self._picture()

    def _guard(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the environment; any exception becomes a SourceError of one line."""
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
            raise SourceError(f"{self.name} renders no RGB pictures; use an environment with render mode 'rgb_array'")
        return np.array(picture[..., :3])

    def _step(self) -> None:
        """Execute the action that leads to the next frame."""
        env = self._playing()
        if self._ended:
            self._seen = self._guard(env.reset)
            self.episodes, self._ended = self.episodes + 1, False
            return
        action = env.action_space.sample() if self._act is None else self._guard(self._act, *self._seen, env)
        observation, _, terminated, truncated, info = self._guard(env.step, action)
        self._seen = observation, info
        self._ended = bool(terminated or truncated)

    def __iter__(self) -> Iterator[Frame]:
        without = 0
        while self._env is not None:
            if self._steps:
                self._step()
            self._steps += 1
            if (pose := self._pose()) is None and self._probe is not None:
                self.skipped, self.unposed, without = self.skipped + 1, self.unposed + 1, without + 1
                if without >= PATIENCE:
                    raise SourceError(f"{self.name}: {without} steps in a row without a pose; {self.remarks()[0]}")
                continue
            without = 0
            self._index += 1
            yield Frame(self._picture(), self._index - 1, (self._steps - 1) / (self.fps or 30), pose)

    def _pose(self) -> NDArray[np.float64] | None:
        """The pose of this step, None if it has none. Raises PoseMissing with "raise", or if no step had one so far."""
        if self._probe is None:
            return None
        try:
            return self._probe(*self._seen, env=self._env)
        except PoseMissing as missing:
            # In many environments the info of a reset has fewer keys than that of a step.
            if self._strict or (self._probe.form is None and self._steps > 1):
                raise PoseMissing(f"{self.name}, step {self._steps - 1}: {missing}") from missing
            self._first_missing = self._first_missing or f"step {self._steps - 1}: {missing}"
            return None

    @property
    def pose_form(self) -> Form | None:  # type: ignore[override]
        """The form of the poses, None before the first."""
        return None if self._probe is None else self._probe.form

    def remarks(self) -> list[str]:
        why = self._first_missing or "there is no picture between two games"
        return [f"{self.unposed} frames skipped without a pose, the first: {why}"] if self.unposed else []

    def position(self) -> dict[str, Any]:
        """The number of the next frame and the seed."""
        position = {"source": self.name, "index": self._index, "seed": self._seed}
        more = {"steps": self._steps, "unposed": self.unposed, "policy": self._policy_name, "pose": self._keys}
        return position if self._probe is None and self._policy is None else position | more

    @property
    def _keys(self) -> str | None:
        return None if self._probe is None else self._probe.keys

    @property
    def _policy_name(self) -> str | None:
        policy = self._policy
        return (
            None if policy is None else f"{policy.__module__}:{getattr(policy, '__qualname__', type(policy).__name__)}"
        )

    def seek(self, position: dict[str, Any]) -> None:
        """Repeat all steps from the start up to the position, without yielding frames."""
        self._check(position)
        if position["seed"] != self._seed:
            raise SourceError(
                f"{self.name}: the position is from seed {position['seed']}, this source has {self._seed}"
            )
        if position.get("policy") != self._policy_name:
            raise SourceError(
                f"{self.name}: the position is from the policy {position.get('policy')}, this source has "
                f"{self._policy_name}"
            )
        steps = position.get("steps", position["index"])
        # positions of older versions have no keys; one without "steps" is of a source without poses
        keys = position.get("pose", self._keys if "steps" in position else None)
        if keys != self._keys or (keys is None and steps != position["index"]):
            taken = "no poses" if keys is None and steps == position["index"] else f"--pose {keys or '…'}"
            raise SourceError(f"{self.name}: the position was taken with {taken}; continue with the same")
        self._restart()
        for _ in range(steps - 1):
            self._step()
        self._index, self._steps = position["index"], steps
        self.skipped = self.unposed = position.get("unposed", 0)

    def close(self) -> None:
        """Close the environment."""
        env, self._env = self._env, None
        if env is not None:
            self._guard(env.close)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no reason given"
