"""MapStream: for each frame and its pose it returns the difference from the frame that memory expects there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttstream.errors import ConfigError, FrameError, ShapeError, StateError
from tttstream.frames import Frame, Result
from tttstream.memory.ttt import TTTLayer
from tttstream.models.map import MapModel
from tttstream.models.map.lattice import Block, around
from tttstream.models.map.model import KNOWN, Cells, MapOutput, View
from tttstream.models.map.points import NUMBERS, Plane
from tttstream.poses import Form
from tttstream.sources.base import Source
from tttstream.streams.normaliser import Normaliser
from tttstream.streams.registration import Measured, Shifts, measured
from tttstream.streams.session import Session, choose_device, painted, place

LEAST = 0.05  # least loss: an unfamiliar place is not surprising
AGAIN = 6  # frames after which a cell that is in view is learned again
STILL = 0.1  # share of the difference from the expected codes that a known cell of a still camera learns at a time
# Shares of a cell that must be in view to learn it: usually, and if the cell is not yet familiar
WHOLE, PART = 0.99, 0.4
PARTS = 512  # number of partly learned cells whose names are kept


class Extent(NamedTuple):
    """The part of one world that a stream has visited: two corners (x, y) of the box around its views, in sides of a
    view, and the number of the world."""

    low: tuple[float, float]
    high: tuple[float, float]
    world: float

    def around(self, pose: NDArray[np.float64]) -> Extent:
        """The box that also contains the view from a pose [5]; a new box if the pose is in another world."""
        x, y, reach, world = float(pose[0]), float(pose[1]), 0.5 * math.exp(pose[2]), float(pose[4])
        low, high = (x - reach, y - reach), (x + reach, y + reach)
        if world == self.world:
            low = min(low[0], self.low[0]), min(low[1], self.low[1])
            high = max(high[0], self.high[0]), max(high[1], self.high[1])
        return Extent(low, high, world)

    def block(self, side: int) -> Block:
        """The cells that the box touches, with `side` cells per side of a view."""
        low = [math.floor(value * side + 1e-6) for value in self.low]
        columns, rows = (max(1, math.ceil(b * side - 1e-6) - a) for a, b in zip(low, self.high, strict=True))
        return Block(torch.tensor(low, dtype=torch.float64), rows, columns)


NOWHERE = Extent((0.0, 0.0), (0.0, 0.0), math.nan)


class Imagined(NamedTuple):
    """The picture [S, S, 3] uint8 that memory expects at a pose, and how familiar each of its patches is [n, n],
    0..1."""

    picture: NDArray[np.uint8]
    familiar: NDArray[np.float32]


class Compared(NamedTuple):
    """The comparison of a frame with the expectation of the memory.

    view: the expected view. cells: the cells in the frame [1, 1, n, …]. names: the points of the cells. said: the
    predictions for the cells [n, …]. counts: which cells have a score [n]: those completely in view, except cells that
    were learned only in part.
    """

    view: View
    cells: Cells
    names: list[tuple[float, ...]]
    said: MapOutput
    counts: Tensor


class MapStream(Session):
    """A map that learns one stream.

    model: a MapModel. device, backend, learn: as for `tttstream.Stream`. view: the side of a view at zoom 1, in the
    units of x and y (such as metres). A frame's pose is 2 to 5 numbers: x and y of the centre of the view, optionally
    log zoom, roll in radians, and the number of the world. Without a pose the camera is assumed to stand still, in a
    separate world. plane: converts the poses of a source to these numbers, `Plane(source.pose_form)`. extent: the part
    of the current world that the stream has visited. shifts: the errors of the poses so far (`Shifts`). at: the
    corrected pose of the latest pushed frame, [5] with x and y in sides of a view; zeros before one.

    >>> stream = MapStream(tttstream.models.load("map"))
    >>> for frame in tttstream.open_source("places"):
    ...     result = stream.push(frame)  # result.expected, result.familiar, result.surprise
    >>> picture, familiar = stream.imagine((1.5, 1.5))
    """

    MODELS = (MapModel,)
    VIEWS = True
    model: MapModel

    def __init__(
        self, model: MapModel, *, view: float = 1.0, device: str = "auto", backend: str = "auto", learn: bool = True
    ) -> None:
        if not (math.isfinite(view) and view > 0):
            raise ConfigError(f"map: the side of a view is {view} units of the poses: expected a number above 0")
        self.view = view
        self.plane = Plane(None)
        self._form: Callable[[], Form | None] | None = None  # of the source, while the form of its poses is unknown
        layers = [module for module in model.modules() if isinstance(module, TTTLayer)]
        place(layers, backend, choose_device(device))
        super().__init__(model, device, learn=learn)

    def begin(self, source: Source) -> None:
        """Set `plane` for the poses of this source, at its first pose if their form is not known before."""
        self.plane = Plane(source.pose_form)
        self._form = (lambda: source.pose_form) if source.pose_form is None else None

    def reset(self) -> None:
        super().reset()
        self.extent = NOWHERE
        self.normaliser = Normaliser()
        self.shifts = Shifts()
        self.at = np.zeros(NUMBERS)
        self._learned: dict[tuple[float, ...], int] = {}  # recently learned cells, with the frame of learning
        self._parts: dict[tuple[float, ...], int] = {}  # partly learned cells, with the frame of learning

    def _more(self) -> dict[str, Any]:
        learned, parts = ([[*name, when] for name, when in kept.items()] for kept in (self._learned, self._parts))
        return {
            "view": self.view,
            "learned": learned,
            "parts": parts,
            "extent": None if math.isnan(self.extent.world) else self.extent,
            "normaliser": self.normaliser.state(),
            "shifts": self.shifts,
        }

    def _go_on(self, meta: dict[str, Any]) -> None:
        self.view = float(meta["view"])  # the learned state has this scale
        self._learned, self._parts = (
            {tuple(name): int(when) for *name, when in meta[kept]} for kept in ("learned", "parts")
        )
        self.normaliser.restore(meta.get("normaliser", self.normaliser.state()))  # older files have none
        self.shifts = Shifts(*meta.get("shifts", ()))  # the same
        extent = meta["extent"]
        self.extent = NOWHERE if extent is None else Extent(tuple(extent[0]), tuple(extent[1]), extent[2])

    def push(self, frame: Frame | NDArray[np.generic]) -> Result:
        """Predict the frame at its pose, compare it with the prediction, and learn the frame.

        Poses may be noisy, drift, or be late. So the shift between the frame and the prediction is measured
        (`tttstream.streams.registration`); if shifts in this stream are larger than with exact poses, the frame is
        predicted, compared and learned at the corrected pose.

        Each cell that the frame shows whole has a score (`MapModel.score`): the squared error of the prediction,
        divided by the error that the network predicts for itself, times the familiarity of the cell. The score is about
        1 if the cell has not changed, and 0 if the cell is new or was never seen whole. The loss of the frame is its
        largest score. The surprise is the logarithm of the loss on the scale of `MapConfig.usual`.

        A frame without a pose is from a camera that stands still, whose few cells are learned very often, so that the
        error predicted for them is too small. Then the loss is the mean squared error of the cells, and the surprise is
        the score relative to the past of the stream (`Normaliser`), as for `tttstream.Stream`. A known cell
        learns only the share STILL of the difference from its expected codes, so the memory holds a mean of the past.

        A cell is learned again only after AGAIN frames, because consecutive views are nearly the same.

        Raises FrameError for another shape, type or pose, or for pixels that are not finite; the stream is then
        unchanged.
        """
        arrived, frame = self._arrived(frame)
        if frame.pose is not None and self._form is not None:
            self.plane, self._form = Plane(self._form()), None
        given = None if frame.pose is None else self.plane(frame.pose)
        picture, pose = self.picture(frame), self._pose(given, f"frame {frame.index}")
        with torch.inference_mode():
            shifts = self.shifts
            if given is None:
                view = self.model.view(pose, self.state)
            else:
                shifts, pose, view = self._registered(picture, pose)
            now = self._compare(picture, pose, view)
            error = (now.cells.codes[0, 0] - now.said.codes).square().mean(-1)
            scores = torch.where(now.counts, self.model.score(now.cells.codes[0, 0], now.said), 0.0)
            loss = float(scores.max() if given is not None else error[now.cells.shown[0, 0] > WHOLE].mean())
            if not np.isfinite(float(error.sum())):
                raise FrameError(
                    f"frame {frame.index}: the error is {float(error.sum())}; reset the stream or load its last state"
                )
            surprises, familiar = (
                self.model.by_patch(part[None], pose, now.view.block)[0] for part in (scores, now.said.familiar)
            )
            learned = self._learn(now, error, STILL if given is None else 1.0) if self.learn else 0.0
        if given is None:
            surprise = self.normaliser.push(loss)
        else:
            usual, spread = self.model.config.usual
            surprise = (math.log(loss + LEAST) - usual) / spread
        self.frames += 1
        self.shifts, self.at = shifts, pose[0].cpu().numpy()
        self.extent = self.extent.around(self.at)
        return Result(
            index=frame.index,
            time_s=frame.time_s,
            surprise=surprise,
            loss=loss,
            learned=learned,
            surprise_map=surprises.float().cpu().numpy(),
            embedding=np.empty(0, np.float32),
            expected=painted(now.view.picture[0]),
            familiar=float(familiar.mean()),
            latency_ms=(time.perf_counter() - arrived) * 1e3,
        )

    def _corrected(self, pose: Tensor, shifts: Shifts) -> Tensor:
        """A pose [1, 5] without its latest error."""
        return pose + pose.new_tensor(shifts.pose(self.model.config.size))

    def _registered(self, picture: Tensor, pose: Tensor) -> tuple[Shifts, Tensor, View]:
        """The shifts after this picture [3, S, S], its corrected pose [1, 5], and the view expected there. The search
        begins at the shift of the frame before."""
        before = self.shifts
        at = self._corrected(pose, before)
        view = self.model.view(at, self.state)
        found = measured(picture, at, view, self.model.config)
        shifts = before.after(None if found is None else Measured(*map(sum, zip(before[:4], found, strict=True))))
        if shifts[:4] != before[:4]:
            at = self._corrected(pose, shifts)
            view = self.model.view(at, self.state, view)
        return shifts, at, view

    def _compare(self, picture: Tensor, pose: Tensor, view: View) -> Compared:
        """Compare the picture [3, S, S], taken at a pose [1, 5], with the view that is expected there."""
        cells = self.model.cells(picture[None, None], pose[:, None], view)
        names = [tuple(point) for point in cells.points[0, 0].tolist()]
        entire = torch.tensor([name not in self._parts for name in names], device=self.device)
        said = MapOutput(*(part[0] for part in view.said))
        return Compared(view, cells, names, said, (cells.shown[0, 0] > WHOLE) & entire)

    def _learn(self, now: Compared, error: Tensor, share: float) -> float:
        """Learn the cells of a frame that are in view and were not learned in the last AGAIN frames; returns the share
        of their error that this removed. share: how much of the difference
        from the expected codes known cells learn."""
        cells, names = now.cells, now.names
        whole = (cells.shown[0, 0] > WHOLE).tolist()
        part = ((cells.shown[0, 0] > PART) & (now.said.familiar < KNOWN)).tolist()
        self._learned = {name: frame for name, frame in self._learned.items() if self.frames - frame < AGAIN}
        chosen = [i for i, name in enumerate(names) if (whole[i] or part[i]) and name not in self._learned]
        if not chosen:
            return 0.0
        for name, entire in ((names[i], whole[i]) for i in chosen):
            self._parts.pop(name, None)
            if entire:
                self._learned[name] = self.frames
            else:
                self._parts[name] = self.frames
        self._parts = dict(list(self._parts.items())[-PARTS:])
        cells = Cells(*(values[:, :, chosen] for values in cells))
        known = (now.said.familiar[chosen] > KNOWN)[:, None]
        codes = torch.where(known, torch.lerp(now.said.codes[chosen], cells.codes, share), cells.codes)
        after, self.state = self.model.learned(cells._replace(codes=codes), self.state)
        left = (after.codes - cells.codes).square().mean()
        return 1.0 - float(left / error[chosen].mean().clamp(min=1e-12))

    def imagine(self, pose: Sequence[float] | NDArray[np.floating[Any]]) -> Imagined:
        """The expected picture at a pose of 2 to 5 numbers. Nothing is learned. Raises FrameError for another pose."""
        with torch.inference_mode():
            at = self._pose(pose, "imagine")
            expected = self.model.view(at, self.state)
            familiar = self.model.by_patch(expected.said.familiar, at, expected.block)[0]
        return Imagined(painted(expected.picture[0]), familiar.float().cpu().numpy())

    def world(self, extent: Extent | None = None) -> Imagined:
        """The world in the memory, within `extent`, by default the visited part: a picture with config.size pixels per
        view [H, W, 3], and how familiar its cells are [rows, columns]. It contains every cell that the extent touches.
        Nothing is learned.

        Raises StateError if the stream has seen no frame yet.
        """
        extent = self.extent if extent is None else extent
        if math.isnan(extent.world):
            raise StateError("a map that has seen no frame has no world to draw: push frames, or load a state")
        block = extent.block(self.model.config.side)
        with torch.inference_mode():
            world = torch.tensor([extent.world], dtype=torch.float64, device=self.device)
            block = block._replace(corner=block.corner[None].to(self.device))
            said = self.model.imagine(self.model.points(block, world), self.state)
            picture = self.model.pictures(said, block)[0]
            familiar = said.familiar[0].view(block.rows, block.columns)
        return Imagined(painted(picture), familiar.float().cpu().numpy())

    def _pose(self, pose: Sequence[float] | NDArray[np.floating[Any]] | None, what: str) -> Tensor:
        """[1, 5] in float64, of a pose or of none."""
        try:
            numbers = np.zeros(2) if pose is None else np.asarray(pose, np.float64)
        except (TypeError, ValueError):
            numbers = np.zeros(0)
        if numbers.ndim != 1 or not 2 <= len(numbers) <= NUMBERS or not np.isfinite(numbers).all():
            raise FrameError(
                f"{what}: a map takes a pose of 2 to {NUMBERS} finite numbers (x, y, log zoom, roll, world), got {pose}"
            )
        numbers = np.pad(numbers, (0, NUMBERS - len(numbers)))
        numbers[:2] /= self.view
        at = torch.from_numpy(numbers)[None]
        try:
            around(at, self.model.config.side)
        except ShapeError as error:  # too far away
            raise FrameError(f"{what}: {str(error).removeprefix('map: ')}") from error
        return at.to(self.device)
