"""Converts frames to tokens and back: patches, and their positions in the picture."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def patchify(frames: Tensor, patch: int) -> Tensor:
    """[..., C, H, W] -> [..., N, patch * patch * C], patches in reading order."""
    *lead, channels, height, width = frames.shape
    x = frames.reshape(-1, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(*lead, (height // patch) * (width // patch), -1)


def unpatchify(patches: Tensor, patch: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: [..., N, patch * patch * C] -> [..., C, H, W]."""
    *lead, _, values = patches.shape
    channels = values // (patch * patch)
    x = patches.reshape(-1, height // patch, width // patch, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(*lead, channels, height, width)


def grid_positions(height: int, width: int, dim: int) -> Tensor:
    """Sines and cosines of each token's row and column, half of the width for each: [height * width, dim].

    They depend on the position as a share of the picture, so the same weights work for any picture size.
    """
    quarter = dim // 4
    frequencies = torch.pi * 2.0 ** torch.linspace(0, 5, quarter)
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    parts = []
    for place in (rows[:, None].expand(height, width), columns[None, :].expand(height, width)):
        angles = place.reshape(-1, 1) * frequencies
        parts += [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, dim - 4 * quarter))


class PatchTokens(nn.Module):
    """The patches of a frame as tokens [..., N, dim] plus their positions, followed by registers."""

    place: Tensor

    def __init__(self, size: int, patch: int, dim: int, registers: int) -> None:
        super().__init__()
        self.patch = patch
        side = size // patch
        self.embed = nn.Linear(patch * patch * 3, dim)
        self.registers = nn.Parameter(0.02 * torch.randn(registers, dim))
        self.register_buffer("place", grid_positions(side, side, dim), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, T, 3, H, W] in 0..1 -> [B, T, N + registers, dim]."""
        x = self.embed(patchify((frames - 0.5) / 0.25, self.patch)) + self.place.to(self.embed.weight.dtype)
        if self.registers.shape[0] == 0:
            return x
        return torch.cat([x, self.registers.expand(*x.shape[:2], -1, -1)], dim=2)
