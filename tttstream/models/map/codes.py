"""Codes of patches: principal components of pixels, fixed, so that an error in codes is an error in pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PatchCodes(nn.Module):
    """Pictures [..., 3, S, S] in 0..1 <-> codes [..., n * n, C] of their n × n patches, in reading order.

    The components are orthonormal and share one scale, so that the squared error of codes is that of the pixels which
    the components span. They are buffers: `fit` sets them once, they are saved with the model, and no loss trains them.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch: int, codes: int) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("mean", torch.full((3 * patch * patch,), 0.5))
        self.register_buffer("basis", torch.eye(3 * patch * patch)[:, :codes].clone())
        self.register_buffer("scale", torch.tensor(0.25))

    def patches(self, pictures: Tensor) -> Tensor:
        """[..., 3, S, S] -> [..., n * n, 3 * patch * patch]."""
        p = self.patch
        n = pictures.shape[-1] // p
        cut = pictures.unflatten(-2, (n, p)).unflatten(-1, (n, p))  # [..., 3, n, p, n, p]
        return cut.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Take the leading principal components of the patches of pictures [B, 3, S, S]."""
        patches = self.patches(pictures).flatten(0, 1).float()
        self.mean.copy_(patches.mean(0))
        centred = patches - self.mean
        self.basis.copy_(torch.linalg.eigh(centred.mT @ centred)[1].flip(1)[:, : self.basis.shape[1]])
        self.scale.copy_((centred @ self.basis).square().mean().sqrt())

    def encode(self, pictures: Tensor) -> Tensor:
        """[..., 3, S, S] -> [..., n * n, C]."""
        return (self.patches(pictures) - self.mean) @ self.basis / self.scale

    def decode(self, codes: Tensor) -> Tensor:
        """[..., C] -> patches [..., 3, patch, patch]."""
        pixels = codes * self.scale @ self.basis.mT + self.mean
        return pixels.unflatten(-1, (3, self.patch, self.patch))

    def blended(self, codes: Tensor) -> Tensor:
        """Codes [rows, columns, C] of patches that overlap by half -> one picture [3, H, W] in which they blend."""
        p, step = self.patch, self.patch // 2
        rows, columns, _ = codes.shape
        ramp = 1 - ((torch.arange(p, dtype=codes.dtype, device=codes.device) + 0.5) / (p / 2) - 1).abs()
        window = torch.outer(ramp, ramp)
        patches = (self.decode(codes) * window).flatten(2).flatten(0, 1).mT[None]  # [1, 3 * p * p, rows * columns]
        weights = window.flatten()[None, :, None].expand(1, -1, rows * columns)
        size = (rows - 1) * step + p, (columns - 1) * step + p
        return (F.fold(patches, size, p, stride=step) / F.fold(weights, size, p, stride=step))[0]

    def picture(self, codes: Tensor) -> Tensor:
        """Codes [..., n * n, C] of one picture -> [..., 3, S, S]."""
        patches = self.decode(codes)
        n = round(patches.shape[-4] ** 0.5)
        rows = patches.unflatten(-4, (n, n)).movedim((-5, -4), (-4, -2))  # [..., 3, n, p, n, p]
        return rows.flatten(-4, -3).flatten(-2)
