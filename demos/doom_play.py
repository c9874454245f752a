"""Patrols in the game for demos/doom.py, with things that are exchanged, vanish or appear while out of view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from doom_walks import Patrol, Place, World, small
from numpy.typing import NDArray
from tqdm import tqdm

if TYPE_CHECKING:
    from doom_world import Game

KINDS = ("exchanged", "vanished", "appeared")
THINGS = (
    "TechPillar", "TechLamp", "TechLamp2", "BurningBarrel", "FloatingSkull", "HeartColumn", "EvilEye", "Column",
    "BigTree", "TorchTree", "ShortGreenColumn", "TallRedColumn", "SkullColumn", "Stalagtite", "LiveStick",
    "HeadOnAStick", "HeadsOnAStick", "HeadCandles", "Candelabra", "ShortRedTorch", "DeadStick", "ExplosiveBarrel",
)  # fmt: skip
BEGIN, EVERY, AWAY = 512, 16, 32  # tokens before the first change, between two changes, and since a thing was in view
LEAST, SIGHT = 0.01, 0.003  # shares of a view: least size of a changed thing, and of a thing in view
ASKED, QUESTIONS, FAR = 32, 8, 64  # tokens between queries, their number, and the least age of a queried view in tokens


class Hand:
    """Places one thing of every kind at most, in front of waypoints, so that the console can take away just that one.

    part: waypoints of the world. What the camera does not see is moved by putting the player there and back; no view is
    taken meanwhile.
    """

    def __init__(self, game: Game, world: World, part: NDArray[np.int64], rng: np.random.Generator) -> None:
        self.game, self.world, self.part, self.rng = game, world, part, rng
        inside = set(part.tolist())
        self.spots = [(i, h) for i, w in enumerate(part) for h in range(4) if int(world.ahead[w, h]) in inside]
        self.placed: dict[str, tuple[int, int]] = {}
        self.seen: dict[str, int] = {}  # when a thing was last in view
        self.changes: list[tuple[int, int, set[str]]] = []  # when, the kind of change, the things
        self.sights: dict[tuple[int, int], dict[str, float]] = {}  # the content of a view at its last visit
        for thing in THINGS:
            game.say(f"remove {thing}")
        count = min(len(self.spots), len(THINGS) // 2)
        for thing, spot in zip(rng.permutation(THINGS), rng.permutation(self.spots)[:count], strict=False):
            self._place(str(thing), (int(spot[0]), int(spot[1])))

    def _place(self, thing: str, spot: tuple[int, int]) -> None:
        self.game.put(self.world.view(self.part[spot[0]], spot[1]))
        self.game.say(f"summon {thing}")
        self.placed[thing] = spot

    def _take(self, thing: str) -> tuple[int, int]:
        self.game.say(f"remove {thing}")
        return self.placed.pop(thing)

    def _shares(self) -> dict[str, float]:
        return {name: share for name, share in self.game.things().values() if name in THINGS}

    def judge(self, view: tuple[int, int], now: int, then: int) -> tuple[int, float]:
        """Of the view that is shown now and was last shown `then` (-1: never): the kind of the change that it shows and
        the share of it that changed; -1 for a quiet one, -2 for the first, and for one with more than one change or one
        too small."""
        shown, before = self._shares(), self.sights.get(view, {})
        self.sights[view] = shown
        self.seen.update((thing, now) for thing, share in shown.items() if share >= SIGHT)
        if then < 0:
            return -2, 0.0
        touched = set[str]().union(*(things for when, _, things in self.changes if when >= then))
        new, gone = ({thing for thing in touched if one.get(thing, 0.0) >= SIGHT} for one in (shown, before))
        if not new | gone:
            return -1, 0.0
        share = max(max(shown.get(thing, 0.0), before.get(thing, 0.0)) for thing in new | gone)
        swapped = any(when >= then and things == new | gone for when, kind, things in self.changes if kind == 0)
        if share < LEAST or new & gone or not (swapped or len(new | gone) == 1):
            return -2, share
        return (0 if swapped and new and gone else 1 if gone else 2), share

    def act(self, camera: Place, now: int, last: NDArray[np.int64]) -> None:
        """Sometimes change something that is out of view. last: when each view of the part was shown."""
        if now < BEGIN or now % EVERY:
            return
        away = [thing for thing in self.placed if thing in self.seen and now - self.seen[thing] >= AWAY]
        free = [thing for thing in THINGS if thing not in self.placed]
        taken = set(self.placed.values())
        open_spots = [spot for spot in self.spots if spot not in taken and now - last[spot] >= AWAY]
        possible = [bool(away and free), bool(away), bool(open_spots and len(free) > len(THINGS) // 3)]
        if not any(possible):
            return
        kind = int(self.rng.choice(np.flatnonzero(possible)))
        things: set[str] = set()
        spot = open_spots[int(self.rng.integers(len(open_spots)))] if kind == 2 else (0, 0)
        if kind < 2:
            things.add(str(self.rng.choice(away)))
            spot = self._take(next(iter(things)))
        if kind != 1:
            new = str(self.rng.choice(free))
            self._place(new, spot)
            things.add(new)
        self.game.put(camera)
        if kind != 1 and self._shares().get(new, 0.0) >= SIGHT:  # it is in view: remove it again
            self._take(new)
            kind, things = 1, things - {new}
        if things:
            self.changes.append((now, kind, things))


def play(game: Game, world: World, side: int, tokens: int, changes: bool, seed: int) -> dict[str, NDArray[Any]]:
    """A patrol in the game: pictures, poses, views, ages of its tokens, and the same of questions; the corner (x, y) of
    its world. With changes: `changed` is -1 at a quiet revisit, the kind of change at one that shows a change, -2
    elsewhere."""
    rng = np.random.default_rng([seed, side])
    part = world.part(rng, side)
    walk, last = Patrol(world, part, rng), np.full((len(part), 4), -1)
    kept: dict[str, list[Any]] = {key: [] for key in ("picture", "pose", "view", "age", "changed", "big")}
    asked: dict[str, list[Any]] = {key: [] for key in ("picture", "pose", "view", "age", "time")}
    hand = Hand(game, world, part, rng) if changes else None
    for t in tqdm(range(tokens), f"{len(part)} waypoints", disable=None, leave=False):
        at = next(walk)
        pose = world.view(part[at[0]], at[1])
        picture = small(game.look(pose))
        then = int(last[at])
        last[at] = t
        truth = hand.judge(at, t, then) if hand else (-2, 0.0)
        row = (picture, pose, 4 * at[0] + at[1], t - then if then >= 0 else -1, *truth)
        for key, value in zip(kept, row, strict=True):
            kept[key].append(value)
        if hand:
            hand.act(pose, t, last)
        elif (t + 1) % ASKED == 0:
            far = np.argwhere((last >= 0) & (t - last >= FAR))
            for spot in rng.permutation(far)[:QUESTIONS] if len(far) else []:
                there = world.view(part[spot[0]], int(spot[1]))
                picture = small(game.look(there))
                row = (picture, there, 4 * spot[0] + spot[1], t + 1 - last[tuple(spot)], t + 1)
                for key, value in zip(asked, row, strict=True):
                    asked[key].append(value)
    found = {key: np.array(values) for key, values in kept.items()}
    found["corner"] = world.places[part].min(0)
    return found | {f"asked_{key}": np.array(values) for key, values in asked.items()}
