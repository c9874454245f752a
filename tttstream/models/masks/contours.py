"""The trained networks of a TargetModel: the encoding of masks, contours, and their expected overlap."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.models.masks.networks import Residual, convolution, resized

SCORES = 8
"""Scores of the target model for each token: the object's share in it, and the other numbers of an Encoding."""
MEMORIES = {"target": (*range(SCORES),), "given": (8, 9), "last": (10, 11), "past": (12, 13)}
"""The cues of each memory, by its name."""
CUES = 14
DEEP = 64  # channels at a sixteenth of the size
FINE = 32  # channels at a quarter


class Encoding(nn.Module):
    """The targets of the target model for each token: twice the object's share in it less one, and a learned code of
    the mask around the token (arXiv 2003.11540, section 3.4)."""

    def __init__(self) -> None:
        super().__init__()
        self.around = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, SCORES - 1, 3, padding=1), nn.Tanh()
        )

    def forward(self, shares: Tensor) -> Tensor:
        """Shares [B, O, H/4, W/4] in 0..1 -> [B, O, SCORES, H/8 * W/8]."""
        share = F.avg_pool2d(shares, 2)
        around: Tensor = self.around(2 * shares.flatten(0, 1)[:, None] - 1)
        return torch.cat([2 * share[:, :, None] - 1, around.unflatten(0, shares.shape[:2])], 2).flatten(3)


class TargetContour(nn.Module):
    """Cues of each token and the frame's features to log-odds of each object at a quarter of the size.

    Distant tokens are combined at a sixteenth of the size; fine features are added at larger sizes.
    """

    def __init__(self, seen: int, fine: int, channels: int) -> None:
        super().__init__()
        self.seen = nn.Conv2d(seen, channels, 1, bias=False)
        self.cues = nn.Conv2d(CUES, channels, 3, padding=1)
        self.deep = nn.Sequential(convolution(channels, DEEP, 2), Residual(DEEP), Residual(DEEP))
        self.back = nn.Conv2d(DEEP, channels, 1)
        self.near = Residual(channels)
        self.fine = nn.Conv2d(fine, FINE, 1)
        self.into = nn.Conv2d(channels, FINE, 1)
        drawn = nn.Conv2d(FINE, 1, 3, padding=1)
        self.out = nn.Sequential(convolution(FINE, FINE), convolution(FINE, FINE), drawn)
        self.straight = nn.Conv2d(CUES, 1, 1)
        self.fit = nn.Sequential(nn.Linear(2 * DEEP + 5, 48), nn.ReLU(), nn.Linear(48, 1))
        for parameter in (*drawn.parameters(), *self.straight.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            for cue, weight in ((0, 2.0), (8, 1.0), (9, -1.0), (10, 2.0), (11, -2.0), (12, 1.0), (13, -1.0)):
                self.straight.weight[0, cue] = weight

    def forward(self, cues: Tensor, features: Tensor, quarter: Tensor) -> tuple[Tensor, Tensor]:
        """cues [n, O, CUES, h, w], features [n, C, h, w] and quarter [n, C', 2 h, 2 w] of n frames -> log-odds [n, O, 2
        h, 2 w] and log-odds of the expected overlap J [n, O], which is 0 for an object out of view."""
        objects = cues.shape[1]
        x = cues.flatten(0, 1)
        begun = F.relu(self.cues(x) + self.seen(features).repeat_interleave(objects, 0))
        deep = self.deep(begun)
        near = self.near(F.relu(begun + self.back(resized(deep, begun.shape[-2:]))))
        size = quarter.shape[-2:]
        fine = F.relu(self.fine(quarter).repeat_interleave(objects, 0) + resized(self.into(near), size))
        drawn: Tensor = self.out(fine) + resized(self.straight(x), size)
        fit = self._fit(deep.detach(), drawn.detach()[:, 0].sigmoid(), x.detach())
        return drawn.unflatten(0, (-1, objects)).squeeze(2), fit.unflatten(0, (-1, objects))

    def _fit(self, deep: Tensor, share: Tensor, cues: Tensor) -> Tensor:
        """From features in and around what was drawn, its size, how sure it is, and the target model's score there."""
        weight = F.adaptive_avg_pool2d(share[:, None], (deep.shape[2], deep.shape[3]))
        total = weight.sum((2, 3)).clamp(min=1e-3)
        here = (deep * weight).sum((2, 3)) / total
        token = F.avg_pool2d(share, 2)
        sum_token = token.sum((1, 2)).clamp(min=1e-3)
        said = [
            (share.square().sum((1, 2)) / share.sum((1, 2)).clamp(min=1e-3)),
            share.mean((1, 2)).clamp(min=1e-4).log() / 4,
            *((cues[:, cue] * token).sum((1, 2)) / sum_token for cue in (0, 8, 10)),
        ]
        fit: Tensor = self.fit(torch.cat([here, deep.amax((2, 3)), torch.stack(said, 1)], 1))
        return fit[:, 0]
