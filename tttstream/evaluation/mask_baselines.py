"""Baselines of mask propagation: repeating the first mask, matching the same features, a frozen memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.models.masks.propagator import SURE, Propagator, together
from tttstream.models.masks.target import TargetModel
from tttstream.streams.canvas import Labels
from tttstream.streams.masks import MaskStream

NAMES = ("copy", "first", "matching", "frozen", "untaught")
"""copy: repeat the first mask. first: each token gets the mask of the most similar tokens in the first frame, by the
model's keys; a TargetModel also draws contours. matching: the same with the first and the previous frame. frozen: the
memory learns the first frame only. untaught: the memory never learns and keeps its initial weights."""

METHODS = ("model", *NAMES)

MATCHING = {"first": ("given",), "matching": ("given", "last")}
"""The memories of a TargetModel that each baseline uses, see `TargetModel.only`."""
NEAREST, SHARPNESS = 5, 20.0


def propagate(name: str, model: Propagator[Any], frames: Tensor, masks: Tensor) -> Tensor:
    """Logits [B, T, 1 + O, H, W] of one of `NAMES` for frames [B, T, 3, H, W] and masks [B, O, H, W] of the first."""
    with torch.no_grad():
        if name == "copy":
            logits = together((2 * masks - 1) * SURE)
            return logits[:, None].expand(-1, frames.shape[1], -1, -1, -1)
        if name in MATCHING and isinstance(model, TargetModel):
            return _followed(model.only(*MATCHING[name]), frames, masks)
        if name in MATCHING:
            return _matching(model, frames, masks, "last" in MATCHING[name])
        if name == "frozen":
            return _followed(model, frames, masks, learn=False)
        if name == "untaught":
            state = model.init_state(len(frames), masks.shape[1])
            return model(frames, state._replace(seen=masks.flatten(2).any(2).to(state.seen)), learn=False)[0].logits
    raise ConfigError(f"there is no baseline {name!r}: expected one of {', '.join(NAMES)}")


def follow(
    method: str,
    model: Propagator[Any],
    images: Sequence[NDArray[np.generic]],
    mask: NDArray[Any],
    size: int | None = None,
    crop: int | None = None,
) -> list[Labels]:
    """Masks [H, W] of every image [H, W, 3] by one of `METHODS`, from the first one's mask, at the images' own size.

    mask: as for `MaskStream.push`, with the objects numbered 1, 2 … without gaps (see `mask_files.compact`). size,
    crop: as of MaskStream; a TargetModel has the same windows in all methods. Other models match in whole frames.
    """
    if method in MATCHING and isinstance(model, TargetModel):
        model, method = model.only(*MATCHING[method]), "model"
    stream = MaskStream(model, objects=int(mask.max()), size=size, crop=crop, learn=method != "frozen")
    if method in ("model", "frozen"):
        return [stream.push(image, mask if index == 0 else None).mask for index, image in enumerate(images)]
    if method == "copy":
        return [np.maximum(mask, 0).astype(np.uint8)] * len(images)
    frames = torch.stack([stream.picture(image) for image in images])[None]
    first = F.interpolate(stream.given(mask, *mask.shape)[None], frames.shape[-2:], mode="area")
    logits = propagate(method, model, frames, first)[0]
    whole = (F.interpolate(part[None], mask.shape, mode="bilinear", align_corners=False)[0] for part in logits)
    return [part.argmax(0).to(torch.uint8).numpy() for part in whole]


def _followed(model: Propagator[Any], frames: Tensor, masks: Tensor, learn: bool = True) -> Tensor:
    given = torch.zeros(*frames.shape[:2], masks.shape[1], dtype=torch.bool, device=frames.device)
    given[:, 0] = masks.flatten(2).any(2)
    state, logits = model.init_state(len(frames), masks.shape[1]), []
    for t in range(frames.shape[1]):  # one by one: all frames' features at once would fill the memory
        output, state = model(frames[:, t : t + 1], state, masks=masks[:, None], given=given[:, t : t + 1], learn=learn)
        logits.append(output.logits)
    return torch.cat(logits, 1)


def _matching(model: Propagator[Any], frames: Tensor, masks: Tensor, last: bool) -> Tensor:
    pixels = frames.to(model.dtype) / (255.0 if frames.dtype == torch.uint8 else 1.0)
    grid = [size // model.CELL for size in frames.shape[-2:]]
    logits = [together((2 * masks - 1) * SURE)]
    labels = F.interpolate(torch.cat([1 - masks.sum(1, keepdim=True), masks], 1), grid, mode="area").flatten(2).mT
    first, *others = torch.stack([model.compared(row) for row in pixels]).unbind(1)
    previous = begun = (first, labels)
    for keys in others:
        known, answers = (torch.cat([a, b], 1) if last else a for a, b in zip(begun, previous, strict=True))
        found = torch.cat([_vote(part, known, answers) for part in keys.split(1024, 1)], 1)
        previous = keys, found
        picture = F.interpolate(found.mT.unflatten(2, grid), frames.shape[-2:], mode="bilinear", align_corners=False)
        logits.append(picture.clamp(min=1e-6).log())
    return torch.stack(logits, 1)


def _vote(keys: Tensor, known: Tensor, answers: Tensor) -> Tensor:
    """The mean of the values [B, n, C] of the most similar known tokens, weighted by similarity."""
    alike, which = (keys @ known.mT).topk(NEAREST, 2)
    weights = (SHARPNESS * alike).softmax(2)
    chosen = answers.gather(1, which.flatten(1)[..., None].expand(-1, -1, answers.shape[2]))
    return (weights[..., None] * chosen.unflatten(1, which.shape[1:])).sum(2)
