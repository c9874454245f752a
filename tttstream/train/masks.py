"""Mask propagation: the mask of the first frame is given, the later ones are predicted."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.evaluation.mask_baselines import NAMES, propagate
from tttstream.io.mask_files import VOID
from tttstream.models.masks import MaskOutput, MixtureConfig, MixtureModel, Propagator, TargetConfig, TargetModel
from tttstream.sources.photographs import NAMES as PHOTOGRAPHS
from tttstream.sources.photographs import photograph
from tttstream.train.data.batch import Batch
from tttstream.train.task import StreamTask, named, not_negative

NOBODY = -2  # no object has this number, and it is not that of void
# Pixels by which the centre of a training frame is shifted, so that the positions in large frames are known
SPREAD = 401
BLUR = 32  # pixels that count as found in every picture, so that a few wrong ones after an object has left cost little


class Segment(NamedTuple):
    """One segment with the output of the model.

    masks: [B, T, O, H, W] ground truth of each object. counted: bool [B, T, O], whether the model had to find it.
    known: bool [B, T, H, W], the pixels that are not void. numbers: int64 [B, T, O], numbers of the objects in the
    data, NOBODY if there are fewer.
    """

    output: MaskOutput
    masks: Tensor
    counted: Tensor
    known: Tensor
    numbers: Tensor


class MaskPropagation(StreamTask):
    """Trains a mask model on sequences whose masks are given in the first frame.

    Row i of a batch continues row i of the batch before it, and `batch.reset` marks where a row begins another
    sequence. The masks are given at these frames; the model predicts the others. The state is carried and detached
    between steps (truncated backpropagation), and is part of the checkpoint.

    At first the memory learns ground truth, later its own predictions: the share of frames whose ground truth is
    learned falls from 1 to 0 over the first `forced` of the steps. Predictions from untrained keys would teach nothing.

    The loss is the cross-entropy of the pixels, one minus the soft Dice of each object, and the cross-entropy of the
    memory's own prediction for each token. The last one trains the keys: the keys of a frame approach the components
    that predict its ground truth. Validation reports J of the model; the test also that of the baselines. Void pixels
    are ignored. If the first frame of a sequence shows more objects than are followed, those with the lowest numbers
    are followed; the others are background.

    Args:
        network: the model's shape. objects: the number of followed objects in a sequence. forced: see above. slots:
        components in training, those of the network unless given: small frames have few tokens. lr, weight_decay,
        warmup: see `StreamTask`.
    """

    FLOOR = 0.02
    CARRIED = "numbers"  # of the objects that the lanes follow; the first checkpoints have 1, 2 …
    model: Propagator[Any]

    def __init__(
        self,
        network: MixtureConfig,
        *,
        objects: int = 2,
        forced: float = 0.4,
        slots: int | None = None,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: int = 50,
    ) -> None:
        super().__init__(self.built(network), lr=lr, weight_decay=weight_decay, warmup=warmup)
        not_negative(forced=forced)
        if objects < 1:
            raise ConfigError(f"masks: expected objects of at least 1, got {objects}")
        if slots is not None and slots < 1:
            raise ConfigError(f"masks: expected slots of at least 1, got {slots}")
        self.objects, self.forced, self.slots = objects, forced, slots

    @staticmethod
    def built(network: Any) -> Propagator[Any]:
        """An untrained model with this shape."""
        return MixtureModel(network)

    def forward(self, batch: Batch, stage: str) -> Segment:
        """Continue the lanes of a stage with one segment."""
        if batch.mask is None:
            raise ConfigError("masks: the data has no masks: use data/objects, or a DAVIS tree")
        numbers = self.numbers(batch.mask, batch.reset, stage)
        masks = (batch.mask[:, :, None] == numbers[..., None, None]).float()
        given = batch.reset[:, :, None] & masks.flatten(3).any(3)
        seen = self.state_before(batch, stage)
        seen = self.fresh(len(masks), stage) if seen is None else seen
        counted, known = [], seen.seen > 0
        for t in range(masks.shape[1]):
            known = torch.where(batch.reset[:, t, None], False, known)
            counted.append(known & batch.valid[:, t, None])
            known = known | given[:, t]
        output, state = self.model(
            batch.frames,
            seen,
            batch.reset,
            masks=masks,
            given=given,
            forced=self.forced_frames(batch.reset),
            offset=self.offset(batch.clip[:, 0]),
        )
        self.keep(stage, state)
        return Segment(output, masks, torch.stack(counted, 1), batch.mask != VOID, numbers)

    def fresh(self, rows: int, stage: str) -> Any:
        if isinstance(self.model, MixtureModel):
            return self.model.init_state(rows, self.objects, self.slots if stage == "train" else None)
        return self.model.init_state(rows, self.objects)

    def numbers(self, mask: Tensor, reset: Tensor, stage: str) -> Tensor:
        """The numbers [B, T, O] of the followed objects in each frame of masks [B, T, H, W]: those in the first frame
        of a sequence, in order; a lane that continues keeps its objects."""
        rows, count = reset.shape
        now = self._carried.get(stage)
        if now is None or len(now) != rows:
            now = torch.arange(1, self.objects + 1).repeat(rows, 1)
        now, every = now.to(mask.device), []
        for t in range(count):
            now = now.clone()
            for b in reset[:, t].nonzero().flatten().tolist():
                shown = mask[b, t].unique()
                shown = shown[shown > 0][: self.objects]
                now[b] = NOBODY
                now[b, : len(shown)] = shown
            every.append(now)
        self._carried[stage] = now
        return torch.stack(every, 1)

    def offset(self, clip: Tensor) -> Tensor | None:
        """The centre of a sequence's frames [B, 2] in training; it depends on the sequence's number only."""
        if not self.training:
            return None
        return torch.stack([clip * 97 % SPREAD, clip * 57 % SPREAD], 1) - SPREAD // 2

    def forced_frames(self, reset: Tensor) -> Tensor | None:
        """The frames [B, T] whose true masks are learned in training. They depend on the number of the step."""
        total = self.trainer.estimated_stepping_batches if self.training else math.inf
        share = 1 - self.global_step / (self.forced * total) if 0 < self.forced * total < math.inf else 0.0
        if share <= 0:
            return None
        generator = torch.Generator().manual_seed(self.global_step)
        return (torch.rand(reset.shape, generator=generator) < share).to(reset.device)

    def losses(self, segment: Segment) -> dict[str, Tensor]:
        """The losses of a segment, by name."""
        output, masks, counted = segment.output, segment.masks, segment.counted
        shown = counted.any(2)
        if not bool(shown.any()):
            zero = output.logits.sum() * 0
            return {"pixels": zero, "dice": zero, "guess": zero}
        logits, weight = output.logits[shown], counted[shown].float()
        truth = masks[shown] * weight[..., None, None]
        label = (truth * torch.arange(1, truth.shape[1] + 1, device=truth.device)[:, None, None]).sum(1).long()
        known = segment.known[shown][:, None].float()
        share = logits.softmax(1)[:, 1:] * known
        both = (share * truth).sum((2, 3))
        dice = 1 - (2 * both + BLUR) / ((share + truth).sum((2, 3)) + BLUR)
        told = F.avg_pool2d(known, self.model.CELL)
        coarse = F.avg_pool2d(truth, self.model.CELL) / told.clamp(min=1e-6)
        told = (told > 0).float()
        guess = F.binary_cross_entropy_with_logits(output.guess[shown], coarse, reduction="none")
        guess = (guess * (1 + 3 * coarse) * told).sum((2, 3)) / told.sum((2, 3)).clamp(min=1)
        pixels = F.cross_entropy(logits, label, reduction="none") * known[:, 0]
        more = {} if output.fit is None else {"fit": fit_loss(output.fit[shown], share.detach(), truth, weight)}
        return {
            "pixels": pixels.sum() / known.sum().clamp(min=1),
            "dice": (dice * weight).sum() / weight.sum(),
            "guess": (guess * weight).sum() / weight.sum(),
            **more,
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(self(batch, "train"))
        loss = torch.stack(list(losses.values())).sum()
        self.log_losses("train", {"loss": loss, **losses}, None, batch.valid, batch.valid)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """J of the model, and pictures of the first batch."""
        segment = self(batch, "val")
        losses = self.losses(segment)
        rows = int(segment.counted.sum())  # 0 in a process without a sequence, which must log too
        self.log("val/loss", torch.stack(list(losses.values())).sum(), batch_size=rows, sync_dist=True)
        self.log("val/J", overlap(segment).sum() / max(1, rows), prog_bar=True, batch_size=rows, sync_dist=True)
        if batch_idx:
            return {}
        given = batch.reset.tolist()
        labels = [
            [f"{named(batch, b, t)}: {'given' if now else 'found'}" for t, now in enumerate(row)]
            for b, row in enumerate(given)
        ]
        return {"pictures": painted(batch.frames, segment), "labels": labels}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """J of the model and of each baseline, for sequences that lie within one segment."""
        if batch.mask is None or bool(batch.reset[:, 1:].any()) or not bool(batch.reset[:, 0].all()):
            raise ConfigError("masks: the test wants each sequence in one segment: set data.length to its frames")
        segment = self(batch, "test")
        rows = int(segment.counted.sum())
        self.log("test/J_model", overlap(segment).sum() / max(1, rows), batch_size=rows, sync_dist=True)
        for name in NAMES:
            output = propagate(name, self.model, batch.frames, segment.masks[:, 0])
            values = overlap(segment._replace(output=MaskOutput(output, segment.output.guess)))
            self.log(f"test/J_{name}", values.sum() / max(1, rows), batch_size=rows, sync_dist=True)

    def test_words(self) -> list[str]:
        """Extra arguments of the `test` command that `fit` prints: a segment length equal to the sequence length."""
        trainer: Any = self.trainer
        frames = getattr(trainer.datamodule, "eval_frames", None)
        return [] if frames in (None, trainer.datamodule.length) else [f"--data.init_args.length={frames}"]

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        """A row for each frame: the numbers of the objects (null if there are fewer), their shares of the picture, and
        J of those that the model had to find."""
        segment = self(batch, "predict")
        numbers = torch.arange(1, self.objects + 1, device=self.device)[:, None, None]
        share = (segment.output.logits.argmax(2, keepdim=True) == numbers).float().mean((3, 4))
        found = torch.full(share.shape, math.nan, device=self.device)
        found[segment.counted] = overlap(segment)
        rows: list[dict[str, Any]] = []
        for b, t in batch.valid.nonzero().tolist():
            row: dict[str, Any] = {"clip": int(batch.clip[b, t]), "frame": int(batch.frame[b, t])}
            row["objects"] = [None if n == NOBODY else n for n in segment.numbers[b, t].tolist()]
            row["share"] = [round(value, 6) for value in share[b, t].tolist()]
            row["J"] = [None if math.isnan(value) else round(value, 4) for value in found[b, t].tolist()]
            rows.append(row)
        return rows


class TargetPropagation(MaskPropagation):
    """MaskPropagation of a TargetModel: keys, basis and contours are trained on the frozen features of its encoder.

    In some of the steps the model uses only some of its memories, so that contours do not depend on one of them, and so
    that the matching baseline has trained contours too: see `TargetModel.only`.

    Args:
        network: the model's shape. objects, lr, weight_decay, warmup: see MaskPropagation. forced: the share of the
        steps in which true masks are learned; their number falls to 0 over these steps.
    """

    model: TargetModel
    HEARD = (
        (("given", "last"), 0.15),
        (("given",), 0.06),
        (("target", "given"), 0.12),
        (("target", "given", "past"), 0.2),
    )
    """Memories that are used alone, and the share of these steps."""

    def __init__(self, network: TargetConfig, *, forced: float = 0.0, warmup: int = 30, **options: Any) -> None:
        super().__init__(network, slots=None, forced=forced, warmup=warmup, **options)  # type: ignore[arg-type]

    @staticmethod
    def built(network: TargetConfig) -> TargetModel:
        """A model with the encoder's pretrained weights, whose features are scaled on photographs."""
        model = TargetModel(network)
        whole = [torch.tensor(photograph(name)).permute(2, 0, 1)[None] / 255 for name in PHOTOGRAPHS]
        model.prepare(torch.cat([F.interpolate(x, (256, 256), mode="bilinear", antialias=True) for x in whole]))
        return model

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        luck = float(torch.rand((), generator=torch.Generator().manual_seed(self.global_step)))
        try:
            for memories, share in self.HEARD:
                if 0 <= luck < share:
                    self.model.memories = memories
                luck -= share
            return super().training_step(batch, batch_idx)
        finally:
            self.model.memories = self.model.config.memories


