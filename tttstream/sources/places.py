"""The embedded source `places`: a camera moves in a world larger than its view, and objects change out of view."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.poses import Form, Number
from tttstream.sources.base import Event
from tttstream.sources.generated import Generated
from tttstream.sources.photographs import HELD_OUT, NAMES, Floats, Pixels, cutout, photograph, place
from tttstream.sources.rendering import Lamp, Waves, draw_waves, exposed, warped

FPS = 30.0
EXTENT = 3  # width and height of a world over the side of the view
SHEETS = 2  # photographs side by side in a world
SEAM = 0.25  # width over which two photographs blend, over the side of the view
VISIT, JITTER = 2400, 400  # the camera changes to another world every 2400 ± 400 frames
LOOK_BACK = 4  # largest number of visits since a known world
MARGIN = 0.62  # least distance of the centre of the view from the border of the world, in sides of the view

THING = 0.42  # side of a thing, soft border included, over the side of the view
SPOTS = 9  # positions of things in a world
KINDS = 12  # number of different things of a world
CHANGE = 110  # a change every 110 frames on average, if a suitable spot is out of view
SETTLE = 240  # frames of a visit before the first change
SHORTEST = 5  # least number of frames in which a change is in view
UNSEEN = 45  # least number of frames in which a spot is completely out of view before it changes
SIGHT = 0.36  # largest distance of a seen thing from the centre of the view, in sides of the view

# Streams of random numbers, one for each use.
WORLD, PATH, FRESH, RETURN, SPOT, CHANGES, THINGS, NOISE = range(1, 9)
LIGHT = ("gain", "warmth", "side_x", "side_y")


class Change(NamedTuple):
    """A change of the thing at a spot, from one frame on. things: before and after, -1 for none. seen: the first frames
    after the change in which the spot is in view, [start, stop)."""

    spot: int
    frame: int
    kind: str
    things: tuple[int, int]
    seen: tuple[int, int]


class Visit(NamedTuple):
    """A stay in one world: frames [start, stop). world: its number, that of the visit that showed it first.

    tour: radians per frame and phases [2, 2] of the camera's path back and forth between the borders, along x and y.
    moves: additional movements of the camera, and changes of the light. at: the thing at every spot at the start of the
    visit [SPOTS], -1 for none. changes: by frame.
    """

    start: int
    stop: int
    world: int
    tour: NDArray[np.float64]
    moves: dict[str, Waves]
    at: NDArray[np.int64]
    changes: tuple[Change, ...]

    def things(self, t: int) -> NDArray[np.int64]:
        """The thing at every spot at a frame of the visit [SPOTS], -1 for none."""
        at = self.at.copy()
        for change in self.changes:
            if change.frame <= t:
                at[change.spot] = change.things[1]
        return at


class Places(Generated):
    """Endless footage of a camera that walks, returns, turns and zooms in a world of photographs, with its pose.

    size: side of the square frames in pixels. seed: it determines all frames, bit for bit on one machine. A frame
    depends only on the seed and its number, so seeking is exact and memory does not grow. photographs: names of the
    photographs in the worlds; by default those that were not used to train shipped models.

    `Frame.pose` is [5]: x and y of the centre of the view in sides of a view at zoom 1, from the corner of the world;
    the natural logarithm of the zoom (above 0 the view is larger); the roll in radians; and the number of the world. A
    world has the size of 3 × 3 views. After about 2,400 frames the camera enters another world, in two cases of five a
    known one. There are things in the world. From time to time one is exchanged, vanishes, appears or moves to another
    spot, always while both spots are out of view and after they were seen. `events` lists the frames in which a change
    is first in view. The light, the exposure and the noise of the sensor vary.

    Raises SourceError for a size, seed or photograph that is not usable, DependencyError without scikit-image.
    """

    name = "places"
    fps = FPS
    stay, jitter = VISIT, JITTER
    pose_form = Form([Number(name) for name in ("x", "y", "log_zoom", "roll", "world")])

    def __init__(self, *, size: int = 128, seed: int = 0, photographs: tuple[str, ...] = HELD_OUT) -> None:
        super().__init__(size=size, seed=seed)
        if len(set(photographs)) < SHEETS or not set(photographs) <= set(NAMES):
            raise SourceError(
                f"places: photographs are {photographs}, expected {SHEETS} or more of {', '.join(sorted(NAMES))}"
            )
        self.photographs = tuple(photographs)
        # Drawn at the start, so that memory and the time for a frame stay constant
        for name in (*self.photographs, *NAMES):
            photograph(name)
        self._visit = lru_cache(8)(self._make_visit)
        self._texture = lru_cache(2)(self._make_texture)
        self._thing = lru_cache(2 * KINDS)(self._make_thing)
        self._lamp = Lamp(size)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "photographs": list(self.photographs)}

    def events(self, until: int) -> list[Event]:
        """Events that begin before frame `until`, by time. "scene": the first frame in another world, one frame long;
        "revisit": at the same frame if the world is known. "exchanged", "vanished", "appeared", "moved": from the first
        frame after the change in which the changed spot is in view to the first in which it is not; `where` is its (x,
        y, world), `since` the frame of the change. A move has two events, one for each spot.
        """
        events, number = [], 0
        while self._start(number) < until:
            visit = self._visit(number)
            if number:
                events.append(Event("scene", visit.start, visit.start + 1))
                if visit.world != number:
                    events.append(Event("revisit", visit.start, visit.start + 1))
            for change in sorted(visit.changes, key=lambda change: change.seen):
                x, y = self._spots(visit.world)[change.spot]
                start, stop = (visit.start + frame for frame in change.seen)
                where = (float(x), float(y), float(visit.world))
                events.append(Event(change.kind, start, stop, where=where, since=visit.start + change.frame))
            number += 1
        return [event for event in events if event.start < until]

    def frame(self, index: int) -> Frame:
        """Any frame, by its number."""
        visit = self._visit(self._number(index))
        t = index - visit.start
        pose = self._poses(visit, np.array([float(t)]))[0]
        picture = self.look(pose, index)
        self._lamp.shine(picture, **{name: visit.moves[name].at(t) for name in LIGHT})
        return Frame(exposed(picture, self._rng(NOISE, index)), index, index / FPS, pose)

    def look(self, pose: NDArray[np.float64], index: int) -> Floats:
        """The view of a camera with a noiseless sensor at a pose [5], with the objects of a frame, under uniform light:
        [size, size, 3] in 0..255. The world must be that of the frame. Outside of the world its border is repeated."""
        visit = self._visit(self._number(index))
        if int(pose[4]) != visit.world:
            raise SourceError(f"places: frame {index} is in world {visit.world}, the pose is in world {int(pose[4])}")
        texture = _pixels(self.size) @ _camera(pose) @ _view(self.size)
        picture = warped(self._texture(visit.world), texture, self.size, cv2.BORDER_REFLECT_101)
        for spot, thing in zip(self._spots(visit.world), visit.things(index - visit.start), strict=True):
            if thing >= 0:
                self._draw(picture, spot, self._thing(visit.world, int(thing)), pose)
        return picture

    def things(self, index: int) -> dict[tuple[float, float], int]:
        """The objects at a frame: {(x, y): number of the object}."""
        visit = self._visit(self._number(index))
        spots = self._spots(visit.world)
        at = enumerate(visit.things(index - visit.start))
        return {(float(spots[i, 0]), float(spots[i, 1])): int(thing) for i, thing in at if thing >= 0}

    # The plan: everything follows from the seed and a number.

    def _fresh(self, number: int) -> bool:
        """Whether the world of a visit is new."""
        return number < 2 or bool(self._rng(FRESH, number).random() < 0.6)

    def _world(self, number: int) -> int:
        """The world of a visit, as the number of the first visit to it; consecutive visits have different worlds."""
        if self._fresh(number):
            return number
        before = self._world(number - 1)
        known = [j for j in range(max(0, number - LOOK_BACK), number) if self._fresh(j) and j != before]
        return int(self._rng(RETURN, number).choice(known)) if known else number

    def _poses(self, visit: Visit, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Poses [N, 5] at frames t [N] of a visit."""
        moves, (speed, phase) = visit.moves, visit.tour
        sway = np.stack([moves["sway_x"].along(t), moves["sway_y"].along(t)], axis=1)
        middle = EXTENT / 2 + (EXTENT / 2 - MARGIN) * np.sin(speed * t[:, None] + phase + sway)
        zoom, roll = moves["zoom"].along(t), moves["roll"].along(t)
        return np.column_stack([middle, zoom, roll, np.full(len(t), visit.world)])

    def _make_visit(self, number: int) -> Visit:
        start, stop = self._start(number), self._start(number + 1)
        rng, world = self._rng(PATH, number), self._world(number)
        moves = {
            "sway_x": draw_waves(rng, (0.25, 0.1), (290.0, 110.0)),
            "sway_y": draw_waves(rng, (0.25, 0.1), (290.0, 110.0)),
            "zoom": draw_waves(rng, (0.07, 0.04), (310.0, 170.0)),
            "roll": draw_waves(rng, (0.05, 0.03), (270.0, 130.0)),
            "gain": draw_waves(rng, (0.06, 0.03, 0.01), (260.0, 90.0, 23.0)),
            "warmth": draw_waves(rng, (0.03, 0.015), (400.0, 130.0)),
            "side_x": draw_waves(rng, (0.06, 0.03), (310.0, 140.0)),
            "side_y": draw_waves(rng, (0.05, 0.03), (310.0, 140.0)),
        }
        periods = rng.permutation([rng.uniform(150, 190), rng.uniform(520, 620)])
        tour = np.stack([2 * np.pi / periods, rng.uniform(0, 2 * np.pi, 2)])
        earlier = [j for j in range(max(0, number - 3 * LOOK_BACK), number) if self._world(j) == world]
        if earlier:
            last = self._visit(earlier[-1])
            at = last.things(last.stop - last.start)
        else:
            drawn = self._rng(SPOT, world)
            at = drawn.permutation(KINDS)[:SPOTS]
            at[drawn.permutation(SPOTS)[: SPOTS // 3]] = -1
        visit = Visit(start, stop, world, tour, moves, at, ())
        return visit._replace(changes=tuple(self._make_changes(visit, number)))

    def _make_changes(self, visit: Visit, number: int) -> Iterator[Change]:
        """The changes out of sight during a visit."""
        rng = self._rng(CHANGES, number)
        length = visit.stop - visit.start
        offset = (
            self._spots(visit.world)[:, None] - self._poses(visit, np.arange(float(length)))[None, :, :2]
        )  # [SPOTS, N, 2]
        distance = np.abs(offset).max(axis=-1)
        zoom = np.exp(visit.moves["zoom"].along(np.arange(float(length))))
        seen = distance < SIGHT * zoom
        hidden = distance > (0.5 * zoom + THING / 2) * 1.15  # the roll moves the corners inwards
        at = visit.at.copy()
        known = [0] * SPOTS  # the current thing at the spot must be seen after this frame, before it changes again
        frame = SETTLE
        while frame < length:
            out_of_sight = hidden[:, max(0, frame - UNSEEN) : frame + 1].all(axis=1)
            free = [spot for spot in range(SPOTS) if out_of_sight[spot] and seen[spot, known[spot] : frame].any()]
            sights = {spot: _first_sight(seen[spot], frame) for spot in free}
            free = [spot for spot in free if sights[spot][1] - sights[spot][0] >= SHORTEST]
            for spot, kind, thing in self._draw_change(rng, free, at):
                yield Change(spot, frame, kind, (int(at[spot]), thing), sights[spot])
                at[spot], known[spot] = thing, frame
            frame += int(rng.integers(CHANGE // 2, 3 * CHANGE // 2))

    @staticmethod
    def _draw_change(rng: np.random.Generator, free: list[int], at: NDArray[np.int64]) -> list[tuple[int, str, int]]:
        """(spot, kind, thing) of the changes at some of the spots, empty if no change is possible."""
        full, empty = [s for s in free if at[s] >= 0], [s for s in free if at[s] < 0]
        spare = [thing for thing in range(KINDS) if thing not in at]
        kinds = [("exchanged", full), ("vanished", full), ("appeared", empty), ("moved", full if empty else [])]
        kinds = [(kind, spots) for kind, spots in kinds if spots]
        if not kinds:
            return []
        kind, spots = kinds[rng.integers(len(kinds))]
        spot, new = int(rng.choice(spots)), int(rng.choice(spare))
        if kind == "moved":
            return [(spot, kind, -1), (int(rng.choice(empty)), kind, int(at[spot]))]
        return [(spot, kind, -1 if kind == "vanished" else new)]

    # The pictures.

    def _spots(self, world: int) -> NDArray[np.float64]:
        """Positions of objects [SPOTS, 2]: a grid over the world, slightly displaced."""
        rows = math.isqrt(SPOTS)
        grid = (np.stack(np.meshgrid(np.arange(rows), np.arange(rows)), axis=-1).reshape(-1, 2) + 0.5) * EXTENT / rows
        return np.asarray(grid + self._rng(SPOT, world, 1).uniform(-0.12, 0.12, grid.shape))

    def _make_texture(self, world: int) -> Pixels:
        """The world without its things, [3 * size, 3 * size, 3]: photographs side by side, blended at their seams."""
        rng, side = self._rng(WORLD, world), EXTENT * self.size
        names = rng.permutation(self.photographs)[:SHEETS]
        seam = max(2, round(SEAM * self.size))
        width = (side + (SHEETS - 1) * seam) / SHEETS
        texture, weight = np.zeros((side, side, 3), np.float32), np.zeros((side, side, 1), np.float32)
        for number, name in enumerate(names):
            left = round(number * (width - seam))
            columns = np.arange(side)
            share = np.clip((columns - left + 0.5) / seam, 0, 1) if number else np.ones(side)
            if number < SHEETS - 1:
                share = share * np.clip((left + width - columns - 0.5) / seam, 0, 1)
            piece = _covering(place(str(name), side, rng), math.ceil(width) + 1, side, rng)
            full = np.zeros((side, side, 3), np.float32)
            right = min(side, left + piece.shape[1])
            full[:, left:right] = piece[:, : right - left]
            texture += full * share[None, :, None]
            weight += share[None, :, None].astype(np.float32)
        texture /= np.maximum(weight, 1e-6)
        if rng.random() < 0.5:
            texture = texture.transpose(1, 0, 2)
        return np.ascontiguousarray(texture.clip(0, 255)).astype(np.uint8)

    def _make_thing(self, world: int, thing: int) -> Floats:
        return cutout(math.ceil(self.size * THING * 1.5), self._rng(THINGS, world, thing))

    def _draw(self, picture: Floats, spot: NDArray[np.float64], image: Floats, pose: NDArray[np.float64]) -> None:
        """Draw the thing at a spot into the picture of a camera at a pose."""
        if np.abs(spot - pose[:2]).max() > math.exp(pose[2]) + THING:
            return
        corner = np.array([[1 / THING, 0, 0.5 - spot[0] / THING], [0, 1 / THING, 0.5 - spot[1] / THING], [0, 0, 1.0]])
        matrix = _pixels(image.shape[0]) @ corner @ _camera(pose) @ _view(self.size)
        piece = warped(image, matrix, self.size, cv2.BORDER_CONSTANT)
        picture *= 1 - piece[..., 3:]
        picture += piece[..., :3]


def _first_sight(seen: NDArray[np.bool_], frame: int) -> tuple[int, int]:
    """The first interval of frames [start, stop) from `frame` on in which a spot is seen [N]; empty if there is
    none."""
    start = frame + int(np.argmax(np.append(seen[frame:], True)))
    return start, start + int(np.argmin(np.append(seen[start:], False)))


def _camera(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps a position in the view, in sides from its centre, to one in the world [3, 3]."""
    x, y, log_zoom, roll = pose[:4]
    c, s = math.exp(log_zoom) * math.cos(roll), math.exp(log_zoom) * math.sin(roll)
    return np.array([[c, -s, x], [s, c, y], [0, 0, 1.0]])


def _view(side: int) -> NDArray[np.float64]:
    """Maps a pixel of the picture to the position of its centre in the view, in sides from the centre [3, 3]."""
    return np.array([[1 / side, 0, 0.5 / side - 0.5], [0, 1 / side, 0.5 / side - 0.5], [0, 0, 1]])


def _pixels(side: int) -> NDArray[np.float64]:
    """Maps lengths in sides of the view to pixels whose centres are whole numbers [3, 3]."""
    return np.array([[side, 0, -0.5], [0, side, -0.5], [0, 0, 1.0]])


def _covering(image: Pixels, width: int, height: int, rng: np.random.Generator) -> Pixels:
    """A part of an image [height, W, 3], enlarged if it is too narrow, [height, width, 3]."""
    if image.shape[1] < width:
        scale = width / image.shape[1]
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)
    left = int(rng.integers(image.shape[1] - width + 1))
    top = int(rng.integers(image.shape[0] - height + 1))
    return image[top : top + height, left : left + width]
