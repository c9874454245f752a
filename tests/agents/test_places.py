"""Poses as keys, the map for agents without memory, and the endless revisit."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from tttstream_agents import MapObservation, PoseObservation
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError, ObservationError, SpaceError
from tttstream_agents.places import PlaceMap, fourier
from tttstream_agents.revisit import Revisit


def test_the_revisit_environment_rewards_the_symbol_that_was_seen_there() -> None:
    env = make("tttstream/Revisit-v0", env_args={"side": 4, "kinds": 5, "exchange": 100, "steps": 250})
    obs, info = env.reset(seed=0)
    seen: dict[tuple[int, ...], int] = {}
    truncated, time = False, 0
    while not truncated:
        assert env.observation_space.contains(obs)
        here = tuple(info["pose"].astype(int))
        np.testing.assert_allclose(obs["here"], fourier(np.array(here), 4), atol=1e-6)
        seen[here] = int(obs["symbol"])
        asked = next(p for p in np.ndindex(4, 4) if np.allclose(fourier(np.array(p), 4), obs["asked"], atol=1e-5))
        assert info["answer"] == seen.get(asked, -1)
        assert (info["age"] < 0) == (asked not in seen)
        guess = time % 5
        expected = 0.0 if asked not in seen else 1.0 if guess == seen[asked] else -1.0
        obs, reward, terminated, truncated, info = env.step(guess)
        time += 1
        assert reward == expected
        assert not terminated
        assert tuple(info["pose"].astype(int)) == asked
        if time % 100 == 0:
            seen = {}
    assert time == 250
    again = make("tttstream/Revisit-v0", env_args={"side": 4, "kinds": 5, "exchange": 100, "steps": 250})
    np.testing.assert_array_equal(again.reset(seed=0)[0]["asked"], env.reset(seed=0)[0]["asked"])
    endless = make("tttstream/EndlessRevisit-v0")
    endless.reset(seed=0)
    assert not any(endless.step(0)[3] for _ in range(2000))
    with pytest.raises(EnvError, match="at least 2"):
        make("tttstream/Revisit-v0", env_args={"side": 1})


def test_the_pictures_of_the_revisit_show_the_symbols() -> None:
    env = Revisit(side=3, kinds=3, pictures=24)
    env.photographs = [np.full((48, 60, 3), 20 * 3**kind, np.uint8) for kind in range(3)]  # distinct at any brightness
    obs, _ = env.reset(seed=1)
    for _ in range(60):
        light = float(obs["picture"].mean()) / 20
        assert env.observation_space.contains(obs)
        assert int(np.log(light / 0.69) / np.log(3)) == env.world[tuple(env.place)]
        obs = env.step(0)[0]


def test_each_visit_shows_another_part_of_the_photograph() -> None:
    env, again = Revisit(side=2, pictures=24), Revisit(side=2, pictures=24)
    shown: dict[tuple[int, ...], list[bytes]] = {}
    obs, info = env.reset(seed=2)
    same, _ = again.reset(seed=2)
    for _ in range(20):
        np.testing.assert_array_equal(obs["picture"], same["picture"])
        assert obs["picture"].std() > 2
        shown.setdefault(tuple(info["pose"]), []).append(obs["picture"].tobytes())
        (obs, *_, info), (same, *_) = env.step(0), again.step(0)
    assert all(len(set(pictures)) == len(pictures) for pictures in shown.values())
    with pytest.raises(ValueError, match="at most 10 kinds"):
        Revisit(kinds=11, pictures=24)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_of_gymnasium_passes() -> None:
    check_env(Revisit(render_mode="rgb_array"))
    check_env(Revisit(pictures=24), skip_render_check=True)
    assert Revisit(side=3, render_mode="rgb_array").metadata["render_fps"] == 10
    check_env(PoseObservation(Revisit(), "pose"), skip_render_check=True)
    check_env(MapObservation(Revisit(), "pose"), skip_render_check=True)


def test_features_of_different_places_differ() -> None:
    grid = np.moveaxis(np.mgrid[:6, :6], 0, -1).reshape(-1, 2)
    rows = fourier(grid, 6)
    assert len({tuple(np.round(row, 6)) for row in rows}) == 36
    np.testing.assert_allclose(fourier([7, 3], 6), fourier([1, 3], 6), atol=1e-9)  # a torus
    assert fourier([1.0, 2.0, 3.0], 32.0, 16).shape == (96,)


class Line(gym.Env[Any, Any]):
    """Places 0 to 9 on a line, each with a number of its own; action 1 continues, action 0 back."""

    def __init__(self, bad: bool = False) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Discrete(2)
        self.bad = bad

    def _out(self) -> tuple[Any, dict[str, Any]]:
        where = float("nan") if self.bad else float(self.place)
        return self.numbers[self.place], {"robot": {"x": where}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.numbers = self.np_random.uniform(-1, 1, (10, 2)).astype(np.float32)
        self.place = 0
        return self._out()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = min(9, max(0, self.place + 2 * int(action) - 1))
        obs, info = self._out()
        return obs, 0.0, False, False, info


@pytest.mark.parametrize("source", [{"keys": "robot.x"}, {"keys": ["env.place"]}, {"moves": [[-1], [1]]}])
def test_the_pose_is_of_info_the_environment_or_the_actions(source: dict[str, Any]) -> None:
    env = PoseObservation(Line(), **source, period=20.0)
    obs, _ = env.reset(seed=0)
    for place, action in enumerate([1, 1, 1]):
        np.testing.assert_allclose(obs["pose"], fourier([place], 20.0, 16), atol=1e-6)
        assert env.observation_space.contains(obs)
        obs, *_ = env.step(action)
    np.testing.assert_allclose(env.reset(seed=1)[0]["pose"], fourier([0], 20.0, 16), atol=1e-6)


@pytest.mark.parametrize(("part", "options"), [("pose", {}), ("grid", {"grid": [3]}), ("around", {"around": [[1]]})])
def test_parts_of_an_observation_are_not_replaced(part: str, options: dict[str, Any]) -> None:
    env = gym.wrappers.TransformObservation(
        Line(), lambda obs: {part: obs}, spaces.Dict({part: Line().observation_space})
    )
    with pytest.raises(SpaceError, match=f"already have a part '{part}'"):
        PoseObservation(env, "robot.x", **options)
    if part != "pose":  # a name that is not needed
        assert part in PoseObservation(env, "robot.x").observation_space.spaces  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", [{"keys": "robot.x"}, {"moves": {0: [-1], 1: [1]}}])
def test_the_map_returns_what_was_observed_at_a_place_and_around_it(source: dict[str, Any]) -> None:
    env = MapObservation(Line(), **source, around=[[0], [1], [-1]], scale=0.3, features=4096)
    obs, _ = env.reset(seed=0)
    assert not obs[2:].any()  # an empty map
    for action in [1] * 8 + [0] * 5:
        obs, *_ = env.step(action)
    here, ahead, behind = obs[2:].reshape(3, 3)
    numbers, place = env.unwrapped.numbers, env.unwrapped.place  # type: ignore[attr-defined]
    assert place == 3
    for row, where in ((here, 3), (ahead, 4), (behind, 2)):
        np.testing.assert_allclose(row[:2], numbers[where], atol=0.12)
        assert 0.85 < row[2] < 1.15
    unknown = env.map.read(np.array([20.0]))
    assert abs(unknown[-1]) < 0.3


def test_a_map_of_constant_size_holds_a_world_and_its_changes() -> None:
    """144 places of a grid, each written several times, one of them changed."""
    generator, places = np.random.default_rng(0), np.moveaxis(np.mgrid[:12, :12], 0, -1).reshape(-1, 2)
    values, kept = generator.normal(size=(144, 8)), PlaceMap(2, 8, 1024, 0.4)
    size = kept.weights.size
    for _ in range(8):
        for place in generator.permutation(144):
            kept.write(places[place], values[place])
    values[70] = 3.0
    kept.write(places[70], values[70])
    error = kept.read(places)[:, :-1] - values
    assert np.square(error).mean() < 0.1
    assert np.square(error[70]).mean() < 1e-6
    assert kept.weights.size == size


def test_a_map_lets_a_memoryless_rule_answer_the_revisit() -> None:
    """The map is asked at the four neighbours; reading the asked one right needs no memory in the agent."""
    env = MapObservation(Revisit(side=5, kinds=3), "pose", around=[[0, 1], [1, 0], [0, -1], [-1, 0]], show="symbol")
    env.reset(seed=0)
    right, asked = 0, 0
    for _ in range(400):
        inner = env.unwrapped
        step = (inner.next - inner.place + 2) % 5 - 2  # type: ignore[attr-defined]
        read = env.map.read(inner.place + step)  # type: ignore[attr-defined]
        answer = inner.answer  # type: ignore[attr-defined]
        straight = ((inner.place + step) >= 0).all() and ((inner.place + step) < 5).all()  # type: ignore[attr-defined]
        if answer >= 0 and straight:
            asked, right = asked + 1, right + (int(read[:3].argmax()) == answer)
        env.step(0)
    assert asked > 150
    assert right / asked > 0.95


def test_mistakes_are_named() -> None:
    for wrapped in (PoseObservation, MapObservation):
        with pytest.raises(EnvError, match="expected either keys"):
            wrapped(Line())
        with pytest.raises(EnvError, match=r"no pose 'robot\.y': info has robot"):
            wrapped(Line(), "robot.y")
        with pytest.raises(ObservationError, match="not finite"):
            wrapped(Line(bad=True), "robot.x").reset()
    with pytest.raises(ObservationError, match="not finite"):
        PoseObservation(Line(), moves=[[np.nan], [1]]).step(0)
    with pytest.raises(EnvError, match="moves of one length"):
        PoseObservation(Line(), moves=[[1], [1, 2]])
    with pytest.raises(EnvError, match="offsets of 1 numbers"):
        MapObservation(Line(), "robot.x", around=[[1, 2]])
    with pytest.raises(SpaceError, match="no part 'symbol'"):
        MapObservation(Line(), "robot.x", show="symbol")
