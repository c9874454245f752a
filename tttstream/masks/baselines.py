"""What mask propagation is measured against: repeating the first mask, matching the same features, a frozen memory."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError
from tttstream.masks.model import SURE, MaskModel, together

NAMES = ("copy", "matching", "frozen", "untaught")
"""copy: the first mask again and again. matching: each token takes the mask of the tokens most like it in the first
and the previous frame, by the model's own keys. frozen: the memory learns the first frame only. untaught: it never
learns, its weights are the learned start."""

NEAREST, SHARPNESS = 5, 20.0


def propagate(name: str, model: MaskModel, frames: Tensor, masks: Tensor) -> Tensor:
    """Logits [B, T, 1 + O, H, W] of one of `NAMES` for frames [B, T, 3, H, W] and masks [B, O, H, W] of the first."""
    with torch.no_grad():
        if name == "copy":
            logits = together((2 * masks - 1) * SURE)
            return logits[:, None].expand(-1, frames.shape[1], -1, -1, -1)
        if name == "matching":
            return _matching(model, frames, masks)
        if name == "frozen":
            given = torch.zeros(*frames.shape[:2], masks.shape[1], dtype=torch.bool, device=frames.device)
            given[:, 0] = masks.flatten(2).any(2)
            every = F.pad(masks[:, None], (0, 0, 0, 0, 0, 0, 0, frames.shape[1] - 1))
            return model(frames, masks=every, given=given, learn=False)[0].logits
        if name == "untaught":
            state = model.init_state(len(frames), masks.shape[1])
            return model(frames, state._replace(seen=masks.flatten(2).any(2).to(state.seen)), learn=False)[0].logits
    raise ShapeError(f"there is no baseline {name!r}: expected one of {', '.join(NAMES)}")


def _matching(model: MaskModel, frames: Tensor, masks: Tensor) -> Tensor:
    pixels = frames.to(model.start.dtype) / (255.0 if frames.dtype == torch.uint8 else 1.0)
    grid = [size // 4 for size in frames.shape[-2:]]
    logits = [together((2 * masks - 1) * SURE)]
    labels = F.interpolate(torch.cat([1 - masks.sum(1, keepdim=True), masks], 1), grid, mode="area").flatten(2).mT
    first = previous = (_keys(model, pixels[:, 0]), labels)
    for t in range(1, frames.shape[1]):
        keys = _keys(model, pixels[:, t])
        known, answers = torch.cat([first[0], previous[0]], 1), torch.cat([first[1], previous[1]], 1)
        found = torch.cat([_vote(part, known, answers) for part in keys.split(1024, 1)], 1)
        previous = keys, found
        picture = F.interpolate(found.mT.unflatten(2, grid), frames.shape[-2:], mode="bilinear", align_corners=False)
        logits.append(picture.clamp(min=1e-6).log())
    return torch.stack(logits, 1)


def _keys(model: MaskModel, pixels: Tensor) -> Tensor:
    """Keys of all heads side by side, of length 1: [B, N, heads * D]."""
    return F.normalize(model.encoder(pixels, None).keys.flatten(2), dim=2)


def _vote(keys: Tensor, known: Tensor, answers: Tensor) -> Tensor:
    """The answers [B, n, C] of the known tokens most like these, weighed by how alike they are."""
    alike, which = (keys @ known.mT).topk(NEAREST, 2)
    weights = (SHARPNESS * alike).softmax(2)
    chosen = answers.gather(1, which.flatten(1)[..., None].expand(-1, -1, answers.shape[2]))
    return (weights[..., None] * chosen.unflatten(1, which.shape[1:])).sum(2)
