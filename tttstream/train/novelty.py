"""Novelty: a surprise that separates new objects from motion, trained on objects planted into streams."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.evaluation.spliced import Spliced, judge, table
from tttstream.inner import CATALOGUE as INNER_MODELS
from tttstream.io.outputs import TextFile, saving
from tttstream.models.frame import ModelConfig
from tttstream.ranks import Line
from tttstream.train.data.batch import Batch
from tttstream.train.planting import excursion, plant, sensor_noise
from tttstream.train.prediction import Prediction, Segment
from tttstream.train.task import StreamTask

SETTLED = 8  # frames that a stream lasts before its surprise counts
YOUNG = 8  # frames for which a planted thing is new
THING, CUT = math.log(2.0), math.log(6.0)  # log ratio to the usual loss from which a patch of each counts as new
SHARPNESS = 4.0
SHOWS = 0.01  # share of the picture that a planted thing covers when it counts as having appeared


def contrast(before: Tensor, cover: Tensor, new: Tensor, settled: Tensor, ratio: float) -> Tensor:
    """A loss that is low if the inner loss of each patch [B, T, N] separates new patches from the rest of their row.

    cover: [B, T, N], the share of each patch that a new thing covers. new, settled: [B, T], whether it is still new,
    and whether the stream is long enough for its surprise to be used.

    The log loss of a patch minus the mean over the old patches of its row, scaled and shifted, is the logit of being
    new. The result is its cross-entropy, balanced between new and old, plus the variance over time of the mean over old
    patches of a frame, which makes the surprise between events constant.
    """
    fresh = (cover > 0.5) & (new & settled)[..., None]
    old = (cover == 0) & settled[..., None]
    logs = (before.float() + 1e-6).log()
    usual = mean(logs, old, (1, 2), 0.0)[:, None, None]
    logit = SHARPNESS * (logs - usual - ratio)
    level = mean(logs, old, (2,), usual[:, :, 0])
    restless = (level - usual[:, :, 0]).square().mean()
    return mean(F.softplus(-logit), fresh, (0, 1, 2), 0.0) + mean(F.softplus(logit), old, (0, 1, 2), 0.0) + restless


def mean(values: Tensor, mask: Tensor, axes: tuple[int, ...], otherwise: Tensor | float) -> Tensor:
    """Mean over axes of the values in the mask, `otherwise` if the mask is empty."""
    count = mask.sum(axes)
    found = torch.where(mask, values, 0.0).sum(axes) / count.clamp(min=1)
    return torch.where(count > 0, found, otherwise)


class Novelty(Prediction):
    """Prediction of the next frame from streams into which things are planted, and a contrast of the inner loss.

    New objects are planted into a share of the training segments (`plant`). Before the memory learns them, its loss on
    their patches should exceed that of all other patches, whatever their motion. Measured as prediction, on streams
    without planted objects.

    Args:
        weight: of the contrast relative to the loss of the prediction. share: of segments with a planted thing. cuts:
        share of the lanes' changes of video without a reset; the whole first frame is new. excursions: share of the
        segments that show another lane's video for a while, all of its first frame new too. noise: the largest
        deviation in grey levels of noise on the training frames; each clip has its own level. planted_in_test: share of
        test segments with a planted thing. seed: of the planting. The others: see `Prediction`.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        weight: float = 0.3,
        share: float = 0.65,
        cuts: float = 0.5,
        excursions: float = 0.3,
        noise: float = 6.0,
        planted_in_test: float = 0.2,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, reset_every=0, steady=False, learn=True, **options)
        if model.registers or model.memory.removeprefix("ttt_") not in INNER_MODELS:  # others have no inner loss
            raise ConfigError(
                f"novelty: the surprise of patches needs a ttt_ memory that every patch passes through (registers=0), "
                f"got {model.memory} with registers={model.registers}"
            )
        self.weight, self.share, self.cuts, self.excursions = weight, share, cuts, excursions
        self.noise = noise
        self.planted_in_test, self.seed = planted_in_test, seed
        self._streams: list[Spliced] = []

    def go_along(self, line: Line) -> None:
        """Raises ConfigError: things are planted into whole segments, and the contrast is over their frames."""
        StreamTask.go_along(self, line)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane, with objects planted into some, and some new videos without a reset."""
        step = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size + self.trainer.global_rank
        generator = torch.Generator().manual_seed((self.seed << 32) + step)
        frames = sensor_noise(batch.frames, batch.clip, self.noise, generator)
        frames, away = excursion(frames, self.excursions, generator)
        planted = plant(frames, self.share, generator)
        draws = torch.rand(batch.reset.shape, generator=generator).to(self.device)
        cut = batch.reset & (draws < self.cuts) & (self.state_before(batch, "train") is not None)
        seen = batch._replace(frames=planted.frames, reset=batch.reset & ~cut)
        segment: Segment = self(seen, "train")
        inner = segment.output.losses
        assert inner is not None
        jump = F.pad((away[:, 1:] > 0) != (away[:, :-1] > 0), (1, 0))
        announced = batch._replace(frames=planted.frames, reset=batch.reset | jump)
        losses = self.losses(announced, segment)
        cover = F.avg_pool2d(planted.cover, self.model.config.patch).flatten(2)
        settled = (batch.position >= SETTLED) & (away == 0) & ~jump
        losses["things"] = contrast(inner.before, cover, planted.age < YOUNG, settled, THING)
        first = cut | ((away == 1) & (batch.position >= SETTLED))
        losses["cuts"] = contrast(inner.before, torch.where(first[..., None], 1.0, cover), first, settled | first, CUT)
        losses["loss"] = losses["loss"] + self.weight * (losses["things"] + losses["cuts"])
        self.log_losses("train", losses, inner, batch.valid, batch.valid)
        return losses["loss"]

    def begin(self, stage: str) -> None:
        """Fresh lanes and scores."""
        super().begin(stage)
        if stage == "test":
            if self.trainer.world_size > 1:
                raise ConfigError("novelty is measured by one process: run test with --trainer.devices=1")
            self._states["spliced"] = None
            self._streams = []

    def test_step(self, batch: Batch, index: int) -> None:
        """Measure the prediction, and novelty in spliced videos with planted things.

        A lane is one stream: a new video in it has no reset and is an event of the kind "cut". A share of the segments
        has a planted thing; its first frame is an event of the kind "thing". A row without frames does not change its
        stream.
        """
        super().test_step(batch, index)
        generator = torch.Generator().manual_seed((self.seed << 32) + index)
        planted = plant(batch.frames, self.planted_in_test, generator)
        first = torch.zeros_like(batch.reset)
        first[:, 0] = index == 0
        learned = self.watch(planted.frames, batch.valid).tolist()
        still, _ = self.model(planted.frames, None, learn=False)
        assert still.losses is not None
        frozen = still.losses.before.mean(-1).tolist()
        images = planted.frames.permute(0, 1, 3, 4, 2).contiguous().cpu().numpy()
        showing = (planted.cover.mean((2, 3)) > SHOWS) & batch.valid
        appears = showing & ~F.pad(showing, (1, 0))[:, :-1]
        if not self._streams:
            self._streams = [Spliced() for _ in images]
        for row, stream in enumerate(self._streams[: len(images)]):
            for t in range(images.shape[1]):
                if not batch.valid[row, t]:
                    continue
                cut = bool(batch.reset[row, t]) and not bool(first[row, t])
                event = "cut" if cut else "thing" if bool(appears[row, t]) else None
                stream.add(images[row, t], learned[row][t], frozen[row][t], event)

    def watch(self, frames: Tensor, valid: Tensor) -> Tensor:
        """The inner loss [B, T] of every frame of the spliced streams. If a row has no valid frame, its memory does not
        change, and its loss has no meaning."""
        changes = (valid[:, 1:] != valid[:, :-1]).any(0).nonzero()[:, 0] + 1
        losses, state = [], self._states.get("spliced") or self.model.init_state(len(frames))
        for piece in torch.arange(frames.shape[1]).tensor_split(changes.cpu()):
            output, new = self.run_segment(frames[:, piece], state, None)
            state = new.where(valid[:, piece[0]], state)
            assert output.losses is not None
            losses.append(output.losses.before.mean(-1))
        self._states["spliced"] = state.detach()
        return torch.cat(losses, 1)

    def finish(self, stage: str) -> None:
        """Log the tables; those of the test are printed too, and written as novelty.md into the run's folder."""
        super().finish(stage)
        if stage != "test":
            return
        report = judge(self._streams)
        for name, kinds in report.items():
            for kind, row in kinds.items():
                self.log_dict({f"test/{name}/{kind}/{column}": float(value) for column, value in row.items()})
        text = table(report)
        print(text)
        if self.trainer.log_dir is not None:
            with TextFile(_made(Path(self.trainer.log_dir)) / "novelty.md") as file:
                file.write(text)


def _made(folder: Path) -> Path:
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
