"""Card games without an end, after POPGym's RepeatFirst and RepeatPrevious (Morad et al., arXiv 2303.01859).

Registered as `tttstream/RepeatFirst-v0` and `tttstream/RepeatPrevious-v0`. POPGym deals decks, so its episodes have one
length, and a card takes longer with every card dealt; here cards are drawn with replacement. A `SampledTimeLimit`
gives episodes of drawn lengths.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import spaces

SUITS = 4


class Repeat(gym.Env[Any, Any]):
    """Say the suit of an earlier card, for +1 or -1 a step times `scale`.

    back: how many cards ago it was shown, the present one being 1 ago; 0 for the first of all. Before so many were
    shown the reward is 0. steps: of an episode, 0 for no end.
    """

    def __init__(self, back: int = 0, steps: int = 0, scale: float = 1.0) -> None:
        if back < 0 or steps < 0:
            raise ValueError(f"expected back and steps from 0, got {back = }, {steps = }")
        self.observation_space = self.action_space = spaces.Discrete(SUITS)
        self.back, self.steps, self.scale = back, steps, scale

    @property
    def answer(self) -> int:
        """The right action; -1 if too few cards were shown."""
        place = len(self.shown) - self.back if self.back else 0
        return self.shown[place] if place >= 0 else -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Show the first card."""
        super().reset(seed=seed)
        self.time, self.shown = 0, [int(self.np_random.integers(SUITS))]
        return self.shown[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show another card."""
        answer = self.answer
        reward = 0.0 if answer < 0 else self.scale * (1.0 if int(action) == answer else -1.0)
        self.time += 1
        card = int(self.np_random.integers(SUITS))
        self.shown = [*self.shown, card][-self.back :] if self.back else self.shown
        return card, reward, False, self.steps > 0 and self.time >= self.steps, {}


gym.register("tttstream/RepeatFirst-v0", entry_point=f"{__name__}:Repeat")
gym.register("tttstream/RepeatPrevious-v0", entry_point=f"{__name__}:Repeat", kwargs={"back": 4})
