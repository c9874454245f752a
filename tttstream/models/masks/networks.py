"""The networks around the memory: a frame to features and keys, and what was found of tokens to contours."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4
"""Pixels along the side of a token."""
FINE = 16
"""Channels of the features at half the size."""
WHOLE = 16
"""Frames are a multiple of this in height and width."""


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution, group norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(outputs // 8, outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """x + two 3x3 convolutions of x, the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(width // 8, width))
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> the same."""
        return F.relu(x + self.second(self.first(x)))


class Pyramid(nn.Module):
    """Down to a quarter of the size and up again, with what was fine added on the way: every place sees far.

    depth: residuals at a half and at a quarter of the size.
    """

    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.here = Residual(width)
        self.middle = nn.Sequential(convolution(width, width + 16, 2), *(Residual(width + 16) for _ in range(depth)))
        self.far = nn.Sequential(convolution(width + 16, width + 32, 2), *(Residual(width + 32) for _ in range(depth)))
        self.from_far = nn.Conv2d(width + 32, width + 16, 1)
        self.from_middle = nn.Conv2d(width + 16, width, 1)
        self.out = convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w], h and w multiples of 4 -> the same."""
        x = self.here(x)
        middle = self.middle(x)
        middle = middle + _resize(self.from_far(self.far(middle)), 2)
        return self.out(x + _resize(self.from_middle(middle), 2))


def resized(x: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    """Maps [n, c, h, w] at another size (height, width), bilinearly."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _resize(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class Features(NamedTuple):
    """What the encoder says of frames: fine [n, c, H/2, W/2], coarse [n, width, H/4, W/4], and keys
    [n, N, heads * D], one for each token of the coarse grid in reading order."""

    fine: Tensor
    coarse: Tensor
    keys: Tensor


class FeatureNetwork(nn.Module):
    """Frames to features and keys. The first heads see what a place looks like, the last `placed` also where it is.

    Places are sines and cosines of pixels from the middle of the frame, so a larger frame has more of them and all
    else stays; `offset` [n, 2] moves the middle, so that training on small frames meets them all.
    """

    frequencies: Tensor

    def __init__(self, width: int, heads: int, head_width: int, placed: int, depth: int = 1, waves: int = 8) -> None:
        super().__init__()
        self.fine = convolution(3, FINE, 2)
        self.down = convolution(FINE, width, 2)
        self.pyramid = Pyramid(width, depth)
        seen = width + 9
        look, place = (heads - placed) * head_width, placed * head_width
        self.look = nn.Sequential(nn.Conv2d(seen, 96, 1), nn.ReLU(), nn.Conv2d(96, look, 1, bias=False))
        self.place = nn.Sequential(nn.Conv2d(seen + 4 * waves, 128, 1), nn.ReLU(), nn.Conv2d(128, place, 1, bias=False))
        lengths = 24.0 * 2.0 ** (torch.arange(waves) * 0.5)  # from 24 pixels up by half octaves
        self.register_buffer("frequencies", 2 * math.pi / lengths, persistent=False)

    def forward(self, frames: Tensor, offset: Tensor | None) -> Features:
        """frames [n, 3, H, W] in 0..1."""
        x = ((frames - 0.45) / 0.25).contiguous(memory_format=torch.channels_last)
        fine = self.fine(x)
        coarse = self.pyramid(self.down(fine))
        colour = F.avg_pool2d(x, 4)
        near = [colour, *(F.avg_pool2d(colour, n, 1, n // 2, count_include_pad=False) for n in (3, 7))]
        seen = torch.cat([coarse, *near], 1)
        look, place = self.look(seen), self.place(torch.cat([seen, self._places(coarse, offset)], 1))
        return Features(fine, coarse, torch.cat([look, place], 1).flatten(2).mT)

    def _places(self, x: Tensor, offset: Tensor | None) -> Tensor:
        count, _, height, width = x.shape
        axes = []
        for axis, size in enumerate((height, width)):
            at = STRIDE * (torch.arange(size, device=x.device, dtype=x.dtype) - (size - 1) / 2)
            at = at.expand(count, -1) if offset is None else at + offset[:, axis, None].to(x.dtype)
            angles = at[:, None] * self.frequencies.to(x.dtype)[:, None]
            axes.append(torch.cat([angles.sin(), angles.cos()], 1))
        rows, columns = axes[0][..., None].expand(-1, -1, -1, width), axes[1][:, :, None].expand(-1, -1, height, -1)
        return torch.cat([rows, columns], 1)


class Contour(nn.Module):
    """What the memory found of each token, and the frame's features, to log-odds of the object at half the size.

    It adds to the log-odds that were found, and starts with adding nothing.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.seen = nn.Conv2d(width, channels, 1, bias=False)
        self.found = nn.Conv2d(4, channels, 3, padding=1)
        self.near = Residual(channels)
        self.fine = nn.Sequential(convolution(channels + FINE, 24), nn.Conv2d(24, 1, 3, padding=1))
        for parameter in self.fine[1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, share: Tensor, alike: Tensor, features: Features) -> Tensor:
        """share [n, objects, h, w] of each object, alike [n, 1, h, w] how like each token is to what is remembered,
        features of n frames -> log-odds [n, objects, 2 h, 2 w]."""
        objects = share.shape[1]
        odds = share.clamp(1e-4, 1 - 1e-4).logit()
        others = share.sum(1, keepdim=True) - share
        said = torch.stack([odds / 4, share, others, alike.expand_as(share)], 2).flatten(0, 1)
        seen = self.seen(features.coarse).repeat_interleave(objects, 0)
        x = self.near(F.relu(self.found(said.to(seen.dtype)) + seen))
        fine = torch.cat([_resize(x, 2), features.fine.repeat_interleave(objects, 0)], 1)
        return _resize(odds, 2) + self.fine(fine).unflatten(0, (-1, objects)).squeeze(2).to(odds.dtype)
