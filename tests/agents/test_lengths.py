"""Card games without an end, and episodes of drawn lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tttstream_agents import SampledTimeLimit
from tttstream_agents.cards import Repeat
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError


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
