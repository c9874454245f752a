"""Heads of a model: the next frame, and one vector."""

from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.models.tokens import patchify, unpatchify


class NextFrame(nn.Module):
    """The next frame as this frame plus a learned change for each patch; before training the change is 0.

    unit: the scale of the change, where 1 is the range from black to white; small if only small changes are expected.
    """

    def __init__(self, dim: int, patch: int, unit: float = 1.0) -> None:
        super().__init__()
        self.patch, self.unit = patch, unit
        self.norm = nn.LayerNorm(dim)
        self.change = nn.Linear(dim, patch * patch * 3)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, tokens: Tensor, frames: Tensor) -> Tensor:
        """tokens [B, T, N, dim] of frames [B, T, 3, H, W] -> the frames after each [B, T, 3, H, W]."""
        height, width = frames.shape[-2:]
        patches = patchify(frames, self.patch) + self.unit * self.change(self.norm(tokens))
        return unpatchify(patches, self.patch, height, width)


class Embedding(nn.Module):
    """One vector of length 1 for a frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, N, dim] -> [B, T, dim]."""
        return F.normalize(self.project(self.norm(tokens).mean(2)), dim=-1)
