"""A policy for ViZDoom that explores a path and then walks it back and forth.

    cd demos && tttstream watch gym:vizdoom.gymnasium_wrapper:VizdoomFreedoom2MAP01-S1-v0 --pose vizdoom \\
        --policy doom_rounds:Rounds --max-frames 3000

A random policy stays near the start. This policy works in any environment of ViZDoom with the buttons MOVE_FORWARD,
TURN_LEFT and TURN_RIGHT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import vizdoom
from numpy.typing import NDArray

CRUMB, CRUMBS = 64.0, 32  # map units between the points of a path, and their number
STRAIGHT = 8.0  # degrees: it walks if the error of its direction is smaller
PATIENCE, PROGRESS = 15, 8.0  # the path is blocked after this number of steps with less progress than this in map units
JUMP = 4 * CRUMB  # map units: a longer step means a new episode, and the policy starts again


class Rounds:
    """(observation, info, env) -> action. seed: of the turns at obstacles."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.way: list[NDArray[np.float64]] = []
        self.heading, self.goal, self.step = 0.0, 0, 0  # step: 0 while it explores, else +1 or -1 along the way
        self.stood, self.steps, self.last, self.walks = np.zeros(2), 0, np.zeros(2), False

    def __call__(self, observation: Any, info: dict[str, Any], env: Any) -> Any:
        """The next action."""
        game = env.unwrapped.game
        x, y, angle = (
            game.get_game_variable(getattr(vizdoom.GameVariable, name))
            for name in ("POSITION_X", "POSITION_Y", "ANGLE")
        )
        here = np.array([x, y])
        if not self.way or np.hypot(*(here - self.last)) > JUMP:
            self.way, self.heading, self.step, self.stood, self.steps = [here], angle, 0, here, 0
        self.last, blocked = here, self._blocked(here)
        if self.step:
            self._follow(here, blocked)
        else:
            self._explore(here, blocked, angle)
        turn = (self.heading - angle + 180) % 360 - 180
        self.walks = abs(turn) < STRAIGHT
        if self.walks:
            return _pressed("MOVE_FORWARD", env)
        return _pressed("TURN_LEFT" if turn > 0 else "TURN_RIGHT", env)

    def _blocked(self, here: NDArray[np.float64]) -> bool:
        """Whether it has walked for long without progress."""
        if np.hypot(*(here - self.stood)) > PROGRESS:
            self.stood, self.steps = here, 0
        self.steps += self.walks
        if self.steps > PATIENCE:
            self.steps = 0
            return True
        return False

    def _explore(self, here: NDArray[np.float64], blocked: bool, angle: float) -> None:
        if blocked:
            self.heading = float((angle + self.rng.uniform(60, 300)) % 360)
        if np.hypot(*(here - self.way[-1])) > CRUMB:
            self.way.append(here)
        if len(self.way) == CRUMBS:
            self.goal, self.step = CRUMBS - 2, -1

    def _follow(self, here: NDArray[np.float64], blocked: bool) -> None:
        if blocked:  # go the other way
            self.step = -self.step
            self.goal = int(np.clip(self.goal + self.step, 0, CRUMBS - 1))
        if np.hypot(*(here - self.way[self.goal])) < CRUMB / 3:
            if not 0 <= self.goal + self.step < CRUMBS:
                self.step = -self.step
            self.goal += self.step
        dx, dy = self.way[self.goal] - here
        self.heading = float(np.degrees(np.arctan2(dy, dx)) % 360)


def _pressed(name: str, env: Any) -> Any:
    """The action in which one button is pressed, in the action space of the environment."""
    buttons = [button.name for button in env.unwrapped.game.get_available_buttons()]
    one = np.array([button == name for button in buttons], np.int8)
    if not hasattr(env.action_space, "n") or env.action_space.shape:
        return one
    combinations = [tuple(map(int, row)) for row in env.unwrapped.button_map]
    return combinations.index(tuple(map(int, one)))
