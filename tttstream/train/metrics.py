"""Quality of predicted frames: MSE, PSNR and SSIM, in tables by horizon and by position in the stream."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

LEAST_MSE = 1e-10
"""The PSNR of an exact prediction is 100 dB, so that means are finite."""

HALF = 5
"""Half a window of SSIM, in pixels."""

QUALITIES = ("mse", "psnr", "ssim")


def qualities(predicted: Tensor, target: Tensor) -> Tensor:
    """Frames [n, 3, H, W] in 0..1 -> [n, 3]: MSE, PSNR in dB and SSIM (Wang et al. 2004, 11 x 11 Gaussian window).

    SSIM is the mean over the windows inside the picture, and over colours; a picture smaller than a window is padded
    by reflection.
    """
    predicted, target = predicted.float().clamp(0, 1), target.float()
    mse = (predicted - target).square().mean((1, 2, 3))
    psnr = -10 * mse.clamp(min=LEAST_MSE).log10()
    _, ssim = structural_similarity_index_measure(
        predicted, target, data_range=1.0, reduction="none", return_full_image=True
    )
    if min(ssim.shape[-2:]) > 2 * HALF:  # torchmetrics reflects every picture
        ssim = ssim[..., HALF:-HALF, HALF:-HALF]
    return torch.stack([mse, psnr, ssim.mean((1, 2, 3))], dim=1)


def octave(position: Tensor) -> Tensor:
    """The row of a table by position: 0 for frame 0, then 1, 2-3, 4-7, 8-15 …"""
    return torch.frexp(position.float())[1].long()


class Table(Metric):
    """Means of several columns, row by row, over all processes."""

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, rows: int, columns: Sequence[str]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        self.add_state("sums", torch.zeros(rows, len(columns), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(rows, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, row: Tensor, values: Tensor) -> None:
        """Add values [n, columns] to the rows [n]; rows beyond the last count as the last."""
        row = row.clamp(max=len(self.counts) - 1)
        self.sums.index_add_(0, row, values.to(self.sums.dtype))
        self.counts.index_add_(0, row, torch.ones_like(row, dtype=self.counts.dtype))

    def compute(self) -> Tensor:
        """[rows, columns + 1]: sums over all processes, and their counts in the last column."""
        return torch.cat([self.sums, self.counts[:, None]], dim=1)

    def means(self) -> dict[int, dict[str, float]]:
        """Row and column -> mean, of the rows with values."""
        sums = self.compute()
        return {row: self._named(part) for row, part in enumerate(sums) if part[-1] > 0}

    def overall(self) -> dict[str, float]:
        """Column -> mean over all rows; empty without values."""
        sums = self.compute().sum(0)
        return self._named(sums) if sums[-1] > 0 else {}

    def _named(self, sums: Tensor) -> dict[str, float]:
        return dict(zip(self.columns, (sums[:-1] / sums[-1]).tolist(), strict=True))
