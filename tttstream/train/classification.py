"""Classification: logits for every frame, and for the clip so far."""

import logging
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import CheckpointError, ConfigError
from tttstream.models.classifier import Classifier, Encoder, Said
from tttstream.models.frame import ModelConfig
from tttstream.models.tokens import PatchTokens
from tttstream.ranks import Line
from tttstream.train.data.batch import Batch
from tttstream.train.export import described
from tttstream.train.task import FIRST, StreamTask, mean_where

logger = logging.getLogger(__name__)

Judged = tuple[int, Any]
"""The position of the last processed frame of a clip, and the prediction for it."""


class Classification(StreamTask):
    """Cross-entropy of every frame, measured for each frame and, as the mean over frames, at the last frame of a clip.

    classes: their number. encoder: a pretrained backbone that replaces the model's patches, see `VisionTokens`.
    smoothing: of labels. The others: see `StreamTask`.
    """

    def __init__(
        self,
        model: ModelConfig,
        classes: int,
        *,
        encoder: Encoder | None = None,
        smoothing: float = 0.0,
        **options: Any,
    ) -> None:
        if classes < 2:
            raise ConfigError(f"classification: expected at least two classes, got {classes}")
        if not 0 <= smoothing < 1:
            raise ConfigError(f"classification: smoothing must lie from 0 to below 1, got {smoothing}")
        network = Classifier(model, classes, encoder)
        if isinstance(network.tokens, PatchTokens):
            network.tokens.registers.requires_grad_(model.registers > 0)
        super().__init__(network, recompute=0, **options)
        self.classes, self.smoothing = classes, smoothing
        self._clips: dict[int, Judged] = {}
        self._rows: dict[int, Judged] = {}
        self._named = False
        self._seed = torch.initial_seed() % 2**31

    def go_along(self, line: Line) -> None:
        tokens: Any = self.model.tokens
        if self.model.encoder is not None and not tokens.frozen:
            raise ConfigError(
                "time: a trained encoder has different random draws and means on each rank: set task.encoder.frozen"
            )
        self.line = line

    def forward(self, batch: Batch, stage: str) -> Said:
        """Continue the lanes of a stage with one segment."""
        state = self.state_before(batch, stage)
        said, state = self.model(batch.frames, state, batch.reset, learn=self.learn)
        self.keep(stage, state)
        return said

    def loss(self, batch: Batch, logits: Tensor) -> Tensor:
        """Cross-entropy over the frames that have a label. Raises ConfigError for a label beyond the classes."""
        self._fits(int(batch.label.max()))
        labelled = batch.valid & (batch.label >= 0)
        each = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.label.clamp(min=0).flatten(), reduction="none",
            label_smoothing=self.smoothing,
        )  # fmt: skip
        return self.mean(each.view_as(batch.label), labelled)

    def _fits(self, label: int) -> None:
        if label >= self.classes:
            raise ConfigError(
                f"the data has a label {label}, the task {self.classes} classes: set task.classes to {label + 1} or so"
            )

    def setup(self, stage: str) -> None:
        """Compare the labels of the data with the task, before anything is read; see `labelled`."""
        super().setup(stage)
        trainer: Any = self._trainer
        data = trainer and trainer.datamodule
        listed = getattr(data, "clips", None)
        if listed is None:
            return
        fitting = getattr(data, "fitting", self.model.fitting)
        if fitting is None and stage == "fit":
            logger.info("classification: `tttstream watch` takes the middle square, not the eval_transform of the data")
        self.model.fitting = fitting or self.model.fitting
        of_part = getattr(data, "classes_of", lambda _: getattr(data, "classes", ()))
        names = list(of_part(FIRST[stage]))
        if names and len(names) != self.classes:
            has = f"the data has {len(names)} class{'es' * (len(names) > 1)} ({_some(names)}), the task {self.classes}"
            advice = f"set task.classes to {len(names)}" if len(names) > 1 else "a classifier needs two: add another"
            raise ConfigError(f"{has}: {advice}")
        self.model.names, self._named = names or self.model.names, bool(names)
        if stage == "predict":
            return
        parts = {"fit": ("train", *(["val"] if getattr(data, "validated", False) else [])), "validate": ("val",)}
        trained_on: set[int] | None = None
        for part in parts.get(stage, (stage,)):
            found = self.labelled(part, [clip.label for clip in listed(part)], names, trained_on)
            trained_on = found if part == "train" else trained_on

    def labelled(self, part: str, labels: Sequence[int], names: Sequence[str], trained_on: set[int] | None) -> set[int]:
        """The classes of a part. Raises ConfigError if it has none, or some that the task does not have. Logs in one
        line the classes without a video in train, and the classes of other parts that train does not contain."""
        found = {label for label in labels if label >= 0}
        if not found:
            raise ConfigError(f"classification: no video of {part} has a label; give data with classes")
        self._fits(max(found))
        if part == "train" and (missing := sorted({*range(self.classes)} - found)):
            called = _some([f"{n} ({names[n]})" if names else str(n) for n in missing])
            first = ": do its numbers begin at 1?" if missing == [0] else ""
            first = f": set task.classes to {max(found) + 1}?" if not names and min(missing) > max(found) else first
            logger.warning(
                "classification: %d of the %d classes have no video in train: %s%s",
                len(missing), self.classes, called, first,
            )  # fmt: skip
        if trained_on is not None and (new := sorted(found - trained_on)):
            count = sum(label in new for label in labels)
            called = _some([f"{n} ({names[n]})" if names else str(n) for n in new])
            logger.warning(
                "classification: %d of %d videos of %s have classes without a video in train: %s",
                count, len(labels), part, called,
            )  # fmt: skip
        if -1 in labels:
            count = sum(label < 0 for label in labels)
            logger.warning(
                "classification: %d of %d videos of %s have no label and do not count", count, len(labels), part
            )
        return found

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other classes, or of the same in another order; take the names."""
        super().on_load_checkpoint(checkpoint)
        _, description = described(checkpoint["tttstream"])
        names = description["names"]
        if names and self._named and names != list(self.model.names):
            raise CheckpointError(
                f"the checkpoint's classes are {_some(names)}; those of the data are {_some(self.model.names)}, or in "
                "another order: give the data the same `classes`"
            )
        self.model.names = names

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Seed the random draws of an encoder by the step, so that a resumed run draws the same."""
        step = self.trainer.fit_loop.total_batch_idx * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed((self._seed << 32) + step)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane."""
        said = self(batch, "train")
        loss = self.loss(batch, said.logits)
        self.log_losses("train", {"loss": loss}, said.losses, batch.valid, batch.valid)
        return loss

    def so_far(self, batch: Batch, logits: Tensor, stage: str) -> Tensor:
        """The sum of each clip's log probabilities up to every frame [B, T, classes], carried from batch to batch, and
        from rank to rank in time."""
        logs = logits.float().log_softmax(-1)
        sums = self._carried.get(stage)
        if sums is None or len(sums) != len(logs):
            sums = torch.zeros_like(logs[:, 0])
        line, found = self.line, []
        if line is not None and not line.first:
            sums = line.receive(sums, line.rank - 1)
        for t in range(logs.shape[1]):
            sums = torch.where(batch.reset[:, t, None], 0.0, sums) + logs[:, t]
            found.append(sums)
        if line is not None:
            if not line.last:
                line.send(sums, line.rank + 1)
            sums = line.value_of_last(sums)
        self._carried[stage] = sums
        return torch.stack(found, 1)

    def measure(self, batch: Batch, stage: str) -> None:
        said = self(batch, stage)
        labelled = batch.valid & (batch.label >= 0)
        self.log_losses(stage, {"loss": self.loss(batch, said.logits)}, said.losses, batch.valid, labelled)
        right = (said.logits.argmax(-1) == batch.label).float()
        rate = mean_where(right, labelled)  # in every process, also without a clip
        self.log(f"{stage}/frame_accuracy", rate, batch_size=int(labelled.sum()), sync_dist=True)
        right = self.so_far(batch, said.logits, stage).argmax(-1) == batch.label
        for b, t in labelled.nonzero().tolist():  # in order, so that a clip's last frame decides
            self._clips[int(batch.clip[b, t])] = int(batch.position[b, t]), bool(right[b, t])

    def begin(self, stage: str) -> None:
        """Fresh lanes and sums."""
        super().begin(stage)
        self._clips, self._rows = {}, {}

    def finish(self, stage: str) -> None:
        """Log the accuracy of clips."""
        clips = self._latest(self._clips)
        count = len(clips)
        rate = sum(right for _, right in clips.values()) / max(1, count)
        self.log(f"{stage}/clip_accuracy", rate, batch_size=count, sync_dist=True)

    def predict_step(self, batch: Batch, index: int) -> list[dict[str, Any]]:
        """A row for each frame: the predicted class of the frame and of its clip so far, with names and probabilities.

        probability is that of the clip's class. `clip_rows` has a row for each clip afterwards.
        """
        said = self(batch, "predict")
        mean = (self.so_far(batch, said.logits, "predict") / (batch.position[..., None] + 1)).softmax(-1)
        (share, guess), (sure, alone) = mean.max(-1), said.logits.float().softmax(-1).max(-1)
        names, rows = self.model.names, []
        for b, t in batch.valid.nonzero().tolist():
            clip, judged = int(batch.clip[b, t]), int(guess[b, t])
            of_clip = {"clip_class": judged, "clip_name": names[judged], "probability": round(float(share[b, t]), 4)}
            row = {
                "clip": clip,
                "frame": int(batch.frame[b, t]),
                "class": int(alone[b, t]),
                "name": names[int(alone[b, t])],
                "frame_probability": round(float(sure[b, t]), 4),
            }
            rows.append(row | of_clip)
            label = int(batch.label[b, t])
            true = {"label": label, "label_name": names[label], "right": label == judged} if label >= 0 else {}
            at = int(batch.position[b, t])
            self._rows[clip] = at, {"clip": clip, "frames": at + 1, **of_clip, **true}
        return rows

    def clip_rows(self) -> list[dict[str, Any]]:
        """The prediction for each clip with at least one frame, from all its frames; of ranks in time, the last's."""
        rows = self._latest(self._rows)
        return [rows[clip][1] for clip in sorted(rows) if self.line is None or self.line.last]

    def _latest(self, found: dict[int, Judged]) -> dict[int, Judged]:
        """The prediction at the last frame of each clip, which may be on another rank in time."""
        parts = [found] if self.line is None else self.line.gathered(found)
        latest: dict[int, Judged] = {}
        for clip, judged in (pair for part in parts for pair in part.items()):
            latest[clip] = max(judged, latest.get(clip, judged), key=itemgetter(0))
        return latest


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
