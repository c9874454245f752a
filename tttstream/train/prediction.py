"""Prediction of the next frame, or of k frames, compared with repeating the last frame."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError, ShapeError
from tttstream.models import load_as
from tttstream.models.backbone import ModelState
from tttstream.models.frame import FrameModel, ModelConfig, Output
from tttstream.ranks import Line
from tttstream.train.data.batch import Batch
from tttstream.train.metrics import QUALITIES, Table, octave, qualities
from tttstream.train.task import StreamTask, join, mean_where, named

FLOOR = 1e-5
"""Added to errors before their ratio is taken: errors below a grey level come from rounding and compression."""

OCTAVES = 25  # positions to 16 million


def pixels(frames: Tensor) -> Tensor:
    """uint8 frames as float 0..1."""
    return frames.float() / 255.0 if frames.dtype == torch.uint8 else frames


def log_relative_error(predicted: Tensor, last: Tensor, target: Tensor) -> Tensor:
    """The log of the mean squared error divided by that of repeating the last frame, for each frame [...] (FLOOR is
    added to both).

    0 is as good as repeating, -0.23 is one decibel better. So slow and fast motion have equal weight, and a frame that
    cannot be predicted has no more weight than others. mse and copy_mse give the total gain.
    """
    axes = (-3, -2, -1)
    error, repeated = ((picture - target).square().mean(axes) + FLOOR for picture in (predicted, last))
    return (error / repeated).log()


class Segment(NamedTuple):
    """One segment with the output of the model for each frame, and the last k frames predicted from earlier ones."""

    output: Output
    ahead: Tensor | None


class Prediction(StreamTask):
    """Self-supervised prediction of later frames.

    The loss is the log of the error of every next frame inside a segment over that of repeating the last one. With
    `horizon` k > 1 the last k frames of a segment are also predicted from the frame before them: each prediction is the
    next input, the memory is read but does not learn from them, and their mean error is added to the loss.

    Validation and test measure MSE, PSNR and SSIM for every horizon 1..k and for every octave of the position in the
    stream, and those of copying the last frame.

    Args:
        horizon: k, the number of frames ahead. reset_every: 0, or reset the memory after this number of frames of a
            video when it is measured (an ablation).
        steady: do not train the tokens and the blocks that the surprise comes from (the model's `surprise`), because
            training for prediction weakens it.
        weights: initial weights, a model's folder or a shipped model's name; random unless given.
        The others: see `StreamTask`.
    """

    def __init__(
        self,
        model: ModelConfig,
        *,
        horizon: int = 1,
        reset_every: int = 0,
        steady: bool = False,
        weights: str | None = None,
        **options: Any,
    ) -> None:
        network = begun(model, weights)
        network.embedding.requires_grad_(False)  # no loss reaches it
        network.tokens.registers.requires_grad_(model.registers > 0)
        if steady:
            if model.surprise == 0:
                raise ConfigError("steady needs blocks of surprise: set model.surprise, for example to 1")
            for part in (network.tokens, *network.backbone.blocks[: model.surprise]):
                part.requires_grad_(False)
        super().__init__(network, **options)
        if horizon < 1:
            raise ConfigError(f"prediction: horizon must be at least 1, got {horizon}")
        if reset_every < 0:
            raise ConfigError(f"prediction: reset_every cannot be negative, got {reset_every}")
        self.horizon, self.reset_every = horizon, reset_every
        columns = [*QUALITIES, *(f"copy_{name}" for name in QUALITIES)]
        self.tables = nn.ModuleDict()
        for stage in ("val", "test"):
            self.tables[f"{stage}_position"] = Table(OCTAVES, columns)
            if horizon > 1:
                self.tables[f"{stage}_horizon"] = Table(horizon + 1, columns)

    def go_along(self, line: Line) -> None:
        if self.horizon > 1 or self.recompute:
            given = f"horizon {self.horizon}, recompute {self.recompute}"
            raise ConfigError(f"time: expected a horizon of 1 and no recompute, got {given}")
        self.line = line

    def forward(self, batch: Batch, stage: str) -> Segment:
        """Continue the lanes of a stage with one segment."""
        frames, reset, count = batch.frames, batch.reset, batch.frames.shape[1]
        state, ahead = self.state_before(batch, stage), None
        if self.reset_every and stage != "train":
            reset = reset | (batch.position % self.reset_every == 0)
        if self.horizon == 1:
            output, state = self.run_segment(frames, state, reset)
        elif count > self.horizon:
            at = count - self.horizon
            known, state = self.run_segment(frames[:, :at], state, reset[:, :at])
            ahead = self.roll_out(known, state)
            rest, state = self.run_segment(frames[:, at:], state, reset[:, at:])
            output = join([known, rest])
        else:
            raise ShapeError(
                f"prediction: horizon {self.horizon} needs segments of more frames than that, got {count}: set "
                f"data.length to {self.horizon + 1} or more"
            )
        self.keep(stage, state)
        return Segment(output, ahead)

    def roll_out(self, output: Output, state: ModelState) -> Tensor:
        """The k frames [B, k, 3, H, W] after a segment; each prediction is the input for the next."""
        frames = [output.prediction[:, -1:]]
        for _ in range(self.horizon - 1):
            output, state = self.model(frames[-1], state, learn=False)
            frames.append(output.prediction)
        return torch.cat(frames, 1)

    def table(self, stage: str, kind: str) -> Table:
        """The table of a stage by "position" or by "horizon"."""
        return cast(Table, self.tables[f"{stage}_{kind}"])

    def losses(self, batch: Batch, segment: Segment) -> dict[str, Tensor]:
        """The losses of a segment by name; gradients come from `loss`, their sum."""
        target, goes_on = targets(batch)
        if target.shape[1] < 2:
            raise ShapeError("prediction: a segment of one frame has no next frame: set data.length to 2 or more")
        error = log_relative_error(segment.output.prediction[:, : len(target[0]) - 1], target[:, :-1], target[:, 1:])
        losses = {"next": self.mean(error, goes_on[:, 1:])}
        if segment.ahead is not None:
            k = self.horizon
            error = log_relative_error(segment.ahead, target[:, -k - 1 : -k], target[:, -k:])
            losses["ahead"] = mean_where(error, goes_on[:, -k:].cumprod(1).bool())
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane."""
        segment = self(batch, "train")
        losses = self.losses(batch, segment)
        self.log_losses("train", losses, segment.output.losses, batch.valid, batch.valid)
        return losses["loss"]

    def validation_step(self, batch: Batch, index: int) -> dict[str, Any] | None:
        """Metrics as in training; for the first batch also pictures.

        Pictures: a row for each lane with the last frame, the target, the prediction and four times their difference;
        with a horizon, a row of targets above a row of predictions. They have labels.
        """
        segment = self.measure(batch, "val")
        if index or batch.frames.shape[1] < 2:
            return None
        target, predicted = pixels(batch.frames), segment.output.prediction
        if segment.ahead is not None:
            true = target[:4, -self.horizon :]
            labels = [
                [f"{named(batch, row, t)}: {what}" for t in range(-self.horizon, 0)]
                for row in range(len(true))
                for what in ("target", "predicted")
            ]
            return {"pictures": torch.stack([true, segment.ahead[:4].float()], 1).flatten(0, 1), "labels": labels}
        last, true, said = target[:4, -2], target[:4, -1], predicted[:4, -2].float().clamp(0, 1)
        wrong = (4 * (said - true).abs()).clamp(max=1)
        labels = [
            [named(batch, row, -2), f"{named(batch, row, -1)}: target", "predicted", "difference, 4 times"]
            for row in range(len(true))
        ]
        return {"pictures": torch.stack([last, true, said, wrong], 1), "labels": labels}

    def predict_step(self, batch: Batch, index: int) -> list[dict[str, float]]:
        """A row for each frame: its position, its inner loss before it was learned, and the error of its prediction.

        mse is the error of the prediction from the frame before, copy_mse that of repeating it. Both are absent if the
        frame before is not in the same batch.
        """
        output = self(batch, "predict").output
        target = pixels(batch.frames)
        mse = (output.prediction[:, :-1] - target[:, 1:]).square().mean((2, 3, 4))
        copy = (target[:, :-1] - target[:, 1:]).square().mean((2, 3, 4))
        rows: list[dict[str, float]] = []
        for b, t in batch.valid.nonzero().tolist():
            row: dict[str, float] = {"clip": int(batch.clip[b, t]), "frame": int(batch.frame[b, t])}
            if output.losses is not None:
                row["loss"] = round(float(output.losses.before[b, t].mean()), 6)
            if t and not batch.reset[b, t]:
                row |= {"mse": round(float(mse[b, t - 1]), 8), "copy_mse": round(float(copy[b, t - 1]), 8)}
            rows.append(row)
        return rows

    def measure(self, batch: Batch, stage: str) -> Segment:
        segment = self(batch, stage)
        target, goes_on = targets(batch)
        valid = goes_on[:, 1:]
        self.log_losses(stage, self.losses(batch, segment), segment.output.losses, batch.valid, valid)
        predicted, position = segment.output.prediction[:, : valid.shape[1]], batch.position[:, : valid.shape[1]] + 1
        shown = [part[valid] for part in (predicted, target[:, :-1], target[:, 1:])]
        self.table(stage, "position").update(octave(position[valid]), _beside_copy(*shown))
        if segment.ahead is None:
            return segment
        k = self.horizon
        valid = goes_on[:, -k:].cumprod(1).bool()
        last = target[:, -k - 1 : -k].expand_as(segment.ahead)
        ahead = torch.arange(1, k + 1, device=self.device).expand_as(valid)
        shown = [part[valid] for part in (segment.ahead, last, target[:, -k:])]
        self.table(stage, "horizon").update(ahead[valid], _beside_copy(*shown))
        return segment

    def finish(self, stage: str) -> None:
        """Log the tables."""
        table = self.table(stage, "position")  # its sums are those of all processes, which log the same
        self.log_dict({f"{stage}/{column}": value for column, value in table.overall().items()}, sync_dist=True)
        for row, means in table.means().items():
            values = {f"{stage}/{name}/from_{2**row // 2}": means[name] for name in ("mse", "copy_mse")}
            self.log_dict(values, sync_dist=True)
        table.reset()
        if self.horizon > 1:
            for row, means in self.table(stage, "horizon").means().items():
                values = {f"{stage}/{name}/ahead_{row}": value for name, value in means.items()}
                self.log_dict(values, sync_dist=True)
            self.table(stage, "horizon").reset()


def targets(batch: Batch) -> tuple[Tensor, Tensor]:
    """The frames of a batch, and the next one if there is one, [B, T or T + 1, 3, H, W] in 0..1; and whether each has
    the frame before it in the same video, bool [B, T or T + 1]."""
    frames, goes_on = batch.frames, batch.valid & ~batch.reset
    if batch.after is not None and batch.follows is not None:
        frames, goes_on = torch.cat([frames, batch.after], 1), torch.cat([goes_on, batch.follows], 1)
    return pixels(frames), goes_on


def begun(config: ModelConfig, weights: str | None) -> FrameModel:
    """A model with this shape, with the weights in a folder or of a shipped model if they are given."""
    model = FrameModel(config)
    if weights is not None:
        kept = load_as(FrameModel, weights, size=config.size)
        if kept.config != config:
            raise ConfigError(f"weights: {weights} has the shape {kept.config}, the configuration says {config}")
        model.load_state_dict(kept.state_dict())
    return model


def _beside_copy(predicted: Tensor, last: Tensor, target: Tensor) -> Tensor:
    """Frames [n, 3, H, W] -> [n, 6]: qualities of the prediction, and of the last frame repeated."""
    if not len(target):
        return target.new_zeros(0, 2 * len(QUALITIES))
    return torch.cat([qualities(predicted, target), qualities(last, target)], dim=1)
