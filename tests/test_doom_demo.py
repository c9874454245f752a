"""The parts of demos/doom.py that need no game: walks among waypoints, and what is changed out of sight."""

from __future__ import annotations

import importlib.util
import itertools
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

DEMOS = Path(__file__).parent.parent / "demos"


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DEMOS)
    return importlib.import_module("doom_walks")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DEMOS)
    return importlib.import_module("doom_play")


def world(walks: ModuleType, rows: int = 6, columns: int = 6) -> Any:
    """A grid of waypoints with a wall through it that leaves one gap."""
    spots = [(x, y) for y in range(rows) for x in range(columns)]
    names = {spot: i for i, spot in enumerate(spots)}
    ahead = np.full((len(spots), 4), -1)
    for (x, y), name in names.items():
        for heading, (dx, dy) in enumerate(((1, 0), (0, 1), (-1, 0), (0, -1))):
            wall = {x, x + dx} == {2, 3} and y != 0
            ahead[name, heading] = -1 if wall else names.get((x + dx, y + dy), -1)
    return walks.World(walks.STEP * np.array(spots, float), ahead)


class Game:
    """Shows a thing in the view in front of which it stands, and in no other."""

    def __init__(self) -> None:
        self.at: Any = None
        self.stands: dict[str, Any] = {}

    def put(self, at: Any) -> None:
        self.at = at

    def look(self, at: Any) -> np.ndarray:
        self.put(at)
        return np.zeros((120, 160, 3), np.uint8)

    def say(self, command: str) -> None:
        word, thing = command.split()
        self.stands.pop(thing, None)
        if word == "summon":
            self.stands[thing] = self.at

    def things(self) -> dict[int, tuple[str, float]]:
        return {i: (name, 0.05) for i, (name, at) in enumerate(self.stands.items()) if at == self.at}


def test_a_patrol_visits_every_reachable_place_repeatedly(walks: ModuleType) -> None:
    there = world(walks)
    rng = np.random.default_rng(0)
    part = there.part(rng, 6)
    assert part.tolist() == list(range(36))
    patrol = walks.Patrol(there, part, rng)
    views = [next(patrol) for _ in range(4000)]
    for (a, facing), (b, faces) in itertools.pairwise(views):
        turned = a == b and (faces - facing) % 4 in (0, 1, 3)
        assert turned or (faces == facing and there.ahead[a, facing] == b)
    counts = np.bincount([4 * at + heading for at, heading in views], minlength=144)
    assert (counts >= 2).mean() > 0.95


def test_a_part_of_a_world_is_connected(walks: ModuleType) -> None:
    there = world(walks)
    for seed in range(10):
        part = there.part(np.random.default_rng(seed), 3)
        assert len(part) == 9
        patrol = walks.Patrol(there, part, np.random.default_rng(seed))
        assert ((patrol.ways >= 0) | np.eye(9, dtype=bool)).all()


def test_changes_happen_out_of_sight_and_are_judged_by_what_stands_there(
    walks: ModuleType, played: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, game, seen = world(walks), Game(), []
    act = played.Hand.act

    def watched(hand: Any, camera: Any, now: int, last: Any) -> None:
        before = game.things()
        act(hand, camera, now, last)
        seen.append((before.values(), game.things().values()))

    monkeypatch.setattr(played.Hand, "act", watched)
    found = played.play(game, there, 6, 3000, True, 1)
    assert all(sorted(before) == sorted(after) for before, after in seen)  # nothing changes before the camera
    changed, age = found["changed"], found["age"]
    assert {-2, -1, 0, 1, 2} == set(changed.tolist())
    assert (changed[age < 0] == -2).all()
    assert (changed[: played.BEGIN] < 0).all()
    assert (found["big"][changed >= 0] >= played.LEAST).all()


def test_questions_are_about_views_that_are_out_of_sight(walks: ModuleType, played: ModuleType) -> None:
    found = played.play(Game(), world(walks), 4, 640, False, 1)
    assert len(found["asked_view"])
    for view, age, when in zip(found["asked_view"], found["asked_age"], found["asked_time"], strict=True):
        assert age >= played.FAR
        assert found["view"][when - age] == view
        assert view not in found["view"][when - age + 1 : when]


@pytest.mark.skipif(importlib.util.find_spec("vizdoom") is not None, reason="ViZDoom is installed here")
def test_without_vizdoom_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(DEMOS)
    monkeypatch.setattr(sys, "argv", ["doom.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(DEMOS / "doom.py"), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: this demo plays ViZDoom, which is not installed: pip install vizdoom\n"
