"""Card games without an end; wrappers for lengths of episodes, options of resets and fewer actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from tttstream_agents import ResetOptions, SampledTimeLimit, SomeActions
from tttstream_agents.cards import Repeat
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError, SpaceError


@pytest.mark.parametrize(("name", "back"), [("First", 0), ("Previous", 4)])
def test_recall_of_an_earlier_card_is_rewarded(name: str, back: int) -> None:
    env = make(f"tttstream/Repeat{name}-v0", env_args={"steps": 60, "scale": 0.5})
    card, _ = env.reset(seed=3)
    shown, truncated = [card], False
    while not truncated:
        asked = shown[0] if not back else shown[-back] if len(shown) >= back else None
        assert env.unwrapped.answer == (-1 if asked is None else asked)  # type: ignore[attr-defined]
        guess = len(shown) % 4
        card, reward, terminated, truncated, _ = env.step(guess)
        assert reward == (0.0 if asked is None else 0.5 if guess == asked else -0.5)
        assert not terminated
        shown.append(card)
    assert len(shown) == 61
    assert set(shown) == {0, 1, 2, 3}


def test_lengths_are_drawn_evenly_in_their_logarithm() -> None:
    env, found = make("tttstream/RepeatFirst-v0", wrappers=[{"SampledTimeLimit": {"low": 4, "high": 63}}]), []
    for seed in range(400):
        _, info = env.reset(seed=seed)
        steps, truncated = 0, False
        while not truncated:
            *_, truncated, _ = env.step(0)
            steps += 1
        assert steps == info["time_limit"]
        found.append(steps)
    assert (min(found), max(found)) == (4, 63)
    share = np.histogram(found, [4, 8, 16, 32, 64])[0] / 400
    np.testing.assert_allclose(share, 0.25, atol=0.08)
    assert env.reset(seed=7)[1] == env.reset(seed=7)[1]


class OwnGenerator(gym.Env[Any, Any]):
    """An environment that does not pass its seed to gymnasium."""

    observation_space, action_space = spaces.Discrete(9), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.generator = np.random.default_rng(seed)
        return int(self.generator.integers(9)), {}


def test_lengths_follow_the_seed_of_every_environment() -> None:
    found = []
    for _ in range(3):
        env = SampledTimeLimit(OwnGenerator(), 2, 500)
        found.append([env.reset(seed=seed)[1]["time_limit"] for seed in (3, None, 3, 4)])
    assert found[0] == found[1] == found[2]
    assert found[0][0] == found[0][2] != found[0][3]


def test_the_environments_own_end_is_kept(script: Any) -> None:
    """Episodes of 3, 5 and 4 steps; each second one is truncated by itself."""
    env, ends = SampledTimeLimit(script(), 4, 4), []
    for _ in range(3):
        env.reset(seed=0)
        over, steps = False, 0
        while not over:
            _, _, terminated, truncated, _ = env.step(0)
            over, steps = terminated or truncated, steps + 1
        ends.append((steps, terminated, truncated))
    assert ends == [(3, True, False), (4, False, True), (4, True, True)]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_checker_of_gymnasium_passes() -> None:
    check_env(Repeat(4, steps=20), skip_render_check=True)
    check_env(SampledTimeLimit(Repeat(), 3, 9), skip_render_check=True)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(EnvError, match="1 <= low <= high"):
        make("tttstream/RepeatFirst-v0", wrappers=[{"SampledTimeLimit": {"low": 9, "high": 3}}])
    with pytest.raises(EnvError, match="from 0"):
        make("tttstream/RepeatFirst-v0", env_args={"back": -1})


class Told(gym.Env[Any, Any]):
    """Tells the options of its last reset and its last action; of actions 1 to 4, the odd ones are legal."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space: Any = spaces.Discrete(4, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {"options": options}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return np.zeros(1, np.float32), float(action), False, False, {}

    def action_masks(self) -> Any:
        return np.array([True, False, True, False])


def test_every_reset_has_the_options() -> None:
    env = ResetOptions(Told(), {"depth": 3, "width": 1})
    assert env.reset(seed=0)[1]["options"] == {"depth": 3, "width": 1}
    assert env.reset(options={"width": 2})[1]["options"] == {"depth": 3, "width": 2}


def test_some_actions_are_kept_with_their_masks() -> None:
    env = SomeActions(Told(), keep=[4, 1])
    assert env.action_space == spaces.Discrete(2)
    assert env.reset(seed=0)[1]["action_mask"].tolist() == [False, True]
    assert [env.step(action)[1] for action in (0, 1)] == [4.0, 1.0]
    assert env.step(0)[4]["action_mask"].tolist() == [False, True]
    plain = SomeActions(Repeat(), keep=[1, 2])
    assert "action_mask" not in plain.reset(seed=0)[1]
    for keep in ([0, 1], [1, 1], [], [5]):
        with pytest.raises(EnvError, match="expected different actions"):
            SomeActions(Told(), keep=keep)
    boxed = Told()
    boxed.action_space = spaces.Box(0, 1, (2,), np.float32)
    with pytest.raises(SpaceError, match="needs a Discrete action space"):
        SomeActions(boxed, keep=[0])
