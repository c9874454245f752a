"""The endless revisit as an environment: a walk through a world of symbols, with rewards for recalling them.

Registered as `tttstream/Revisit-v0` (episodes of 512 steps) and `tttstream/EndlessRevisit-v0` (no end).
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from tttstream.sources.photographs import NAMES, reduced
from tttstream_agents.places import fourier

MOVES = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])


class Revisit(gym.Env[Any, Any]):
    """A torus of side x side places, each with one of `kinds` symbols. A random walk sees the symbol of its place.

    An observation is a Dict: "symbol", of this place, and "here" and "asked", the Fourier features of this place and of
    the next place of the walk. The action names the symbol of the next place. If this place has been visited in this
    world, the reward is +scale for the right symbol and -scale for a wrong one; else it is 0.

    side, kinds: of the world. persist: probability that the walk goes straight on. steps: length of an episode, 0 for
    no end. exchange: number of steps after which all symbols change, 0 for never. pictures: if above 0, each symbol is
    one of ten photographs, and "picture", uint8 [pictures, pictures, 3], replaces "symbol": at each visit another part
    of the photograph, mirrored or not, darker or brighter. info: "pose" (x, y), "answer" (the right action, -1 if it
    cannot be known), "age" (steps since the last visit of the next place, -1 for none).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        side: int = 6,
        kinds: int = 4,
        persist: float = 0.5,
        steps: int = 512,
        exchange: int = 0,
        scale: float = 1.0,
        pictures: int = 0,
        render_mode: str | None = None,
    ) -> None:
        if side < 2 or kinds < 2 or not 0 <= persist <= 1 or steps < 0 or exchange < 0:
            raise ValueError(
                f"expected side and kinds of at least 2, persist in 0..1, steps and exchange from 0; got {side = }, "
                f"{kinds = }, {persist = }, {steps = }, {exchange = }"
            )
        if pictures < 0 or (pictures and kinds > len(NAMES)):
            raise ValueError(
                f"expected pictures from 0, and at most {len(NAMES)} kinds of them; got {pictures = }, {kinds = }"
            )
        self.side, self.kinds, self.persist, self.pictures = side, kinds, persist, pictures
        self.steps, self.exchange, self.scale, self.render_mode = steps, exchange, scale, render_mode
        place = spaces.Box(-1.0, 1.0, (len(fourier(np.zeros(2), side)),), np.float32)
        picture = spaces.Box(0, 255, (pictures, pictures, 3), np.uint8)
        shown: dict[str, spaces.Space[Any]] = {"picture": picture} if pictures else {"symbol": spaces.Discrete(kinds)}
        self.observation_space = spaces.Dict({**shown, "here": place, "asked": place})
        self.photographs = [reduced(name, 2 * pictures) for name in NAMES[:kinds]] if pictures else []
        self.action_space = spaces.Discrete(kinds)
        self.features = fourier(np.moveaxis(np.mgrid[:side, :side], 0, -1), side).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a new world."""
        super().reset(seed=seed)
        self.time, self.move = 0, int(self.np_random.integers(4))
        self.place = self.np_random.integers(self.side, size=2)
        self._world()
        self._turn()
        return self._out()

    def _world(self) -> None:
        self.world = self.np_random.integers(self.kinds, size=(self.side, self.side))
        self.seen = np.full((self.side, self.side), -1)

    def _turn(self) -> None:
        if self.np_random.random() >= self.persist:
            self.move = int(self.np_random.integers(4))
        self.next = (self.place + MOVES[self.move]) % self.side

    @property
    def answer(self) -> int:
        """The right action; -1 if the next place has not been visited in this world."""
        return int(self.world[tuple(self.next)]) if self.seen[tuple(self.next)] >= 0 else -1

    def _out(self) -> tuple[Any, dict[str, Any]]:
        self.seen[tuple(self.place)] = self.time
        last = int(self.seen[tuple(self.next)])
        symbol = int(self.world[tuple(self.place)])
        obs = {
            **({"picture": self._picture(symbol)} if self.pictures else {"symbol": symbol}),
            "here": self.features[tuple(self.place)].copy(), "asked": self.features[tuple(self.next)].copy(),
        }  # fmt: skip
        age = self.time - last if last >= 0 else -1
        return obs, {"pose": self.place.astype(np.float32), "answer": self.answer, "age": age}

    def _picture(self, symbol: int) -> NDArray[np.uint8]:
        whole, side = self.photographs[symbol], int(self.pictures * self.np_random.uniform(1, 1.6))
        top, left = (int(self.np_random.integers(length - side + 1)) for length in whole.shape[:2])
        piece = whole[top : top + side, left : left + side][:, :: self.np_random.choice((1, -1))]
        nearest = np.arange(self.pictures) * side // self.pictures
        bright = piece[nearest][:, nearest] * np.float32(self.np_random.uniform(0.7, 1.2))
        return bright.clip(0, 255).astype(np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Reward the action, and go to the next place."""
        answer = self.answer
        reward = 0.0 if answer < 0 else self.scale * (1.0 if int(action) == answer else -1.0)
        self.time += 1
        self.place = self.next
        if self.exchange and self.time % self.exchange == 0:
            self._world()
        self._turn()
        obs, info = self._out()
        return obs, reward, False, self.steps > 0 and self.time >= self.steps, info

    def render(self) -> NDArray[np.uint8]:
        """Draw the world from above, 16 pixels a place. Places not visited are dark; the current one has a frame."""
        tones = np.linspace(60, 255, self.kinds).astype(np.uint8)
        picture = np.where(self.seen >= 0, tones[self.world], 20).astype(np.uint8)
        picture = np.repeat(np.kron(picture, np.ones((16, 16), np.uint8))[..., None], 3, -1)
        x, y = self.place * 16
        framed = picture[x : x + 16, y : y + 16]
        framed[[0, 1, -2, -1]] = framed[:, [0, 1, -2, -1]] = (255, 60, 60)
        return picture


gym.register("tttstream/Revisit-v0", entry_point=f"{__name__}:Revisit")
gym.register("tttstream/EndlessRevisit-v0", entry_point=f"{__name__}:Revisit", kwargs={"steps": 0})
