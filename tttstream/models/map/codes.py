"""Codes of patches: whitened principal components of pixels, fixed, so that no loss can make them easy."""

import torch
from torch import Tensor, nn


class PatchCodes(nn.Module):
    """Pictures [..., 3, h * p, w * p] in 0..1 <-> codes [..., h * w, C] of their patches of p × p, in reading order.

    The components are orthonormal. Each is divided by its deviation, so that contours count as much in a code as the
    mean colour does. They are buffers: `fit` sets them once, they are saved with the model, and no loss trains them.
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, patch: int, codes: int) -> None:
        super().__init__()
        self.patch = patch
        self.register_buffer("mean", torch.full((3 * patch * patch,), 0.5))
        self.register_buffer("basis", torch.eye(3 * patch * patch)[:, :codes].clone())
        self.register_buffer("scale", torch.full((codes,), 0.25))

    def patches(self, pictures: Tensor) -> Tensor:
        """[..., 3, h * p, w * p] -> [..., h * w, 3 * p * p]."""
        p = self.patch
        cut = pictures.unflatten(-2, (-1, p)).unflatten(-1, (-1, p))  # [..., 3, h, p, w, p]
        return cut.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Take the leading principal components of the patches of pictures [B, 3, S, S]."""
        patches = self.patches(pictures).flatten(0, 1).float()
        self.mean.copy_(patches.mean(0))
        centred = patches - self.mean
        self.basis.copy_(torch.linalg.eigh(centred.mT @ centred)[1].flip(1)[:, : self.basis.shape[1]])
        self.scale.copy_((centred @ self.basis).square().mean(0).sqrt())

    def encode(self, pictures: Tensor) -> Tensor:
        """[..., 3, h * p, w * p] -> [..., h * w, C]."""
        return (self.patches(pictures) - self.mean) @ self.basis / self.scale

    def decode(self, codes: Tensor) -> Tensor:
        """[..., C] -> patches [..., 3, p, p]."""
        pixels = codes * self.scale @ self.basis.mT + self.mean
        return pixels.unflatten(-1, (3, self.patch, self.patch))

    def picture(self, codes: Tensor, rows: int) -> Tensor:
        """Codes [..., rows * columns, C] of one picture -> [..., 3, rows * p, columns * p]."""
        patches = self.decode(codes).unflatten(-4, (rows, -1))  # [..., rows, columns, 3, p, p]
        return patches.movedim((-5, -4), (-4, -2)).flatten(-4, -3).flatten(-2)
