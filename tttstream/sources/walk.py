"""The embedded source `walk`: an endless camera walk over photographs, with events at known times."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.frames import Frame
from tttstream.sources.base import Event
from tttstream.sources.generated import Generated
from tttstream.sources.photographs import NAMES, Floats, Pixels, cutout, photograph, place
from tttstream.sources.rendering import Lamp, Waves, draw_waves, exposed, warped

FPS = 30.0
SCENE, JITTER = 200, 50  # a scene starts every 200 ± 50 frames
SPREAD = 1.9  # height of a place over the side of the picture
OBJECT = 0.5  # side of an object, mask included, over the side of the picture
REPERTOIRE = 4  # number of usual objects
FAMILIAR_FROM = 2  # scenes with usual objects only, before the first novel one
LIGHT = ("gain", "warmth", "side_x", "side_y")
LOOK_BACK = 40  # largest number of scenes since a known place

# Streams of random numbers, one for each use.
FRESH, DECK, PLACE, PATH, PASSES, OBJECTS, RETURN, NOISE = range(1, 9)


class Pass(NamedTuple):
    """One object crossing the picture: frames [start, stop) of the scene; lengths in sides of the picture."""

    key: tuple[int, int]
    novel: bool
    start: int
    stop: int
    backwards: bool
    slope: float
    height: float
    bob: tuple[float, float, float]
    scale: float
    turn: float
    sway: float


class Scene(NamedTuple):
    """The frames [start, stop) between two cuts, in one place, which has the number of its first scene."""

    start: int
    stop: int
    place: int
    known: bool
    moves: dict[str, Waves]
    passes: tuple[Pass, ...]


class Walk(Generated):
    """Endless footage of a camera walk: pan, zoom, roll, changing light, sensor noise, objects that pass, cuts.

    size: side of the square frames in pixels. seed: it determines all frames, bit for bit on one machine. A frame
    depends only on the seed and its number, so seeking is exact and memory does not grow.

    Four usual objects pass repeatedly, in every scene. From the third scene on, novel objects pass too. They have the
    same kind and motion, but each is shown only once, so the amount of change in the picture does not separate them
    from usual objects. About 40% of the cuts lead back to a known place, on another path and in other light. `events`
    lists the events. 30 frames per second, about 9 events in 1000 frames.

    Raises SourceError for a size or seed that is not usable, DependencyError without scikit-image.
    """

    name = "walk"
    fps = FPS
    stay, jitter = SCENE, JITTER

    def __init__(self, *, size: int = 128, seed: int = 0) -> None:
        super().__init__(size=size, seed=seed)
        for name in NAMES:  # drawn at the start, so that memory and the time for a frame stay constant
            photograph(name)
        self._fresh_block = lru_cache(64)(self._make_fresh_block)
        self._deck = lru_cache(64)(self._make_deck)
        self._scene = lru_cache(4)(self._make_scene)
        self._texture = lru_cache(2)(self._make_texture)
        self._object = lru_cache(REPERTOIRE + 2)(self._make_object)
        self._lamp = Lamp(size)

    def events(self, until: int) -> list[Event]:
        """Events that begin before frame `until`, by time. "scene": a cut to another place, one frame long. "revisit":
        at the same frame if the place is known. "object": from the first frame that shows a part of a novel object to
        the first frame after it left the picture.
        """
        events = []
        number = 0
        while self._start(number) < until:
            scene = self._scene(number)
            if number:
                events.append(Event("scene", scene.start, scene.start + 1))
            if scene.known:
                events.append(Event("revisit", scene.start, scene.start + 1))
            for item in scene.passes:
                if item.novel:
                    first = next(k for k in range(item.start, item.stop) if self._overlay(item, k))
                    last = next(k for k in range(item.stop - 1, first - 1, -1) if self._overlay(item, k))
                    events.append(Event("object", scene.start + first, scene.start + last + 1))
            number += 1
        return [event for event in events if event.start < until]

    def frame(self, index: int) -> Frame:
        """Any frame of the walk, by its number."""
        scene = self._scene(self._number(index))
        t = index - scene.start
        picture = self._view(scene, t)
        for item in scene.passes:
            self._draw(picture, item, t)
        self._lamp.shine(picture, **{name: scene.moves[name].at(t) for name in LIGHT})
        return Frame(exposed(picture, self._rng(NOISE, index)), index, index / FPS)

    # The plan: everything follows from the seed and a number.

    def _make_fresh_block(self, block: int) -> NDArray[np.bool_]:
        fresh = self._rng(FRESH, block).random(8) < 0.55
        fresh[: 3 if block == 0 else 1] = True
        return fresh

    def _fresh(self, number: int) -> bool:
        """Whether the place of a scene is new."""
        return bool(self._fresh_block(number // 8)[number % 8])

    def _make_deck(self, block: int) -> list[str]:
        deck = [NAMES[i] for i in self._rng(DECK, block).permutation(len(NAMES))]
        if block and deck[0] == NAMES[self._rng(DECK, block - 1).permutation(len(NAMES))[-1]]:
            deck[0], deck[1] = deck[1], deck[0]
        return deck

    def _photograph(self, number: int) -> str:
        """The photograph of a new place in scene `number`; consecutive scenes have different photographs."""
        return self._deck(number // len(NAMES))[number % len(NAMES)]

    def _place(self, number: int) -> int:
        """The place of a scene, as the number of its first scene; consecutive scenes show different photographs."""
        if self._fresh(number):
            return number
        taken = {self._photograph(self._place(number - 1))}
        if self._fresh(number + 1):
            taken.add(self._photograph(number + 1))
        earlier = range(max(0, number - LOOK_BACK), number - 1)
        known = [j for j in earlier if self._fresh(j) and self._photograph(j) not in taken]
        if not known:
            return number
        weights = np.array([1 / (number - j) for j in known])
        return int(self._rng(RETURN, number).choice(known, p=weights / weights.sum()))

    def _make_scene(self, number: int) -> Scene:
        start, stop = self._start(number), self._start(number + 1)
        shown = self._place(number)
        rng = self._rng(PATH, number)
        pan, bob = (420.0, 300.0, 170.0), (17.0, 9.0, 5.3)
        moves = {
            "x": draw_waves(rng, (0.32, 0.14, 0.05), pan),
            "y": draw_waves(rng, (0.30, 0.14, 0.05), pan),
            "shake_x": draw_waves(rng, (0.004, 0.002, 0.001), bob),
            "shake_y": draw_waves(rng, (0.008, 0.003, 0.001), bob),
            "zoom": draw_waves(rng, (0.12, 0.07), (350.0, 190.0)),
            "roll": draw_waves(rng, (0.05, 0.02), (280.0, 120.0)),
            "tilt_x": draw_waves(rng, (0.05, 0.03), (330.0, 150.0)),
            "tilt_y": draw_waves(rng, (0.05, 0.03), (330.0, 150.0)),
            "gain": draw_waves(rng, (0.13, 0.06, 0.015), (260.0, 90.0, 23.0)),
            "warmth": draw_waves(rng, (0.05, 0.02), (400.0, 130.0)),
            "side_x": draw_waves(rng, (0.12, 0.06), (310.0, 140.0)),
            "side_y": draw_waves(rng, (0.10, 0.05), (310.0, 140.0)),
        }
        return Scene(start, stop, shown, shown != number, moves, tuple(self._passes(number, stop - start)))

    def _passes(self, number: int, length: int) -> Iterator[Pass]:
        """The objects of one scene, one at a time; none is visible right after a cut or at the next one."""
        rng = self._rng(PASSES, number)
        settle, leave = 14, 6
        slots = max(1, (length - settle - leave) // 62)
        width = (length - settle - leave) / slots
        novel = int(rng.integers(slots)) if number >= FAMILIAR_FROM and rng.random() < 0.65 else -1
        for slot in range(slots):
            lasts = int(rng.integers(38, 57))
            start = settle + int(slot * width + rng.uniform(0, width - lasts - 2))
            yield Pass(
                key=(1, number) if slot == novel else (0, int(rng.integers(REPERTOIRE))),
                novel=slot == novel,
                start=start,
                stop=start + lasts,
                backwards=bool(rng.random() < 0.5),
                slope=rng.uniform(-0.22, 0.22),
                height=rng.uniform(-0.16, 0.16),
                bob=(rng.uniform(0, 0.03), rng.uniform(0.2, 0.5), rng.uniform(0, 6.3)),
                scale=rng.uniform(0.8, 1.05),
                turn=rng.uniform(-0.3, 0.3),
                sway=rng.uniform(0, 0.2),
            )

    # The pictures.

    def _make_texture(self, shown: int) -> Pixels:
        return place(self._photograph(shown), math.ceil(self.size * SPREAD), self._rng(PLACE, shown))

    def _make_object(self, key: tuple[int, int]) -> Floats:
        return cutout(math.ceil(self.size * OBJECT), np.random.Generator(np.random.PCG64([self.seed, OBJECTS, *key])))

    def _view(self, scene: Scene, t: int) -> Floats:
        """The camera's view of the place, [size, size, 3] in 0..255."""
        move = {name: waves.at(t) for name, waves in scene.moves.items()}
        side = self.size
        texture = self._texture(scene.place)
        height, width, _ = texture.shape
        zoom, roll = 0.95 * math.exp(move["zoom"]), move["roll"]
        c, s = zoom * math.cos(roll), zoom * math.sin(roll)
        x = width / 2 + (width - 1.2 * side) * move["x"] + side * move["shake_x"]
        y = height / 2 + (height - 1.2 * side) * move["y"] + side * move["shake_y"]
        camera = np.array([[c, -s, x], [s, c, y], [2 * move["tilt_x"] / side, 2 * move["tilt_y"] / side, 1]])
        # A tilt shifts the centre of the view; the third row must act on the picture, not on the place.
        camera[:2] += np.outer((x, y), camera[2]) * (1, 1, 0)
        centre = np.array([[1, 0, -(side - 1) / 2], [0, 1, -(side - 1) / 2], [0, 0, 1]])
        return warped(texture, camera @ centre, side, cv2.BORDER_REFLECT_101)

    def _overlay(self, item: Pass, t: int) -> tuple[slice, slice, Floats] | None:
        """Rows and columns of the picture that an object covers at a frame of its scene, and its `cutout` in that
        size."""
        if not item.start <= t < item.stop:
            return None
        u = (t - item.start + 1) / (item.stop - item.start + 1)
        u += 0.05 * math.sin(2 * math.pi * u)  # with small irregularities
        along = (2 * u - 1) * (0.5 + OBJECT / 2) * (-1 if item.backwards else 1)
        bob, speed, phase = item.bob
        across = item.height + item.slope * along + bob * math.sin(speed * t + phase)
        x, y = self.size * (0.5 + along), self.size * (0.5 + across)
        half = self.size * OBJECT / 2 * 1.1
        left, right = max(0, math.floor(x - half)), min(self.size, math.ceil(x + half))
        top, bottom = max(0, math.floor(y - half)), min(self.size, math.ceil(y + half))
        if left >= right or top >= bottom:
            return None
        scale = item.scale * (1 + 0.1 * math.sin(2 * math.pi * u + phase))
        turn = item.turn + item.sway * math.sin(0.15 * t + phase)
        c, s = math.cos(turn) / scale, math.sin(turn) / scale
        image = self._object(item.key)
        middle = (image.shape[0] - 1) / 2
        matrix = np.array(
            [[c, s, middle - c * (x - left) - s * (y - top)], [-s, c, middle + s * (x - left) - c * (y - top)]]
        )
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        piece = cv2.warpAffine(image, matrix, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_CONSTANT)
        if piece[..., 3].max() < 0.2:
            return None
        return slice(top, bottom), slice(left, right), np.asarray(piece, np.float32)

    def _draw(self, picture: Floats, item: Pass, t: int) -> None:
        overlay = self._overlay(item, t)
        if overlay is not None:
            rows, columns, piece = overlay
            area = picture[rows, columns]
            area *= 1 - piece[..., 3:]
            area += piece[..., :3]
