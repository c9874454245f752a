"""MapModel: frames and poses go in, and out comes what memory expects at any pose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.errors import ConfigError, ShapeError
from tttstream.models.base import SavedModel, check_frames, check_numbers, check_reset
from tttstream.models.map.codes import PatchCodes
from tttstream.models.map.lattice import Block, around, cell_points, drawn, evened, laid
from tttstream.models.map.place_memory import PlaceMemory
from tttstream.models.map.points import NUMBERS, SIZE, CellMarks, PlaceKeys, complete

FLOOR = 0.05  # added to the error that memory expects of a cell
KNOWING = 8.0  # factor from the agreement of marks, about 0 to 1, to the logit of familiarity at first
KNOWN = 0.5  # how familiar a cell must be for what memory has of it to stand for what is not in view


@dataclass(frozen=True)
class MapConfig:
    """The options of a map.

    size: side of the square picture in pixels. patch: side of a patch, and of a cell of the world at zoom 1. codes:
    components of a cell's code. scale: distance in sides of a view beyond which the keys of two places have little in
    common (`PlaceKeys`). marks: numbers that are stored with each code and identify the cell (`CellMarks`).
    where, what: widths of the two parts of a token. memory, heads, options: of the memory, see
    `tttstream.memory.build`. usual: mean and scale of the logarithm of a stream's loss where nothing has changed,
    which give the surprise its scale (`tttstream.train.calibration`)."""

    size: int = 64
    patch: int = 16
    codes: int = 48
    scale: float = 0.15
    marks: int = 16
    where: int = 88
    what: int = 80
    memory: str = "kernel_delta"
    heads: int = 2
    options: dict[str, Any] = field(default_factory=lambda: {"conv": 0, "features": 2048, "sharp": 3.0})
    usual: tuple[float, float] = (0.0, 0.4)

    def __post_init__(self) -> None:
        check_numbers(self, "map")
        if self.size % self.patch or self.patch % 2:
            raise ConfigError(f"map: size must be a multiple of patch, an even one, got {self.size} and {self.patch}")
        if self.codes > 3 * self.patch**2:
            raise ConfigError(
                f"map: a patch of {self.patch} pixels has {3 * self.patch**2} codes at most: {self.codes}"
            )
        object.__setattr__(self, "usual", tuple(self.usual))  # JSON and YAML give lists

    @property
    def side(self) -> int:
        """Patches along a side of the picture."""
        return self.size // self.patch


class MapOutput(NamedTuple):
    """What memory says of points.

    codes: [..., C] what is there. error: [...] the squared error to be expected of that, mean over codes.
    familiar: [...] the probability that the point was ever in view.
    """

    codes: Tensor
    error: Tensor
    familiar: Tensor


class Cells(NamedTuple):
    """Cells that frames show. codes: [..., n, C]. points: their middles, x, y and world [..., n, 3]. shown: how much of
    each is in view, 0..1 [..., n]."""

    codes: Tensor
    points: Tensor
    shown: Tensor


class View(NamedTuple):
    """What memory expects to see at poses [B, 5]. block: the cells that the views touch. said: what memory says of them
    [B, rows * columns, …]. laid: their pictures, side by side [B, 3, h, w]. picture: the views [B, 3, S, S]; both in
    about 0..1."""

    block: Block
    said: MapOutput
    laid: Tensor
    picture: Tensor


class MapModel(SavedModel):
    """Learns what is seen where, and says what is to be seen at a pose.

    Called as (frames [B, T, 3, S, S] uint8 or float 0..1, poses [B, T, 2 to 5], state, reset bool [B, T]) ->
    (MapOutput [B, T, n * n, …], state): what memory says of the cells that each frame shows, right after it learned
    them. With `ask` [B, T, n * n, 3] it speaks of these points instead, each as memory is when the cell at its place
    has been learned. `imagine` asks without learning. Poses are those of `tttstream.sources.places.Places`.
    """

    FORMAT = "tttstream.map/4"
    CONFIG = MapConfig
    gain: Tensor
    precision: Tensor
    USE = "watch places"

    def __init__(self, config: MapConfig) -> None:
        super().__init__()
        self.config = config
        self.codes = PatchCodes(config.patch, config.codes)
        self.keys = PlaceKeys(config.where, config.scale)
        self.marks = CellMarks(config.marks, config.side)
        self.register_buffer("gain", torch.ones(config.codes))
        self.register_buffer("precision", torch.eye(config.codes))
        self.memory = PlaceMemory(
            config.codes + config.marks, None, where=config.where, what=config.what, memory=config.memory,
            heads=config.heads, options=config.options, tied=True,
        )  # fmt: skip
        self.known = nn.Linear(1, 2)  # agreement of the marks -> parts of log error and logit
        with torch.no_grad():
            self.known.weight.copy_(torch.tensor([[-1.0], [KNOWING]]))
            self.known.bias.copy_(torch.tensor([0.5, -KNOWING / 2]))

    def init_state(self, batch: int) -> Any:
        """A fresh state of `batch` streams, all zeros."""
        return self.memory.init_state(batch)

    def block(self, poses: Tensor) -> Block:
        """The cells that views from poses [..., 2 to 5] touch."""
        return around(complete(poses.double()), self.config.side)

    def points(self, block: Block, world: Tensor) -> Tensor:
        """The middles of the cells of blocks in worlds [...], for `imagine`: [..., rows * columns, 3] in float64."""
        return cell_points(block, world.double(), self.config.side)

    def cells(self, frames: Tensor, poses: Tensor, expected: View | None = None, *, count: int | None = None) -> Cells:
        """What frames [B, T, 3, S, S] show, cell by cell: all cells of their blocks in reading order, or the `count`
        that each shows most of. expected: what memory expects at their poses [B * T, …]; what lies beyond the borders
        of the views is taken from there where it is familiar, else the outermost pixels are repeated."""
        check_frames(frames, self.config.size, None, "map")
        if poses.shape[:-1] != frames.shape[:2]:
            raise ShapeError(f"map: expected poses {[*frames.shape[:2], NUMBERS]}, got {list(poses.shape)}")
        side, patch = self.config.side, self.config.patch
        poses = complete(poses.double())
        block = around(poses, side)
        flat = block._replace(corner=block.corner.flatten(0, 1))
        pictures, inside = laid(self.pixels(frames).flatten(0, 1), poses.flatten(0, 1), flat, side, patch)
        points = cell_points(block, poses[..., 4], side)
        shown = F.avg_pool2d(inside.to(pictures.dtype)[:, None], patch).flatten(1).unflatten(0, frames.shape[:2])
        pictures = pictures.unflatten(0, frames.shape[:2])
        if expected is not None:
            known = (expected.said.familiar > KNOWN).view(*frames.shape[:2], block.rows, block.columns)
            known = known.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
            fill = known & ~inside.unflatten(0, frames.shape[:2])
            pictures = torch.where(fill[:, :, None], expected.laid.unflatten(0, frames.shape[:2]), pictures)
        cells = Cells(self.codes.encode(pictures), points, shown)
        if count is None:
            return cells
        away = (points[..., :2] - poses[..., None, :2]).abs().amax(-1)  # of two alike the nearer to the middle
        best = (shown - 1e-3 * away.to(shown.dtype)).argsort(dim=-1, descending=True, stable=True)[..., :count]
        wide = best[..., None]
        return Cells(
            cells.codes.gather(2, wide.expand(-1, -1, -1, cells.codes.shape[-1])),
            points.gather(2, wide.expand(-1, -1, -1, 3)),
            shown.gather(2, best),
        )

    def forward(
        self,
        frames: Tensor,
        poses: Tensor,
        state: Any = None,
        reset: Tensor | None = None,
        *,
        ask: Tensor | None = None,
        expected: View | None = None,
    ) -> tuple[MapOutput, Any]:
        """See the class; expected: see `cells`."""
        check_reset(reset, frames.shape[:2], "map")
        return self.learned(self.cells(frames, poses, expected, count=self.config.side**2), state, reset, ask)

    def learned(
        self, cells: Cells, state: Any = None, reset: Tensor | None = None, ask: Tensor | None = None
    ) -> tuple[MapOutput, Any]:
        """As a call, from the cells of frames."""
        ask = cells.points if ask is None else ask
        what = torch.cat([cells.codes, self.marks(cells.points).to(cells.codes.dtype)], dim=-1)
        where, asked = (self.keys(points).to(what.dtype) for points in (cells.points, ask))
        tokens = what.shape[2]
        if reset is not None:  # of the first token of a frame
            reset = torch.cat([reset[..., None], reset.new_zeros(*reset.shape, tokens - 1)], dim=2).flatten(1)
        answer, state = self.memory(*(part.flatten(1, 2) for part in (what, where, asked)), state, reset)
        return self._output(answer.unflatten(1, (-1, tokens)), ask), state

    def imagine(self, points: Tensor, state: Any) -> MapOutput:
        """What memory says of points [B, Q, 3] ([B, Q, …]); nothing is learned."""
        where = self.keys(points).to(self.codes.mean.dtype)
        return self._output(self.memory.read(where, state), points)

    def view(self, poses: Tensor, state: Any, near: View | None = None) -> View:
        """What memory expects at poses [B, 2 to 5]; nothing is learned. near: the view of the same state from other
        poses in the same worlds. If it shows the same cells, memory is not read again."""
        poses = complete(poses.double())
        side, size = self.config.side, self.config.size
        block = around(poses, side)
        if near is not None and near.block[1:] == block[1:] and torch.equal(near.block.corner, block.corner):
            said, pictures = near.said, near.laid
        else:
            said = self.imagine(cell_points(block, poses[:, 4], side), state)
            pictures = self.pictures(said, block)
        return View(block, said, pictures, drawn(pictures, poses, block, side, size))

    def score(self, codes: Tensor, said: MapOutput) -> Tensor:
        """The difference of cells with these codes [..., C] from their predictions [...]: about 1 without a change, 0
        for cells that the memory does not know.

        With the residual r = codes - `gain` * said.codes and P = `precision`, the score is familiar * (r P r / C) /
        (error + FLOOR). P weighs the directions of the codes by how well memory usually recalls them: a squared
        Mahalanobis distance.
        """
        residual = codes - self.gain * said.codes
        return said.familiar * (residual @ self.precision * residual).mean(-1) / (said.error + FLOOR)

    def pictures(self, said: MapOutput, block: Block) -> Tensor:
        """What memory says of the cells of blocks [B, rows * columns, …] as pictures [B, 3, h, w]."""
        known = (said.familiar > KNOWN).unflatten(-1, (block.rows, block.columns))
        return evened(self.codes.picture(said.codes, block.rows), known)

    def by_patch(self, values: Tensor, poses: Tensor, block: Block) -> Tensor:
        """Numbers of the cells of blocks [B, rows * columns], as they lie in views from poses [B, 5]: the means over
        the patches of the views [B, n, n]."""
        table = values.unflatten(1, (1, block.rows, block.columns))
        pixels = drawn(table, poses, block, self.config.side, self.config.size, "nearest")
        return F.avg_pool2d(pixels, self.config.patch)[:, 0]

    def _output(self, answer: Tensor, points: Tensor) -> MapOutput:
        """Convert the answers of the memory to queries about points. The memory has no marks of a cell that was never
        seen, so the recalled marks agree with those of the queried cell only if the cell is known."""
        codes, marks, error, logit = answer.split([self.config.codes, self.config.marks, 1, 1], dim=-1)
        agreement = (marks * self.marks(points).to(marks.dtype)).mean(-1, keepdim=True) / SIZE**2
        error, logit = (torch.cat([error, logit], dim=-1) + self.known(agreement)).unbind(-1)
        return MapOutput(codes, error.clamp(-8.0, 8.0).exp(), logit.sigmoid())

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames as floats 0..1 of the weights' type."""
        dtype = self.codes.mean.dtype
        return frames.to(dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(dtype)

    @classmethod
    def resized(cls, description: dict[str, Any], size: int) -> dict[str, Any]:
        """See SavedModel. Raises ConfigError for another size: a map has one."""
        if size != description["size"]:
            raise ConfigError(f"the map sees {description['size']} pixels, not {size}: leave the size out")
        return description
