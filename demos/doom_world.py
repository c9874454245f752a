"""Maps of Freedoom in ViZDoom for demos/doom.py: views from any place, and waypoints, which are found by walking.

A map is surveyed by walking, from the player's start or from a thing's place, on a lattice of STEP units: a waypoint is
a point that steps to the east, north, west and south reach, and from which they return.
"""

from __future__ import annotations

import collections
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from doom_walks import HEIGHT, STEP, WIDTH, Place, World, small
from numpy.typing import NDArray

from tttstream.errors import DependencyError

try:
    import vizdoom
except ImportError as error:
    raise DependencyError("this demo plays ViZDoom, which is not installed: pip install vizdoom") from error

COMPASS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # heading 0 is east; each quarter turns left
MOST, LEAST = 256, 40  # largest and least number of waypoints of a map
STARTS, ENOUGH = 12, 96  # number of starts of a survey; sufficient number of waypoints
WALK, REST = 15, 40  # tics of a step from rest, and of stopping
NEAR = 20.0  # map units from a waypoint that count as reached
MAPS = [("freedoom1.wad", f"E{e}M{m}") for e in range(1, 5) for m in range(1, 10)]
MAPS += [("freedoom2.wad", f"MAP{m:02d}") for m in range(1, 33)]


class Game:
    """One map of ViZDoom without monsters, whose player can be placed anywhere. A context manager."""

    def __init__(self, wad: str, name: str) -> None:
        game = self.game = vizdoom.DoomGame()
        game.set_doom_game_path(str(Path(vizdoom.__file__).parent / wad))
        game.set_doom_map(name)
        game.set_doom_config_path(str(Path(tempfile.gettempdir()) / "vizdoom.ini"))  # not in the current folder
        game.set_window_visible(False)
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        for show in (game.set_render_hud, game.set_render_weapon, game.set_render_crosshair, game.set_render_messages):
            show(False)
        game.set_render_screen_flashes(False)
        game.set_labels_buffer_enabled(True)
        game.set_objects_info_enabled(True)
        game.add_game_args("-nomonsters")
        game.set_available_buttons([vizdoom.Button.MOVE_FORWARD_BACKWARD_DELTA, vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
        game.set_episode_timeout(0)
        game.set_seed(1)
        game.init()
        self.begin()

    def begin(self) -> None:
        """Restart the map."""
        self.game.new_episode()
        self.say("god")

    def __enter__(self) -> Game:
        return self

    def __exit__(self, *_: object) -> None:
        self.game.close()

    def say(self, command: str) -> None:
        """A command of the console; a tic passes."""
        self.game.send_game_command(command)
        self.game.make_action([0, 0], 1)

    def where(self) -> Place:
        """The player's position."""
        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        return Place(*(self.game.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names))

    def put(self, at: Place) -> None:
        """Put the player there."""
        turn = (self.where().heading - at.heading + 180) % 360 - 180
        self.game.send_game_command(f"warp {at.x:.2f} {at.y:.2f}")
        self.game.make_action([0, turn], 1)

    def look(self, at: Place) -> NDArray[np.uint8]:
        """The view from there [120, 160, 3]."""
        self.put(at)
        return np.ascontiguousarray(self.game.get_state().screen_buffer)

    def things(self) -> dict[int, tuple[str, float]]:
        """The things in the latest view: number of each -> its kind, and its share of the view."""
        state = self.game.get_state()
        shares = np.bincount(state.labels_buffer.ravel(), minlength=256) / state.labels_buffer.size
        return {one.object_id: (one.object_name, float(shares[one.value])) for one in state.labels}

    def walks(self, start: Place, x: float, y: float) -> bool:
        """Whether a player who walks straight ahead from a place reaches (x, y)."""
        self.put(start)
        self.game.make_action([0, 0], REST)
        self.put(start)
        self.game.make_action([50, 0], WALK)
        if self.game.is_episode_finished():  # over the line of an exit
            self.begin()
            return False
        now = self.where()
        return bool(np.hypot(now.x - x, now.y - y) < NEAR)


def survey(game: Game) -> World:
    """The waypoints that can be reached from the player's start and back, or from a thing's place if these are more:
    doors divide maps."""
    things = [Place(one.position_x, one.position_y, 0.0) for one in game.game.get_state().objects]
    starts = [game.where(), *things[:: max(1, len(things) // STARTS)]]
    best = World(np.zeros((0, 2)), np.zeros((0, 4), int))
    for start in starts:
        if len(best.places) and np.hypot(*(best.places - start[:2]).T).min() < STEP:
            continue  # it would be found again
        world = _walked(game, start)
        best = max(best, world, key=lambda one: len(one.places))
        if len(best.places) >= ENOUGH:
            break
    return best


def _walked(game: Game, start: Place) -> World:
    """The waypoints that can be reached from a place and back."""
    names: dict[tuple[int, int], int] = {(0, 0): 0}
    found: set[tuple[int, int, int]] = set()
    queue = collections.deque([(0, 0)])

    def place(spot: tuple[int, int], heading: int) -> Place:
        return Place(start.x + STEP * spot[0], start.y + STEP * spot[1], 90.0 * heading)

    while queue:
        spot = queue.popleft()
        for heading, (dx, dy) in enumerate(COMPASS):
            to, back = (spot[0] + dx, spot[1] + dy), (heading + 2) % 4
            if (names[spot], heading, names.get(to, -1)) in found or (to not in names and len(names) >= MOST):
                continue
            here, there = place(spot, heading), place(to, back)
            if not (game.walks(here, there.x, there.y) and game.walks(there, here.x, here.y)):
                continue
            if to not in names:
                names[to] = len(names)
                queue.append(to)
            found |= {(names[spot], heading, names[to]), (names[to], back, names[spot])}
    ahead = np.full((len(names), 4), -1)
    for waypoint, heading, to_waypoint in found:
        ahead[waypoint, heading] = to_waypoint
    places = np.array([[start.x, start.y]]) + STEP * np.array(list(names), float)
    return World(places, ahead)


class Album(NamedTuple):
    """Views of a map for training: the world, pictures [N, 4, HEIGHT, WIDTH, 3]; none if the map is not used."""

    world: World
    pictures: NDArray[np.uint8]


def album(wad: str, name: str) -> Album:
    """Survey a map and take its views."""
    with Game(wad, name) as game:
        world = survey(game)
        game.begin()
        count = len(world.places) if len(world.places) >= LEAST else 0
        pictures = np.zeros((count, 4, HEIGHT, WIDTH, 3), np.uint8)
        for waypoint, heading in np.ndindex(count, 4):
            pictures[waypoint, heading] = small(game.look(world.view(waypoint, heading)))
    return Album(world, pictures)


def surveyed(wad: str, name: str, folder: Path) -> Album:
    """The album of a map, read from its file in a folder if the file exists."""
    file = folder / f"{name}.npz"
    if not file.exists():
        made = album(wad, name)
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part.npz")
        np.savez_compressed(part, places=made.world.places, ahead=made.world.ahead, pictures=made.pictures)
        part.replace(file)
    with np.load(file) as kept:
        return Album(World(kept["places"], kept["ahead"]), kept["pictures"])
