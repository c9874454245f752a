"""Novelty: a surprise that tells what is new from what merely moves, learned from things planted into streams."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError
from tttstream.model import ModelConfig
from tttstream.train.planting import plant
from tttstream.train.prediction import Prediction, Segment

if TYPE_CHECKING:
    from tttstream.train.data import Batch

SETTLED = 8  # frames that a stream lasts before its surprise counts
YOUNG = 8  # frames for which a planted thing is new
RATIO = math.log(4.0)  # of the losses between which new and old are told apart
SHARPNESS = 2.0


def contrast(before: Tensor, cover: Tensor, new: Tensor, settled: Tensor) -> Tensor:
    """How badly the inner loss of each patch [B, T, N] tells new patches from the rest of their row.

    cover: [B, T, N], the share of each patch that a new thing covers. new, settled: [B, T], whether it is still new,
    and whether the stream has lasted long enough for its surprise to count.

    The log of a patch's loss above the mean over its row's old patches is a logit, sharpened and shifted, of its being
    new; to the cross-entropy, balanced between new and old, comes the variance over time of a frame's mean over old
    patches, so that events stand out of a quiet line.
    """
    fresh = (cover > 0.5) & (new & settled)[..., None]
    old = (cover == 0) & settled[..., None]
    logs = (before.float() + 1e-6).log()
    usual = mean(logs, old, (1, 2), 0.0)[:, None, None]
    logit = SHARPNESS * (logs - usual - RATIO)
    level = mean(logs, old, (2,), usual[:, :, 0])
    restless = (level - usual[:, :, 0]).square().mean()
    return mean(F.softplus(-logit), fresh, (0, 1, 2), 0.0) + mean(F.softplus(logit), old, (0, 1, 2), 0.0) + restless


def mean(values: Tensor, mask: Tensor, axes: tuple[int, ...], otherwise: Tensor | float) -> Tensor:
    """Mean over axes of the values in the mask, `otherwise` where there is none."""
    count = mask.sum(axes)
    found = torch.where(mask, values, 0.0).sum(axes) / count.clamp(min=1)
    return torch.where(count > 0, found, otherwise)


class Novelty(Prediction):
    """Prediction of the next frame from streams into which things are planted, and a contrast of the inner loss.

    Things that were not there before are planted into a share of the training segments (`plant`); the memory's loss on
    their patches before it learned them is to stand out from that of all other patches, however these move. Measured as
    prediction, on streams without planted things.

    Args:
        weight: of the contrast beside the prediction's loss. share: of the segments that get a thing.
        cuts: share of the lanes' changes of video that come as cuts, without a reset; all of the first frame is new.
        seed: of what is planted where. The others: see `Prediction`.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        weight: float = 0.3,
        share: float = 0.65,
        cuts: float = 0.5,
        seed: int = 0,
        horizon: int = 1,
        recompute: int = 0,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: int = 100,
    ) -> None:
        super().__init__(
            model, horizon=horizon, recompute=recompute, lr=lr, weight_decay=weight_decay, warmup=warmup
        )  # fmt: skip
        if model.registers or not model.memory.startswith("ttt"):
            raise ShapeError(
                f"novelty: the surprise of patches needs a ttt_ memory that every patch passes through (registers=0), "
                f"got {model.memory} with registers={model.registers}"
            )
        self.weight, self.share, self.cuts, self.seed = weight, share, cuts, seed

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane, with things planted into some, and some new videos that come unannounced."""
        step = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size + self.trainer.global_rank
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        planted = plant(batch.frames, self.share, generator)
        draws = torch.rand(batch.reset.shape, generator=generator).to(self.device)
        cut = batch.reset & (draws < self.cuts) & (self.state_before(batch, "train") is not None)
        seen = batch._replace(frames=planted.frames, reset=batch.reset & ~cut)
        segment: Segment = self(seen, "train")
        inner = segment.output.losses
        assert inner is not None
        losses = self.losses(batch._replace(frames=planted.frames), segment)
        cover = F.avg_pool2d(planted.cover, self.model.config.patch).flatten(2)
        cover = torch.where(cut[..., None], 1.0, cover)
        losses["contrast"] = contrast(
            inner.before, cover, cut | (planted.age < YOUNG), cut | (batch.position >= SETTLED)
        )
        losses["loss"] = losses["loss"] + self.weight * losses["contrast"]
        self.log_losses("train", losses, inner, len(batch.frames))
        return losses["loss"]
