"""Environments under random actions: repeatable, seekable, and clear about what is wrong."""

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
        ("Blind-v0", SourceError, "shows no RGB pictures"),
        ("Needs-v0", DependencyError, r"pip install .gymnasium\[classic-control\]"),
        ("Imports-v0", DependencyError, "pip install paint$"),
        ("nomodule:Dot-v0", DependencyError, "pip install nomodule$"),
    ],
)
def test_what_cannot_be_played(env_id: str, kind: type[Exception], message: str) -> None:
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
