"""Store keys of objects and of their surroundings, and compare new tokens with them."""

from functools import lru_cache

import torch
from torch import Tensor

NOWHERE = -4.0
"""The similarity to a key that does not exist."""


def whole(height: int, width: int) -> tuple[float, float, float, float]:
    """The top, left, bottom and right of a frame from its middle, in short sides."""
    down, right = (side / min(height, width) / 2 for side in (height, width))
    return -down, -right, down, right


def places(height: int, width: int, view: Tensor) -> Tensor:
    """The middles (y, x) of a grid of tokens over the parts `view` [n, 4] of frames (top, left, bottom, right), in the
    units of `view`: [n, height * width, 2]."""
    axes = []
    for axis, size in enumerate((height, width)):
        low, high = view[:, axis, None], view[:, axis + 2, None]
        axes.append(low + (torch.arange(size, device=view.device) + 0.5) * ((high - low) / size))
    y, x = axes[0][:, :, None].expand(-1, -1, width), axes[1][:, None].expand(-1, height, -1)
    return torch.stack([y, x], 3).flatten(1, 2)


def drawn(keys: Tensor, chosen: Tensor, room: int, turn: Tensor | None = None) -> Tensor:
    """`room` of the chosen tokens of each object, drawn at random: keys [B, N, D], chosen bool [B, O, N] -> [B, O,
    room, D + 1], the last number 1 where there is one. If fewer are chosen than `room`, they are repeated. The draw
    depends only on the number of tokens and on `turn` [B, O] (whole numbers), so that a stream is repeatable bit for
    bit."""
    tokens = keys.shape[1]
    luck = _luck(tokens).to(keys.device)
    if turn is None:
        order = (luck + 2.0 * ~chosen).argsort(dim=2)
    else:
        moved = (torch.arange(tokens, device=keys.device) + 7919 * turn[..., None].long()) % tokens
        order = (luck[moved] + 2.0 * ~chosen).argsort(dim=2)
    count = chosen.sum(2, keepdim=True)
    which = order.gather(2, torch.arange(room, device=keys.device).remainder(count.clamp(min=1)))
    every = keys[:, None].expand(-1, chosen.shape[1], -1, -1)
    found = every.gather(2, which[..., None].expand(-1, -1, -1, keys.shape[2]))
    there = (count > 0).to(keys.dtype)[..., None].expand(*found.shape[:3], 1)
    return torch.cat([found, there], 3)


@lru_cache(maxsize=16)
def _luck(tokens: int) -> Tensor:
    """Random numbers [tokens], always the same."""
    with torch.inference_mode(False):  # it is kept, and training may ask for it next
        return torch.rand(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def alike(keys: Tensor, kept: Tensor, inside: int, warmth: Tensor, at: Tensor | None, reach: float) -> list[Tensor]:
    """The largest similarity [B, O, N] of tokens [B, N, D] to the stored keys [B, O, K, D + 3] of each object (the
    first `inside` of them), and to the keys around it. at: places of the tokens [B, N, 2]; distant keys count less."""
    width = keys.shape[2]
    bias = torch.where(kept[..., width + 2] > 0, 0.0, 10 * NOWHERE)
    known, queries = kept[..., :width], (warmth * keys)[:, None]
    if at is not None:  # - |p - q|^2 / (2 reach^2) as a product
        scale = warmth * (0.5 / reach**2)
        queries = torch.cat([queries, (2 * scale * at)[:, None]], 3)
        bias = bias - scale * kept[..., width : width + 2].square().sum(3)
        known = kept[..., : width + 2]
    queries = torch.cat([queries, torch.ones_like(queries[..., :1])], 3)
    known = torch.cat([known, bias[..., None]], 3)
    best = [_best(queries, part) for part in (known[:, :, :inside], known[:, :, inside:])]
    if at is not None:
        own = scale * at.square().sum(-1)[:, None]
        best = [one - own for one in best]
    return [one.clamp(min=NOWHERE) / 4 for one in best]


def _best(queries: Tensor, known: Tensor) -> Tensor:
    """The largest product of queries [B, 1, N, D] with known keys [B, O, K, D], [B, O, N].

    Piece by piece, so that the products stay in the cache. With gradients the best key is looked for first and its
    product taken again, so that the others need no backward pass.
    """
    if not (torch.is_grad_enabled() and (queries.requires_grad or known.requires_grad)):
        transposed = known.mT
        return torch.cat([(part @ transposed).amax(3) for part in queries.split(PIECE, 2)], 2)
    with torch.no_grad():
        transposed = known.mT
        which = torch.cat([(part @ transposed).max(3).indices for part in queries.split(PIECE, 2)], 2)
    chosen = known.gather(2, which[..., None].expand(-1, -1, -1, known.shape[3]))
    return (queries * chosen).sum(3)


PIECE = 192  # tokens
