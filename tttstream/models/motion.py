"""Motion: the shift of each patch since the previous frame, and a prediction that continues it."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.state import State

FAINT = 1e-5
"""Added to squared differences before their logarithm, so that less than a grey level has no effect."""


class _PastFields(NamedTuple):
    light: Tensor
    seen: Tensor


class Past(State, _PastFields):
    """The previous frame: light [B, H, W], its mean over colours; seen [B], 1 if there was one."""

    __slots__ = ()


class Costs(NamedTuple):
    """The differences between frames and the previous frames, for each shift.

    patches: [B, T, N, shifts], log of the mean squared difference in a square of two patch sides around each patch.
    cells: [B, T, shifts, rows, columns], the mean squared difference over each cell of half a patch.
    """

    patches: Tensor
    cells: Tensor


class Motion(nn.Module):
    """Predicts the next frame by shifting this one by the motion since the previous one (block matching, then learned).

    For every cell and every shift of up to `reach` pixels, `costs` is the difference between this frame and the
    previous frame after that shift. A softmax over shifts, of the costs and of an output of the tokens, mixes the
    shifted versions of this frame; between the centres of cells the mixture changes linearly. Before training the
    output of the tokens is 0.
    """

    def __init__(self, dim: int, patch: int, reach: int) -> None:
        super().__init__()
        self.patch, self.cell, self.reach = patch, patch // 2, reach
        self.shifts = (2 * reach + 1) ** 2
        self.describe = nn.Linear(self.shifts + 2, dim)
        self.norm = nn.LayerNorm(dim)
        self.prefer = nn.Linear(dim, self.shifts + 2)
        self.sharpness = nn.Parameter(torch.full((2,), 0.5))  # its exponential is the weight of each of the two costs
        nn.init.zeros_(self.prefer.weight)
        nn.init.zeros_(self.prefer.bias)

    def init_past(self, batch: int, side: int) -> Past:
        """The state before the first frame, all zeros."""
        dtype = torch.float64 if self.sharpness.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, dtype=dtype, device=self.sharpness.device)
        return Past(zeros(batch, side, side), zeros(batch))

    def costs(self, frames: Tensor, past: Past, reset: Tensor | None) -> tuple[Costs, Past]:
        """Frames [B, T, 3, H, W], reset [B, T] -> costs, and the state after these frames.

        Without a previous frame, a frame is compared with itself, as if nothing moved.
        """
        light = frames.mean(2).to(past.light.dtype)
        before = torch.cat([past.light[:, None], light[:, :-1]], 1)
        first = (torch.arange(light.shape[1], device=light.device) == 0) & (past.seen == 0)[:, None]
        first = first if reset is None else first | reset
        before = torch.where(first[..., None, None], light, before)
        moved = self._moved(before.flatten(0, 1)[:, None])[:, 0].flatten(1, 2)
        wrong = F.avg_pool2d((moved - light.flatten(0, 1)[:, None]).square(), self.cell)
        patches = F.avg_pool2d(wrong, 4, 2, 1, count_include_pad=False).flatten(2).transpose(1, 2) + FAINT
        rows = light.shape[:2]
        costs = Costs(patches.log().unflatten(0, rows), wrong.unflatten(0, rows))
        return costs, Past(light[:, -1], torch.ones_like(past.seen))

    def tokens(self, costs: Costs) -> Tensor:
        """The features of motion, which are added to the tokens: [B, T, N, dim]."""
        logs = costs.patches
        least, still = logs.amin(-1, keepdim=True), logs[..., self.shifts // 2, None]
        x = torch.cat([logs - least, least + 8.0, still + 8.0], -1)  # 8: so that they are about 0 on average
        return self.describe(x.to(self.describe.weight.dtype))

    def forward(self, tokens: Tensor, costs: Costs, frames: Tensor) -> Tensor:
        """tokens [B, T, N, dim] and costs of frames [B, T, 3, H, W] -> the shifted frames [B, T, 3, H, W]."""
        height, width = frames.shape[-2:]
        cells = costs.cells.flatten(0, 1)
        around = F.avg_pool2d(cells, 3, 1, 1, count_include_pad=False)
        logs = (torch.stack([cells, around], 1) + FAINT).log()
        said = self.prefer(self.norm(tokens)).to(cells.dtype).flatten(0, 1).transpose(1, 2)
        said = said.unflatten(2, (height // self.patch, width // self.patch))
        said = F.interpolate(said, scale_factor=2.0, mode="bilinear")
        powers = (self.sharpness[:, None, None] + said[:, self.shifts :]).exp()
        mixture = (said[:, : self.shifts] - (powers[:, :, None] * logs).sum(1)).softmax(1)
        mixture = F.interpolate(mixture, (height, width), mode="bilinear")
        moved = self._moved(frames.flatten(0, 1)).flatten(2, 3)
        return (mixture[:, None] * moved).sum(2).to(frames.dtype).unflatten(0, frames.shape[:2])

    def _moved(self, pictures: Tensor) -> Tensor:
        """[n, C, H, W] -> [n, C, rows, columns, H, W], a view: shifted down and right by reach … -reach pixels."""
        height, width = pictures.shape[-2:]
        padded = F.pad(pictures, (self.reach,) * 4, mode="replicate")
        return padded.unfold(2, height, 1).unfold(3, width, 1)
