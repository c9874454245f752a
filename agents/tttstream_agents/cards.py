"""Card games without an end, after POPGym's RepeatFirst and RepeatPrevious (Morad et al., arXiv 2303.01859).

Registered as `tttstream/RepeatFirst-v0` and `tttstream/RepeatPrevious-v0`. POPGym deals the cards of a deck, so its
episodes end with the deck, and each card takes longer to deal than the one before. Here cards are drawn with
replacement. `SampledTimeLimit` ends episodes at random lengths.
"""

from typing import Any

import gymnasium as gym
from gymnasium import spaces

SUITS = 4


class Repeat(gym.Env[Any, Any]):
    """Name the suit of an earlier card. The reward of a step is +scale or -scale.

    back: which card: 1 is the current one, 2 the one before; 0 is the first of the episode. While fewer cards have been
    shown, the reward is 0. steps: length of an episode, 0 for no end.
    """

    def __init__(self, back: int = 0, steps: int = 0, scale: float = 1.0) -> None:
        if back < 0 or steps < 0:
            raise ValueError(f"expected back and steps from 0, got {back = }, {steps = }")
        self.observation_space = self.action_space = spaces.Discrete(SUITS)
        self.back, self.steps, self.scale = back, steps, scale

    @property
    def answer(self) -> int:
        """The right action; -1 while too few cards have been shown."""
        place = len(self.shown) - self.back if self.back else 0
        return self.shown[place] if place >= 0 else -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode: return the first card."""
        super().reset(seed=seed)
        self.time, self.shown = 0, [int(self.np_random.integers(SUITS))]
        return self.shown[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Reward the action and return the next card."""
        answer = self.answer
        reward = 0.0 if answer < 0 else self.scale * (1.0 if int(action) == answer else -1.0)
        self.time += 1
        card = int(self.np_random.integers(SUITS))
        self.shown = [*self.shown, card][-self.back :] if self.back else self.shown
        return card, reward, False, self.steps > 0 and self.time >= self.steps, {}


gym.register("tttstream/RepeatFirst-v0", entry_point=f"{__name__}:Repeat")
gym.register("tttstream/RepeatPrevious-v0", entry_point=f"{__name__}:Repeat", kwargs={"back": 4})
