"""The networks around the memory: a frame to features, a mask to code, and what was read to a mask."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 4
"""Pixels along the side of a token."""
WHOLE = 16
"""Frames are a multiple of this in height and width."""
EVERY = 2
"""Of every so many rows and columns of tokens one teaches; all are asked."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(outputs // 8, outputs), nn.ReLU()
    )


class Residual(nn.Module):
    """x + two 3x3 convolutions of x, the same width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _conv(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(width // 8, width))
        nn.init.zeros_(self.second[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w] -> the same."""
        return F.relu(x + self.second(self.first(x)))


class Pyramid(nn.Module):
    """Down to a quarter of the size and up again, with what was fine added on the way: every place sees far."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.here = Residual(width)
        self.middle = nn.Sequential(_conv(width, width + 16, 2), Residual(width + 16))
        self.far = nn.Sequential(_conv(width + 16, width + 32, 2), Residual(width + 32))
        self.from_far = nn.Conv2d(width + 32, width + 16, 1)
        self.from_middle = nn.Conv2d(width + 16, width, 1)
        self.out = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width, h, w], h and w multiples of 4 -> the same."""
        x = self.here(x)
        middle = self.middle(x)
        middle = middle + _resize(self.from_far(self.far(middle)), 2)
        return self.out(x + _resize(self.from_middle(middle), 2))


def _resize(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class Features(NamedTuple):
    """What the encoder says of frames: fine [n, c, H/2, W/2], coarse [n, width, H/4, W/4], and keys
    [n, N, heads * D], one for each token of the coarse grid in reading order."""

    fine: Tensor
    coarse: Tensor
    keys: Tensor


class Encoder(nn.Module):
    """Frames to features and keys. The first heads see what a place looks like, the last `placed` also where it is.

    Places are sines and cosines of pixels from the middle of the frame, so a larger frame has more of them and all
    else stays; `offset` [n, 2] moves the middle, so that training on small frames meets them all.
    """

    frequencies: Tensor

    def __init__(self, width: int, heads: int, head_width: int, placed: int, waves: int = 8) -> None:
        super().__init__()
        self.fine = _conv(3, 16, 2)
        self.down = _conv(16, width, 2)
        self.pyramid = Pyramid(width)
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
        near = [colour, *(_blur(colour, size) for size in (3, 7))]
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


def _blur(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False)


class MaskCode(nn.Module):
    """Masks to what the memory shall say of each token that teaches: a code [n, M, heads, D] and a rate [n, M, heads].

    The code has mean 0 and variance 1, as the layer normalisation that ends the inner model can give it. The rate is
    balanced, so that the object and its surroundings teach alike whatever the object's size.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.mix = nn.Sequential(nn.Conv2d(2 * (STRIDE * STRIDE + 4), 64, 3, EVERY, 1, bias=False), nn.ReLU())
        self.code = nn.Conv2d(64, heads * head_width, 1, bias=False)
        self.rate = nn.Conv2d(64, heads, 1)
        nn.init.zeros_(self.rate.bias)  # type: ignore[arg-type]

    def forward(self, masks: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """masks, others (all further objects together) [n, H, W] in 0..1."""
        part = F.pixel_unshuffle(masks[:, None], STRIDE)
        share = part.mean(1, keepdim=True)
        other = F.avg_pool2d(others[:, None], STRIDE)
        x = torch.cat([part, other, *(_blur(share, size) for size in (3, 7, 15))], 1)
        x = self.mix(torch.cat([x, 1 - x], 1))
        code = self.code(x).flatten(2).mT.unflatten(2, (self.heads, self.head_width))
        share = share[:, 0, ::EVERY, ::EVERY].flatten(1)
        ours = share.mean(1, keepdim=True)
        balance = 0.5 * (share / ours.clamp(min=0.02) + (1 - share) / (1 - ours).clamp(min=0.02))
        return F.layer_norm(code, code.shape[-1:]), self.rate(x).flatten(2).mT.sigmoid() * balance[..., None]


class Decoder(nn.Module):
    """What the memory said of each token, and the frame's features, to log-odds of the object."""

    def __init__(self, width: int, read: int) -> None:
        super().__init__()
        self.guess = nn.Conv2d(read, 1, 1)
        self.read = nn.Conv2d(read, width, 1)
        self.seen = nn.Conv2d(width, width, 1)
        self.pyramid = Pyramid(width)
        self.up = nn.Conv2d(width, 16, 1)
        self.fine = nn.Sequential(_conv(32, 16), nn.Conv2d(16, 1, 3, padding=1))
        for parameter in self.fine[1].parameters():  # at first the guess stands alone
            nn.init.zeros_(parameter)

    def forward(self, read: Tensor, features: Features, objects: int) -> tuple[Tensor, Tensor]:
        """read [n * objects, N, values], features of n frames -> logits at [n, objects, H, W] and at [.., H/4, W/4].

        The second is made of what was read alone, token by token.
        """
        height, width = features.coarse.shape[-2:]
        picture = read.mT.unflatten(2, (height, width))
        guess = self.guess(picture)
        seen = self.seen(features.coarse).repeat_interleave(objects, 0)
        x = self.pyramid(F.relu(self.read(picture) + seen))
        fine = torch.cat([_resize(self.up(x), 2), features.fine.repeat_interleave(objects, 0)], 1)
        logits = _resize(self.fine(fine) + _resize(guess, 2), 2)
        return logits.unflatten(0, (-1, objects)).squeeze(2), guess.unflatten(0, (-1, objects)).squeeze(2)
