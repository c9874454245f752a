"""Waypoints of a map, and walks that return to them, for demos/doom.py."""

from __future__ import annotations

import collections
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

STEP = 128  # map units between waypoints
WIDTH, HEIGHT = 40, 30  # of a picture
TRIES = 20


def small(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view [120, 160, 3] as a picture [HEIGHT, WIDTH, 3]."""
    return np.asarray(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)


class Place(NamedTuple):
    """The pose of a view: x, y in map units, heading in degrees."""

    x: float
    y: float
    heading: float


class World(NamedTuple):
    """Waypoints of a map: places [N, 2] in map units, the next waypoint at each heading [N, 4] (-1: none)."""

    places: NDArray[np.float64]
    ahead: NDArray[np.int64]

    def view(self, waypoint: int, heading: int) -> Place:
        """The place at a waypoint with this heading, 0 to 3."""
        x, y = self.places[waypoint]
        return Place(float(x), float(y), 90.0 * heading)

    def part(self, rng: np.random.Generator, side: int) -> NDArray[np.int64]:
        """Connected waypoints within a square of this side: the largest set of TRIES squares."""
        cells = np.rint(self.places / STEP - self.places.min(0) / STEP).astype(int)
        found: set[int] = set()
        for _ in range(TRIES):
            start = int(rng.integers(len(cells)))
            corner = cells[start] - rng.integers(0, side, 2)
            fits = ((cells >= corner) & (cells < corner + side)).all(1)
            inside, edge = {start}, [start]
            while edge:
                new = {int(to) for to in self.ahead[edge.pop()] if to >= 0 and fits[to]} - inside
                inside |= new
                edge += sorted(new)
            found = max(found, inside, key=len)
        return np.array(sorted(found))


class Patrol:
    """A walk to random waypoints by the shortest ways; sometimes it looks around."""

    def __init__(self, world: World, inside: NDArray[np.int64], rng: np.random.Generator) -> None:
        self.rng, self.inside = rng, inside
        number = {int(waypoint): i for i, waypoint in enumerate(inside)}
        self.ahead = np.array([[number.get(int(to), -1) for to in world.ahead[w]] for w in inside]).reshape(-1, 4)
        count = len(inside)
        self.ways = np.full((count, count), -1)  # the heading that leads from `a` to `b`
        for goal in range(count):
            queue = collections.deque([goal])
            seen = {goal}
            while queue:
                at = queue.popleft()
                for heading in range(4):  # a step from there along `heading` leads here: every step has a way back
                    before = int(self.ahead[at, (heading + 2) % 4])
                    if before >= 0 and before not in seen:
                        seen.add(before)
                        self.ways[before, goal] = heading
                        queue.append(before)
        self.at, self.heading, self.goal, self.turns = int(rng.integers(count)), 0, 0, 0
        self._choose()

    def _choose(self) -> None:
        self.goal = int(self.rng.integers(len(self.inside)))
        self.turns = int(self.rng.integers(1, 5)) if self.rng.random() < 0.5 else 0

    def __next__(self) -> tuple[int, int]:
        """(number of a waypoint within the part, heading) of the next view."""
        if self.turns:
            self.turns -= 1
            self.heading = (self.heading + 1) % 4
            return self.at, self.heading
        if self.at == self.goal:
            self._choose()
        way = int(self.ways[self.at, self.goal])
        if way in (-1, self.heading):
            self.at = self.at if way < 0 else int(self.ahead[self.at, way])
        else:
            self.heading = (self.heading + (1 if (way - self.heading) % 4 < 3 else 3)) % 4
        return self.at, self.heading
