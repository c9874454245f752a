"""Plants new objects into streams: moving parts of other videos in random shapes."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Planted(NamedTuple):
    """A segment with things planted into it.

    frames: [B, T, 3, H, W] as given. cover: [B, T, H, W], the share of each pixel that a planted thing covers. age: [B,
    T] frames since the thing appeared, -1 before that.
    """

    frames: Tensor
    cover: Tensor
    age: Tensor


def sensor_noise(frames: Tensor, clip: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to uint8 frames [B, T, 3, H, W]. Its deviation is 0 to `most` grey levels, constant in a clip.

    clip: [B, T], the number of the clip of each frame.
    """
    share = (clip.cpu() * 2654435761 % 1009).float() / 1009
    level = (most * share.square())[..., None, None, None]
    noise = level * torch.randn(frames.shape, generator=generator)
    return (frames + noise.to(frames.device)).round().clamp(0, 255).to(frames.dtype)


def excursion(frames: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """In about `share` of the rows of [B, T, 3, H, W], T >= 3, replace some frames in the middle by another row's.

    Returns the frames and a count [B, T]: 0 for a frame of the row itself, 1, 2 … for the replaced ones. The first and
    the last frame of a row are never replaced. A batch of one row is unchanged.
    """
    rows, count = frames.shape[:2]
    leaves = torch.rand(rows, generator=generator) < (share if rows > 1 else 0.0)
    cuts = 1 + (torch.rand(rows, 2, generator=generator) * (count - 2)).long()
    begin, end = cuts.min(1).values[:, None], cuts.max(1).values[:, None]
    away = (torch.arange(count) - begin + 1).clamp(min=0) * (torch.arange(count) <= end) * leaves[:, None]
    away = away.to(frames.device)
    return torch.where((away > 0)[..., None, None, None], frames.roll(1, 0), frames), away


def plant(frames: Tensor, share: float, generator: torch.Generator) -> Planted:
    """Plant one thing into about `share` of the rows of uint8 frames [B, T, 3, H, W], T >= 3.

    The thing is a blob of a tenth to a half of the picture's side, with pixels of another row (mirrored pixels of the
    row if there is only one), in other light. It enters from a side or appears at once, after the first frame, and
    stays until the end of the segment. All random numbers are drawn on the CPU, so that the result is the same on every
    device.
    """
    rows, count, _, height, width = frames.shape
    side = min(height, width)

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(rows, *shape, generator=generator)

    there = draw(0, 1) < share
    begin = (1 + draw(0, 1) * (count - 2)).long()
    age = torch.arange(count) - begin[:, None]
    age = torch.where(there[:, None], age, -1).clamp(min=-1)
    radius, aspect, turn = draw(0.08, 0.26) * side, draw(0.55, 1.0), draw(0, math.pi)
    wobble, lobes, phase = draw(0, 0.25), draw(2, 6).floor(), draw(0, 2 * math.pi)
    centre = 0.5 + draw(-0.28, 0.28, 2)
    edge = draw(0, 2 * math.pi)
    out = 0.5 + (0.5 + 0.7 * radius / side)[:, None] * torch.stack([edge.cos(), edge.sin()], 1)
    comes_in = draw(0, 1) < 0.6
    inward = (centre - out) / (centre - out).norm(dim=1, keepdim=True) * draw(0.02, 0.07, 1)
    start = torch.where(comes_in[:, None], out, centre)
    speed = torch.where(comes_in[:, None], inward, draw(-0.05, 0.05, 2))
    scale = torch.tensor([width, height])
    middle = (start[:, None] + speed[:, None] * age.clamp(min=0)[..., None]) * scale  # [B, T, 2]

    y, x = torch.arange(height)[:, None], torch.arange(width)
    dx = x - middle[..., 0, None, None]
    dy = y - middle[..., 1, None, None]
    cos, sin = (part[:, None, None, None] for part in (turn.cos(), turn.sin()))
    along, across = cos * dx + sin * dy, (cos * dy - sin * dx) / aspect[:, None, None, None]
    angle = torch.atan2(across, along)
    lobes, phase, wobble, radius = (part[:, None, None, None] for part in (lobes, phase, wobble, radius))
    border = radius * (1 + wobble * torch.sin(lobes * angle + phase))
    cover = (border - torch.hypot(along, across) + 0.5).clamp(0, 1) * (age >= 0)[..., None, None]

    other = frames.roll(1, 0)[torch.arange(rows), (draw(0, 1) * count).long()].flip(-1)
    gain, shift = draw(0.7, 1.3, 1, 1, 1), 255 * draw(-0.15, 0.15, 1, 1, 1)
    device = frames.device
    other = (other.float() * gain.to(device) + shift.to(device)).clamp(0, 255)
    from_y = (dy.round().long() + (draw(0, 1) * height).long()[:, None, None, None]) % height
    from_x = (dx.round().long() + (draw(0, 1) * width).long()[:, None, None, None]) % width
    row = torch.arange(rows)[:, None, None, None]
    thing = other.permute(0, 2, 3, 1)[row.to(device), from_y.to(device), from_x.to(device)].movedim(-1, 2)
    cover = cover.to(device)
    mixed = torch.lerp(frames.float(), thing, cover[:, :, None]).round().to(frames.dtype)
    return Planted(mixed, cover, age.to(device))
