"""Environments under random actions: repeatable, seekable, and with clear errors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from numpy.typing import NDArray

from tttstream.errors import DependencyError, SourceError
from tttstream.sources import open_source
from tttstream.sources.gym import Gym


class Dot(gymnasium.Env[Any, Any]):
    """A dot that random actions push about; an episode ends when it leaves, or after 20 steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    action_space = gymnasium.spaces.Discrete(3)
    observation_space = gymnasium.spaces.Box(-9, 9, (1,))

    def __init__(self, render_mode: str | None = None, fault: str = "") -> None:
        self.render_mode, self.fault = render_mode, fault
        if fault == "dependency":
            raise DependencyNotInstalled('pygame is missing, run `pip install "gymnasium[classic-control]"`')
        if fault == "module":
            raise ModuleNotFoundError("No module named 'paint'", name="paint.brushes")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at, self.steps = int(self.np_random.integers(-2, 3)), 0
        return np.array([self.at], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.fault == "step":
            raise RuntimeError("the engine\nstalled")
        self.at, self.steps = self.at + int(action) - 1, self.steps + 1
        return np.array([self.at], np.float32), 0.0, abs(self.at) > 8, self.steps >= 20, {}

    def render(self) -> Any:
        if self.fault == "blind":
            return None
        picture: NDArray[np.uint8] = np.zeros((8, 20, 3), np.uint8)
        picture[2:4, 9 + self.at : 11 + self.at] = 255
        return picture


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    faults = {"Dot": "", "Blind": "blind", "Stalls": "step", "Needs": "dependency", "Imports": "module"}
    for name, fault in faults.items():
        gymnasium.register(f"{name}-v0", entry_point=Dot, kwargs={"fault": fault})
    yield
    for name in faults:
        del gymnasium.registry[f"{name}-v0"]


def frames(seed: int, count: int, position: dict[str, Any] | None = None) -> list[tuple[int, float, bytes]]:
    with open_source("gym:Dot-v0", seed=seed) as source:
        if position:
            source.seek(position)
        return [(f.index, f.time_s, f.image.tobytes()) for f in itertools.islice(source, count)]


def test_frames_across_episodes() -> None:
    with open_source("gym:Dot-v0") as source:
        shown = list(itertools.islice(source, 100))
        assert isinstance(source, Gym)
        assert source.episodes >= 5
        assert (source.name, source.fps, source.frames) == ("gym:Dot-v0", 20, None)
    assert [frame.index for frame in shown] == list(range(100))
    assert shown[7].time_s == 7 / 20
    assert {frame.image.shape for frame in shown} == {(8, 20, 3)}
    assert len({frame.image.tobytes() for frame in shown}) > 4


def test_a_seed_repeats_and_another_differs() -> None:
    assert frames(1, 80) == frames(1, 80) != frames(2, 80)


@pytest.mark.parametrize("index", [0, 1, 2, 20, 21, 22, 60])
def test_seeking(index: int) -> None:
    whole = frames(3, 80)
    with open_source("gym:Dot-v0", seed=3) as source:
        list(itertools.islice(source, index))
        position = json.loads(json.dumps(source.position()))
    assert frames(3, 80 - index, position) == whole[index:]
    with pytest.raises(SourceError, match="seed 3"):
        frames(4, 1, position)


@pytest.mark.parametrize(
    ("env_id", "kind", "message"),
    [
        ("Nowhere-v0", SourceError, "there is no environment 'Nowhere-v0'"),
        ("not an id", SourceError, "cannot be played"),
        ("Blind-v0", SourceError, "renders no RGB pictures"),
        ("Needs-v0", DependencyError, r"pip install .gymnasium\[classic-control\]"),
        ("Imports-v0", DependencyError, "pip install paint$"),
        ("nomodule:Dot-v0", DependencyError, "pip install nomodule$"),
    ],
)
def test_environments_that_cannot_be_played(env_id: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        open_source(f"gym:{env_id}")
    assert "\n" not in str(caught.value)


def test_an_environment_that_fails_on_the_way() -> None:
    with open_source("gym:Stalls-v0") as source, pytest.raises(SourceError, match="RuntimeError: the engine stalled"):
        list(itertools.islice(source, 5))


def test_a_closed_source_ends() -> None:
    source = open_source("gym:Dot-v0")
    next(iter(source))
    source.close()
    source.close()
    assert list(source) == []


class Robot(Dot):
    """A dot whose position is available in all ways that environments have, in the info of a step but not of a
    reset."""

    class Agent:
        def __init__(self) -> None:
            self.pos, self.dir = np.zeros(3), 0.0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.agent = self.Agent()

    def _tell(self) -> None:
        self.agent.pos[:] = self.at, 0, -self.at  # in place, as MiniWorld does
        self.agent.dir = self.at * np.pi / 2
        self.bad = np.nan if self.at == 1 else 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        self._tell()
        return {"at": observation, "name": "dot"}, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        self._tell()
        info = {"x": self.at, "position": [self.at, -self.at]}
        return {"at": observation, "name": "dot"}, reward, terminated, truncated, info


class Variables:
    """As ViZDoom's enumeration of game variables."""

    POSITION_X, POSITION_Y, ANGLE = "X", "Y", "A"


class Doom(Dot):
    """Like ViZDoom's own gymnasium wrapper: a game with variables, and no state at the end of an episode."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.game, self.state = self, object()

    def get_game_variable(self, variable: str) -> float:
        return {"X": float(self.at), "Y": 7.0, "A": 90.0}[variable]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        result = super().step(action)
        self.state = None if result[2] or result[3] else object()  # type: ignore[assignment]
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.state = object()
        return super().reset(seed=seed)


class Seeker:
    """Goes left for a given number of steps, then right: a policy with a memory."""

    def __init__(self) -> None:
        self.steps = 0

    def __call__(self, observation: Any, info: dict[str, Any], env: Any) -> int:
        self.steps += 1
        return 0 if self.steps % 7 < 3 else 2


def right(observation: Any, info: dict[str, Any], env: Any) -> int:
    return 2 if observation["at"][0] < 3 and env.unwrapped.steps >= 0 else 1


@pytest.fixture
def robots(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    monkeypatch.setitem(sys.modules, "vizdoom", types.SimpleNamespace(GameVariable=Variables))  # type: ignore[arg-type]
    policies = types.ModuleType("policies_of_a_user")
    policies.right, policies.number = right, 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "policies_of_a_user", policies)
    for name, kind in (("Robot-v0", Robot), ("Doom-v0", Doom)):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=kind)


@pytest.mark.usefixtures("robots")
class TestPoses:
    def poses(self, pose: str, count: int = 30, env: str = "gym:Robot-v0", **options: Any) -> list[list[float]]:
        with open_source(env, pose=pose, **options) as source:
            found = [frame.pose for frame in itertools.islice(source, count)]
        return [pose.tolist() for pose in found if pose is not None]

    def test_values_by_key(self) -> None:
        with open_source("gym:Robot-v0", pose="obs.at,unwrapped.agent.pos[2],unwrapped.agent.dir:rad") as source:
            frames = list(itertools.islice(source, 60))
            assert source.pose_form is not None
            assert source.pose_form.directions == (2, 3)
        for frame in frames:
            at = int(np.flatnonzero(frame.image[2, :, 0])[0]) - 9
            np.testing.assert_allclose(frame.pose, [at, -at, np.cos(at * np.pi / 2), np.sin(at * np.pi / 2)], atol=1e-9)
        assert len({frame.pose[0] for frame in frames}) > 4

    def test_info_that_a_reset_does_not_give(self) -> None:
        with open_source("gym:Robot-v0", pose="info.x, info.position[1]") as source:
            frames = list(itertools.islice(source, 40))
            assert source.unposed == source.skipped == source.episodes
            assert "info has no 'x'; it is empty" in source.remarks()[0]
        assert [frame.index for frame in frames] == list(range(40))
        assert frames[0].time_s == 1 / 20
        assert all(frame.pose is not None and frame.pose[0] == -frame.pose[1] for frame in frames)
        with pytest.raises(SourceError, match="step 0: --pose: info has no 'x'"):
            self.poses("info.x", on_error="raise")

    def test_not_finite(self) -> None:
        found = self.poses("obs.at,unwrapped.bad", 50)
        assert 1 not in {at for at, _ in found}
        with pytest.raises(SourceError, match="not finite"):
            self.poses("obs.at,unwrapped.bad", 50, on_error="raise")

    @pytest.mark.parametrize("index", [0, 1, 2, 19, 33])
    @pytest.mark.parametrize("policy", [None, Seeker])
    def test_seeking(self, index: int, policy: Any) -> None:
        def frames(position: dict[str, Any] | None, count: int) -> tuple[list[Any], int]:
            with open_source("gym:Robot-v0", seed=3, pose="info.x", policy=policy) as source:
                if position:
                    source.seek(position)
                found = [(f.index, f.time_s, f.pose, f.image.tobytes()) for f in itertools.islice(source, count)]
                return found, source.unposed

        whole, unposed = frames(None, 50)
        with open_source("gym:Robot-v0", seed=3, pose="info.x", policy=policy) as source:
            list(itertools.islice(source, index))
            position = json.loads(json.dumps(source.position()))
        assert frames(position, 50 - index) == (whole[index:], unposed)

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ("info.y", r"step 1: --pose: info has no 'y'; it has position, x"),
            ("obs.where", "obs has no 'where'; it has at, name"),
            ("obs.name", "obs.name is 'dot', expected a number"),
            ("obs.at[3]", "obs.at has no 3; it has 1 values"),
            ("unwrapped.agent.heading", "unwrapped.agent has no 'heading'; it has dir, pos"),
            ("unwrapped.agent", "expected a number"),
            ("unwrapped.agent.dir", "seems to be an angle"),
            ("game.POSITION_X", "Robot is no such game"),
            ("where.x", "no key of an environment"),
            ("info", "no key of an environment"),
            ("info.x..y", "no key of an environment"),
            ("info.x:miles", "NAME:UNIT"),
        ],
    )
    def test_keys_that_are_not_there(self, keys: str, said: str) -> None:
        with pytest.raises(SourceError, match=said) as caught:
            self.poses(keys, 3)
        assert "\n" not in str(caught.value)

    def test_minigrid(self) -> None:
        pytest.importorskip("minigrid")
        with open_source("gym:MiniGrid-Empty-6x6-v0", pose="minigrid", seed=1) as source:
            assert isinstance(source, Gym)
            turns = [[1, 0], [0, 1], [-1, 0], [0, -1]]
            for frame in itertools.islice(source, 25):
                bare: Any = source._playing().unwrapped
                assert frame.pose is not None
                assert frame.pose.tolist() == [*bare.agent_pos, *turns[bare.agent_dir]]

    def test_miniworld_by_its_attributes(self) -> None:
        for pose in self.poses("miniworld"):
            x, _, z, c, s = pose
            assert (z, round(c), round(s)) == (-x, round(np.cos(x * np.pi / 2)), round(np.sin(x * np.pi / 2)))

    def test_vizdoom_by_its_attributes(self) -> None:
        with open_source("gym:Doom-v0", pose="vizdoom", on_error="raise") as source:
            frames = list(itertools.islice(source, 50))
            assert source.unposed == source.episodes - 1 > 0  # type: ignore[attr-defined]
        for frame in frames:
            assert frame.pose is not None
            assert frame.pose.tolist() == [int(np.flatnonzero(frame.image[2, :, 0])[0]) - 9, 7, 0, 1]
        with pytest.raises(SourceError, match="no variable 'POSITION_Q'; it has ANGLE, POSITION_X, POSITION_Y"):
            self.poses("game.POSITION_Q", env="gym:Doom-v0")

    def test_a_policy_by_name(self) -> None:
        poses = self.poses("obs.at", 12, policy="policies_of_a_user:right")
        assert poses[-1] == [3]
        assert [b[0] - a[0] for a, b in itertools.pairwise(poses)] == [1] * int(3 - poses[0][0]) + [0] * (
            11 - int(3 - poses[0][0])
        )

    @pytest.mark.parametrize(
        ("policy", "said"),
        [
            ("right", "expected PACKAGE.MODULE:CALLABLE"),
            ("no_such_module:act", "no_such_module cannot be imported: ModuleNotFoundError"),
            ("policies_of_a_user:left", "has no 'left'; it has right"),
            ("policies_of_a_user:number", "number is no callable but int"),
            (lambda observation, info: 0, "failed: TypeError"),
        ],
    )
    def test_policies_that_are_not_there(self, policy: Any, said: str) -> None:
        with pytest.raises(SourceError, match=said):
            self.poses("obs.at", 3, policy=policy)

    @pytest.mark.parametrize(("taken", "then"), [("obs.at", "obs.at:deg"), (None, "obs.at"), ("obs.at", None)])
    def test_a_position_belongs_to_its_keys(self, taken: str | None, then: str | None) -> None:
        with open_source("gym:Robot-v0", pose=taken) as source:
            list(itertools.islice(source, 3))
            position = source.position()
        said = "no poses" if taken is None else f"--pose {taken}"
        with open_source("gym:Robot-v0", pose=then) as source, pytest.raises(SourceError, match=f"with {said};"):
            source.seek(position)

    def test_a_position_belongs_to_its_policy(self) -> None:
        with open_source("gym:Robot-v0", policy=right) as source:
            list(itertools.islice(source, 3))
            position = source.position()
        with open_source("gym:Robot-v0") as source, pytest.raises(SourceError, match="right, this source has None"):
            source.seek(position)
