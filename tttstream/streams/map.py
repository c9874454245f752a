"""MapStream: a frame and its pose go in, and out comes how much it differs from what memory expected there."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttstream import state as states
from tttstream.errors import FrameError, ShapeError, StateError
from tttstream.frames import Frame, Result
from tttstream.memory.ttt import TTTLayer
from tttstream.models.map import MapModel, MapOutput
from tttstream.models.map.points import NUMBERS, Plane
from tttstream.state import State
from tttstream.streams.session import Session, choose_device, place

LEAST = 0.05  # of the loss: a place that is not familiar at all is no surprise
LAG = 45  # frames between two copies of the memory


class MapState(State, NamedTuple("_MapFields", [("memory", Any), ("recent", Any), ("before", Any)])):
    """What a stream with a map holds: the memory, a copy that is at most LAG frames old, and one that is LAG to 2 LAG
    frames old. What is expected comes from the last: it knows nothing of the frames just before this one, which show
    nearly the same, and so tells what has changed since the place was last visited."""

    __slots__ = ()


class Extent(NamedTuple):
    """How far a stream came in one world: two corners (x, y) of the box around its views, in sides of a view, and the
    number of the world."""

    low: tuple[float, float]
    high: tuple[float, float]
    world: float

    def around(self, pose: NDArray[np.float64]) -> Extent:
        """The box that holds the view from a pose [5] too; a new one where the pose is in another world."""
        x, y, reach, world = float(pose[0]), float(pose[1]), 0.5 * math.exp(pose[2]), float(pose[4])
        low, high = (x - reach, y - reach), (x + reach, y + reach)
        if world == self.world:
            low = min(low[0], self.low[0]), min(low[1], self.low[1])
            high = max(high[0], self.high[0]), max(high[1], self.high[1])
        return Extent(low, high, world)


NOWHERE = Extent((0.0, 0.0), (0.0, 0.0), math.nan)


class Imagined(NamedTuple):
    """A picture [S, S, 3] uint8 that memory draws of a pose, and how familiar every patch of it is [n, n], 0..1."""

    picture: NDArray[np.uint8]
    familiar: NDArray[np.float32]


class MapStream(Session):
    """A map that learns one stream.

    model: a MapModel. device, backend, learn: as for `tttstream.Stream`. view: the side of a view at zoom 1, in the
    units of x and y (metres, say). A frame's pose is 2 to 5 numbers: x and y of the middle of the view, and perhaps log
    zoom, roll in radians, and the number of the world. Without a pose the camera is taken to stand still, in a world of
    its own. plane: turns the poses of a source into these numbers, `Plane(source.pose_form)`. extent: how far the
    stream came in its present world.

    >>> stream = MapStream(tttstream.models.load("map"))
    >>> for frame in tttstream.open_source("places"):
    ...     result = stream.push(frame)  # result.expected, result.familiar, result.surprise
    >>> picture, familiar = stream.imagine((1.5, 1.5))
    """

    model: MapModel

    def __init__(
        self, model: MapModel, *, view: float = 1.0, device: str = "auto", backend: str = "auto", learn: bool = True
    ) -> None:
        if not (math.isfinite(view) and view > 0):
            raise ShapeError(f"map: the side of a view is {view} units of the poses: expected a number above 0")
        self.view = view
        self.plane = Plane(None)
        layers = [module for module in model.modules() if isinstance(module, TTTLayer)]
        place(layers, backend, choose_device(device))
        super().__init__(model, device, learn=learn)

    def reset(self) -> None:
        """See Session."""
        super().reset()
        self.extent = NOWHERE

    def _more(self) -> dict[str, Any]:
        return {"view": self.view, "extent": None if math.isnan(self.extent.world) else self.extent}

    def _fresh(self) -> MapState:
        return MapState(*(self.model.init_state(1) for _ in MapState._fields))

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> MapState:
        state = states.load(path, self._fresh())
        self.view = float(meta["view"])  # what was learned has its scale
        extent = meta["extent"]
        self.extent = NOWHERE if extent is None else Extent(tuple(extent[0]), tuple(extent[1]), extent[2])
        return state

    def push(self, frame: Frame | NDArray[np.generic]) -> Result:
        """Say what memory expected of one frame, compare, and learn the frame.

        What is expected is said by the memory as it was LAG to 2 LAG frames ago. The surprise of a patch is its squared
        error over the error that memory itself expected there, times how familiar the patch is: about 1 where it shows
        what it showed, about 0 where the place is new. The loss of the frame is the mean over its patches, the surprise
        the logarithm of that on the scale of `MapConfig.usual`.

        Raises FrameError for another shape, type or pose, or for pixels that are not finite; the stream is unchanged
        then.
        """
        arrived = time.perf_counter()
        frame = frame if isinstance(frame, Frame) else Frame(frame, index=self.frames)
        given = None if frame.pose is None else self.plane(frame.pose)
        picture, pose = self.picture(frame), self._pose(given, f"frame {frame.index}")
        with torch.inference_mode():
            expected, drawn = self._expected(pose, self.state.before)
            seen = self.model.codes.encode(picture)
            before = (expected.codes - seen).square().mean(-1)
            surprise = expected.familiar * before / expected.error
            loss = float(surprise.mean())
            if not np.isfinite(loss):
                raise FrameError(
                    f"frame {frame.index}: the surprise is {loss}; reset the stream or load its last state"
                )
            learned = 0.0
            if self.learn:
                memory, recent, old = self.state
                if self.frames % LAG == 0:
                    recent, old = memory, recent
                output, memory = self.model(picture[None, None], pose, memory)
                self.state = MapState(memory, recent, old)
                after = (output.codes[0, 0] - seen).square().mean()
                learned = 1.0 - float(after / before.mean())
        self.frames += 1
        self.extent = self.extent.around(pose[0, 0].cpu().numpy())
        return Result(
            index=frame.index,
            time_s=frame.time_s,
            surprise=(math.log(loss + LEAST) - self.model.config.usual[0]) / self.model.config.usual[1],
            loss=loss,
            learned=learned,
            surprise_map=surprise.view(self.model.config.side, -1).float().cpu().numpy(),
            embedding=np.empty(0, np.float32),
            expected=drawn,
            familiar=float(expected.familiar.mean()),
            latency_ms=(time.perf_counter() - arrived) * 1e3,
        )

    def imagine(self, pose: Sequence[float] | NDArray[np.floating[Any]]) -> Imagined:
        """What memory expects at a pose of 2 to 5 numbers. Nothing is learned. Raises FrameError for another pose."""
        with torch.inference_mode():
            expected, drawn = self._expected(self._pose(pose, "imagine"), self.state.memory)
        side = self.model.config.side
        return Imagined(drawn, expected.familiar.view(side, -1).float().cpu().numpy())

    def _expected(self, pose: Tensor, memory: Any) -> tuple[MapOutput, NDArray[np.uint8]]:
        """What a memory says of the patches of a view [n * n, …], and the picture it draws of it."""
        said = self.model.imagine(self.model.points(pose, halves=True)[:, 0], memory)
        grid = [part[0].unflatten(0, (2 * self.model.config.side - 1, -1)) for part in said]
        return MapOutput(*(part[::2, ::2].flatten(0, 1) for part in grid)), self._drawn(grid[0])

    def world(self, extent: Extent | None = None) -> Imagined:
        """The world as memory has it, as far as the stream came unless told otherwise: a picture of config.size pixels
        a view [H, W, 3], and how familiar its patches are, which overlap by half and are blended. Nothing is learned.

        Raises StateError where the stream has seen nothing yet.
        """
        low, high, number = self.extent if extent is None else extent
        if math.isnan(number):
            raise StateError("a map that has seen no frame has no world to draw: push frames, or load a state")
        config = self.model.config
        step = config.patch // 2
        counts = [max(1, round((b - a) * config.size / step) - 1) for a, b in zip(low, high, strict=True)]
        columns, rows = (a + (np.arange(count) + 1) * step / config.size for a, count in zip(low, counts, strict=True))
        x, y = np.meshgrid(columns, rows)
        points = np.zeros((x.size, NUMBERS))
        points[:, 0], points[:, 1], points[:, 4] = x.ravel(), y.ravel(), number
        with torch.inference_mode():
            said = self.model.imagine(torch.from_numpy(points).to(self.device)[None], self.state.memory)
            familiar = said.familiar[0].view(x.shape).float().cpu().numpy()
            return Imagined(self._drawn(said.codes[0].unflatten(0, x.shape)), familiar)

    def _pose(self, pose: Sequence[float] | NDArray[np.floating[Any]] | None, what: str) -> Tensor:
        """[1, 1, 5] in float64, of a pose or of none."""
        numbers = np.zeros(2) if pose is None else np.asarray(pose, np.float64)
        if numbers.ndim != 1 or not 2 <= len(numbers) <= NUMBERS or not np.isfinite(numbers).all():
            raise FrameError(
                f"{what}: a map takes a pose of 2 to {NUMBERS} finite numbers (x, y, log zoom, roll, world), got {pose}"
            )
        numbers = np.pad(numbers, (0, NUMBERS - len(numbers)))
        numbers[:2] /= self.view
        return torch.from_numpy(numbers).to(self.device)[None, None]

    def _drawn(self, codes: Tensor) -> NDArray[np.uint8]:
        """Codes [rows, columns, C] of patches that overlap by half, as a picture."""
        picture = self.model.codes.blended(codes).clamp(0, 1) * 255 + 0.5
        return np.ascontiguousarray(picture.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
