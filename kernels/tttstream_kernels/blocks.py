"""The blocks in which kernels of token mode walk a row: where they lie, how large they are, and what runs them."""

from typing import NamedTuple

import torch
from torch import Tensor

from tttstream_kernels.backend import SHARED


class Blocks(NamedTuple):
    """The blocks of rows with resets. number: [B]. begins: [B, T + 1, 2] first token of each and its place in its
    mini-batch, then the row's length. first: [B, segments + 1] first block that begins a mini-batch in a segment or
    later. phase: [B] of each row's first block. end: [B] phase after the call. Without resets the kernels find number,
    begins and first themselves."""

    number: Tensor | None
    begins: Tensor | None
    first: Tensor | None
    phase: Tensor
    end: Tensor


def blocks(
    phase: Tensor, lengths: Tensor | None, reset: Tensor | None, tokens: int, size: int, block: int, span: int
) -> Blocks:
    """Cut rows into blocks, on the device. phase [B] int32, below `size`; size: places of a mini-batch, block: of a
    block; span: tokens of a segment, 0 for none."""
    if reset is None:
        after = (phase + (tokens if lengths is None else lengths.clamp(0, tokens))) % size
        return Blocks(None, None, None, phase, after.to(torch.int32))
    rows = phase.shape[0]
    place = torch.arange(tokens, device=phase.device, dtype=torch.int32).expand(rows, -1)
    length = torch.full_like(phase, tokens) if lengths is None else lengths.clamp(0, tokens).to(torch.int32)
    inside = place < length[:, None]
    anew = reset & inside
    since = torch.where(anew, place, 0).cummax(1).values
    slot = (place - since + torch.where(anew.cumsum(1) > 0, 0, phase[:, None])) % size
    begin = inside & ((slot % block == 0) | anew | (place == 0))
    number = begin.cumsum(1)
    begins = length[:, None, None].repeat(1, tokens + 1, 2)
    index = torch.where(begin, number - 1, tokens)[..., None].expand(-1, -1, 2)
    begins.scatter_(1, index, torch.stack([torch.where(begin, place, length[:, None]), slot.to(torch.int32)], -1))
    segments = -(-tokens // span) if span else 0
    edges = (torch.arange(segments + 1, device=phase.device) * span).clamp(max=tokens)
    starting = torch.where(begin & ((slot == 0) | anew), number - 1, number[:, -1:])
    first = torch.cat([starting, number[:, -1:]], dim=1).flip(1).cummin(1).values.flip(1)[:, edges].to(torch.int32)
    first[:, 0] = 0
    last = slot.gather(1, (length.long() - 1).clamp(min=0)[:, None])[:, 0]
    end = torch.where(length > 0, (last + 1) % size, phase).to(torch.int32)
    return Blocks(number[:, -1].to(torch.int32), begins, first.contiguous(), torch.where(anew[:, 0], 0, phase), end)


def span_of(tokens: int, size: int) -> int:
    """Tokens between two checkpoints: about the root of the number of mini-batches, which makes the checkpoints and
    the scratch of the backward pass together smallest: both grow as the root of the tokens."""
    group = 1
    while group * group * size < tokens:
        group *= 2
    return group * size


def block_of(inner: str, width: int, size: int, shared: int) -> int:
    """Places of a mini-batch of `size` that a block has: as many as fit into a multiprocessor in float32; as few as a
    product takes where heads are wide, whose weights alone fill the registers, or where programs can share fewer bytes
    than on GPUs for data centres."""
    if width > 64 or shared < SHARED:
        return 16
    return min(size, 2048 // width if inner == "mlp" else 64)


def launch_options(inner: str, way: str, width: int, dtype: torch.dtype, whole: bool = True) -> dict[str, int]:
    """Warps of a program, and how many loads ahead its loop runs. Only the linear forward pass over whole mini-batches
    may look ahead: its loop loads nothing that it has stored. Wide heads leave no room for it."""
    ahead = inner == "linear" and way == "forward" and width < 128 and whole
    wide = width == 128 or (inner == "linear" and width == 64 and dtype == torch.float32)
    return {"num_warps": 8 if wide else 4, "num_stages": 3 if ahead else 1}