def fit_loss(fit: Tensor, share: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The cross-entropy of the predicted J, log-odds [n, O], with the true J of the masks, 0 if the object is out of
    view. share, truth: [n, O, H, W]. weight: [n, O] of each object."""
    found, there = share > 0.5, truth > 0.5
    both, either = (part.sum((2, 3)) for part in (found & there, found | there))
    overlaps = both / either.clamp(min=1)
    every = F.binary_cross_entropy_with_logits(fit, overlaps, reduction="none")
    return (every * weight).sum() / weight.sum()


def overlap(segment: Segment) -> Tensor:
    """J of each object in each frame in which the model had to find it, [n]; 1 if both masks are empty. Void pixels are
    ignored."""
    numbers = torch.arange(1, segment.masks.shape[2] + 1, device=segment.masks.device)[:, None, None]
    found = (segment.output.logits.argmax(2, keepdim=True) == numbers) & segment.known[:, :, None]
    truth = segment.masks > 0.5
    both, either = ((part).sum((3, 4)) for part in (found & truth, found | truth))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)[segment.counted]


def painted(frames: Tensor, segment: Segment) -> Tensor:
    """Frames with the predicted masks in red and green, [rows, columns, 3, H, W] in 0..1."""
    picture = frames.float() / 255
    share = segment.output.logits.softmax(2)[:, :, 1:3]
    colours = torch.eye(3, device=frames.device)[: share.shape[2]]
    over = torch.einsum("btohw,oc->btchw", share, colours)
    return picture + 0.6 * share.sum(2, keepdim=True) * (over - picture)
