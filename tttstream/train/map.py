"""The map: a memory that says what was seen at places out of sight, trained on questions about the past."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError, ShapeError
from tttstream.models.map import MapConfig, MapModel, MapOutput, load
from tttstream.train.data.generated import TRAINED_ON
from tttstream.train.metrics import Table, octave
from tttstream.train.task import StreamTask

if TYPE_CHECKING:
    from tttstream.train.data import Batch

OCTAVES = 16
SAMPLES = 192  # pictures of training worlds whose patches give the components of the codes
WITHIN = 0.25  # how far beyond the middles of the outermost patches a point counts as in view, in patches


class Past(NamedTuple):
    """The latest frames of every row: codes [B, P, n, C], points [B, P, n, 5], poses [B, P, 5], and the number of the
    visit of each, [B, P], -1 where there was none."""

    codes: Tensor
    points: Tensor
    poses: Tensor
    visit: Tensor


class Asked(NamedTuple):
    """Questions [B, T, n] and what is true of them. points: [..., 5]. codes: [..., C]. age: frames since the point was
    last in view, 0 where it never was."""

    points: Tensor
    codes: Tensor
    age: Tensor


class Map(StreamTask):
    """A map that is trained on streams of frames with poses.

    With every token it is asked about a point of a frame of the same visit: mostly of an earlier one, drawn evenly from
    the last `past` frames, and now and then of a later one, which it may not know. What the present frame shows tells
    nothing of most of them, so that only a memory can answer. The loss is the squared error of the codes at points that
    were seen, the negative log likelihood of the error that is expected, and the cross-entropy of whether a point was
    seen. Measured by the age of what is asked for: `error` is that of the codes over that of the mean code.

    Args:
        network: the map's shape. past: frames of the row that questions go back to at most. future: share of the
            questions about frames to come. weights: where training begins, a map's folder or a shipped one's name.
        lr, weight_decay, warmup: see `StreamTask`.
    """

    model: MapModel

    def __init__(
        self,
        network: MapConfig,
        *,
        past: int = 192,
        future: float = 0.15,
        seed: int = 0,
        weights: str | None = None,
        lr: float = 2e-3,
        weight_decay: float = 0.0,
        warmup: int = 30,
    ) -> None:
        model = begun(network, weights)
        super().__init__(model, dataclasses.asdict(network), lr=lr, weight_decay=weight_decay, warmup=warmup)
        if past < 1 or not 0 <= future < 1:
            raise ConfigError(f"map: expected past of at least 1 and future from 0 to below 1, got {past}, {future}")
        self.past, self.future, self.seed = past, future, seed
        self._past: dict[str, Past] = {}
        self.tables = torch.nn.ModuleDict({stage: Table(OCTAVES, ["error", "mean"]) for stage in ("val", "test")})

    def forward(self, batch: Batch, stage: str) -> tuple[MapOutput, Asked]:
        """Go on with a stage's lanes over one segment."""
        if batch.pose is None:
            raise ShapeError("map: the data says not where frames were taken: take data/places")
        with torch.no_grad():
            asked = self._questions(batch, stage)
        output, state = self.model(
            batch.frames, batch.pose, self.state_before(batch, stage), batch.reset, ask=asked.points
        )
        self.keep(stage, state)
        return output, asked

    def _questions(self, batch: Batch, stage: str) -> Asked:
        """Draw the questions of a segment, and remember its frames for later ones."""
        assert batch.pose is not None
        rows, length = batch.reset.shape
        codes, points = self.model.codes.encode(self.model.pixels(batch.frames)), self.model.points(batch.pose)
        before = self._past.get(stage)
        if before is None or len(before.visit) != rows:
            before = Past(codes[:, :0], points[:, :0], batch.pose[:, :0], batch.position[:, :0])
        number = before.visit[:, -1:] if before.visit.shape[1] else batch.position.new_zeros(rows, 1)
        visit = torch.where(batch.valid, number + batch.reset.cumsum(1), -1)
        now = Past(codes, points, batch.pose, visit)
        known = Past(*(torch.cat(pair, 1) for pair in zip(before, now, strict=True)))
        self._past[stage] = Past(*(part[:, -self.past :] for part in known))
        count = known.visit.shape[1] - length  # frames before this segment
        draw = torch.Generator().manual_seed(
            self.seed * 1_000_003 + int(batch.clip[0, 0]) * 7919 + int(batch.frame[0, 0])
        )
        tokens = codes.shape[2]
        place = count + torch.arange(length, device=codes.device)
        same = known.visit[:, None, :] == visit[:, :, None]  # [B, T, L]
        older = torch.arange(known.visit.shape[1], device=codes.device) < place[:, None]
        choice = self._draw(same & older, tokens, draw)
        later = self._draw(
            same & (torch.arange(known.visit.shape[1], device=codes.device) > place[:, None]), tokens, draw
        )
        ahead = torch.rand(rows, length, tokens, generator=draw).to(codes.device) < self.future
        choice = torch.where((ahead & (later >= 0)) | (choice < 0), later, choice)
        choice = torch.where(choice < 0, place[:, None], choice)
        patch = torch.randint(tokens, (rows, length, tokens), generator=draw).to(codes.device)
        row = torch.arange(rows, device=codes.device)[:, None, None]
        asked = known.points[row, choice, patch]
        seen = in_view(asked, known.poses, self.model.config.side) & (same & older)[:, :, None]
        last = torch.where(seen, torch.arange(seen.shape[-1], device=codes.device), -1).amax(-1)
        age = torch.where(last >= 0, place[:, None] - last, 0)
        return Asked(asked, known.codes[row, choice, patch], age)

    @staticmethod
    def _draw(allowed: Tensor, count: int, draw: torch.Generator) -> Tensor:
        """For allowed frames [B, T, L], side by side: `count` of them, drawn evenly with replacement, [B, T, count]; -1
        where there are none."""
        first, many = allowed.int().argmax(-1), allowed.sum(-1)
        share = torch.rand(*many.shape, count, generator=draw).to(many.device)
        chosen = first[..., None] + (share * many[..., None]).long().clamp(max=(many - 1).clamp(min=0)[..., None])
        return torch.where(many[..., None] > 0, chosen, -1)

    def losses(self, output: MapOutput, asked: Asked, valid: Tensor) -> dict[str, Tensor]:
        """What is trained, by name; gradients come from `loss`, their sum."""
        error = (output.codes - asked.codes).square().mean(-1)
        valid = valid[..., None].expand_as(error)
        seen = valid & (asked.age > 0)
        squared = _mean(error, seen)
        likelihood = _mean(error.detach() / output.error + output.error.log(), valid)
        known = output.familiar.clamp(1e-6, 1 - 1e-6)
        familiar = _mean(F.binary_cross_entropy(known, (asked.age > 0).to(known.dtype), reduction="none"), valid)
        loss = squared + 0.05 * likelihood + 0.05 * familiar
        return {"loss": loss, "squared": squared, "likelihood": likelihood, "familiar": familiar}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane."""
        output, asked = self(batch, "train")
        losses = self.losses(output, asked, batch.valid)
        self.log_losses("train", losses, None, batch.valid, batch.valid)
        return losses["loss"]

    def validation_step(self, batch: Batch, index: int) -> dict[str, Any] | None:
        """As training, measured; of the first batch also pictures: frames, and below them what memory expected of them
        before it saw them, from the state before the segment."""
        state = self.state_before(batch, "val")
        self._measure(batch, "val")
        if index or state is None or batch.pose is None:
            return None
        at = torch.linspace(0, batch.frames.shape[1] - 1, 6).long()
        points = self.model.points(batch.pose[:2, at])
        expected = self.model.imagine(points.flatten(1, 2), state.map(lambda part: part[:2])).codes
        drawn = self.model.codes.picture(expected.unflatten(1, (len(at), -1)))
        return {"pictures": torch.stack([self.model.pixels(batch.frames[:2, at]), drawn], 1).flatten(0, 1)}

    def test_step(self, batch: Batch, index: int) -> None:
        """As validation, on other worlds."""
        self._measure(batch, "test")

    def _measure(self, batch: Batch, stage: str) -> None:
        output, asked = self(batch, stage)
        losses = self.losses(output, asked, batch.valid)
        self.log_losses(stage, losses, None, batch.valid, batch.valid)
        seen = batch.valid[..., None] & (asked.age > 0)
        error = (output.codes - asked.codes).square().mean(-1)
        mean = (asked.codes - asked.codes[seen].mean(0)).square().mean(-1)
        self.tables[stage].update(octave(asked.age[seen]), torch.stack([error[seen], mean[seen]], 1))  # type: ignore[operator]

    def setup(self, stage: str) -> None:
        """See StreamTask."""
        super().setup(stage)
        self._past.clear()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frames that questions go back to: a run that is resumed asks what an uninterrupted one asks."""
        super().on_save_checkpoint(checkpoint)
        past = self._past.get("train")
        if past is not None:
            checkpoint["tttstream"]["past"] = [self._gathered(part) for part in past]

    def _gathered(self, part: Tensor) -> Tensor:
        """A tensor of every process, one after the other [processes, …]."""
        every = self.all_gather(part.to(self.device))
        assert isinstance(every, Tensor)
        return every.view(self.trainer.world_size, *part.shape).cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See StreamTask; go on with the frames that questions go back to."""
        super().on_load_checkpoint(checkpoint)
        past, trainer = checkpoint["tttstream"].get("past"), self._trainer
        if past is not None and trainer is not None and trainer.state.fn == "fit":
            self._past["train"] = Past(*(part[trainer.global_rank].to(self.device) for part in past))

    def on_validation_epoch_start(self) -> None:
        """Validation starts from a fresh state; the training lanes wait."""
        super().on_validation_epoch_start()
        self._past.pop("val", None)

    def on_validation_epoch_end(self) -> None:
        """Log the errors by age."""
        self._log_table("val")

    def on_test_epoch_end(self) -> None:
        """Log the errors by age."""
        self._log_table("test")

    def _log_table(self, stage: str) -> None:
        table = self.tables[stage]
        assert isinstance(table, Table)
        overall = table.overall()
        if overall:
            self.log(f"{stage}/error", overall["error"] / overall["mean"], sync_dist=True)
        for row, means in table.means().items():
            self.log(f"{stage}/error/age_{2**row // 2}", means["error"] / means["mean"], sync_dist=True)
        table.reset()


def in_view(points: Tensor, poses: Tensor, side: int) -> Tensor:
    """Whether points [B, T, n, 5] lie in the views from poses [B, L, 5] of side × side patches: bool [B, T, n, L]."""
    x, y, world = (points[..., i, None] - poses[:, None, None, :, i] for i in (0, 1, 4))
    log_zoom, roll = (poses[:, None, None, :, i] for i in (2, 3))
    c, s = roll.cos(), roll.sin()
    limit = (0.5 + (WITHIN - 0.5) / side) * log_zoom.exp()
    return ((c * x + s * y).abs() <= limit) & ((c * y - s * x).abs() <= limit) & (world == 0)


def begun(network: MapConfig, weights: str | None) -> MapModel:
    """A map of that shape: with the weights that are named, or drawn, and then with the components of the patches of
    worlds for training as codes."""
    if weights is not None:
        kept = load(weights)
        if kept.config != network:
            raise ConfigError(f"weights: {weights} has the shape {kept.config}, the configuration says {network}")
        return kept.train()
    from tttstream.sources.places import Places

    model = MapModel(network)
    worlds = [Places(size=network.size, seed=seed, photographs=TRAINED_ON) for seed in range(16)]
    frames = [world.frame(97 * number).image for world in worlds for number in range(SAMPLES // len(worlds))]
    pictures = torch.from_numpy(np.stack(frames).astype(np.float32) / 255.0).permute(0, 3, 1, 2)
    model.codes.fit(pictures)
    return model


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values that count, 0 where none does."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)
