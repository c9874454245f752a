"""Training of the map: a memory recalls places out of view, trained with queries about the past."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.models import load_as
from tttstream.models.base import SavedModel
from tttstream.models.map import MapConfig, MapModel, MapOutput
from tttstream.models.map.model import Cells
from tttstream.models.map.points import Plane, complete
from tttstream.train.calibration import calibrate
from tttstream.train.data.batch import Batch
from tttstream.train.data.generated import TRAINED_ON
from tttstream.train.metrics import Table, octave
from tttstream.train.task import FIRST, StreamTask, mean_where

OCTAVES = 16
SAMPLES = 512  # pictures of training worlds whose patches give the components of the codes
WHOLE = 0.99  # least share of a cell in view for a query about its content
NEVER = 2**62


class Past(NamedTuple):
    """The cells that each row has seen completely, with their last content: codes [B, P, C], points [B, P, 3], key [B,
    P] and frame [B, P], both int64; frames are counted along the row. The key identifies cell and visit; -1 for
    none."""

    codes: Tensor
    points: Tensor
    key: Tensor
    frame: Tensor


class Asked(NamedTuple):
    """Queries [B, T, n] with their ground truth. points: [..., 3]. codes: [..., C]. age: frames since the point was
    last in view, 0 if it never was. counts: whether there is a query, bool [...]."""

    points: Tensor
    codes: Tensor
    age: Tensor
    counts: Tensor


class Map(StreamTask):
    """A map that is trained on streams of frames with poses.

    Each token queries a cell of the world that this stream has seen completely, drawn uniformly from all known cells,
    independent of their age; and sometimes a cell that it has not seen yet. Most of them are not in the current frame,
    so the answer requires a memory. The loss is the squared error of the codes of seen cells, the negative log
    likelihood of the expected error, and the cross-entropy of whether a cell was seen. In training the signs of the
    codes' components differ from clip to clip, see `flips`. `error` is that of the codes divided by that of the mean
    code, by the age of the cell.

    Args:
        network: the shape of the map. tokens: the number of learned cells in each frame, those with the largest part in
        view. past: the largest number of cells of a row for queries. future: the share of queries about cells that are
        not seen yet. weights: initial weights, the folder of a map or the name of a shipped one. calibration: frames of
        each stream for the calibration at the end, see `tttstream.train.calibration`; 0 for none. lr, weight_decay,
        warmup: see `StreamTask`.
    """

    model: MapModel
    CARRIED = "past"

    def __init__(
        self,
        network: MapConfig,
        *,
        tokens: int = 9,
        past: int = 384,
        future: float = 0.15,
        seed: int = 0,
        weights: str | None = None,
        calibration: int = 1000,
        lr: float = 2e-4,
        weight_decay: float = 0.0,
        warmup: int = 30,
    ) -> None:
        model = begun(network, weights)
        super().__init__(model, lr=lr, weight_decay=weight_decay, warmup=warmup)
        if min(tokens, past) < 1 or not 0 <= future < 1 or calibration < 0:
            raise ConfigError(
                "map: expected tokens and past of at least 1, future from 0 to below 1, calibration of at least 0; "
                f"got {tokens}, {past}, {future}, {calibration}"
            )
        self.tokens, self.past, self.future, self.seed = tokens, past, future, seed
        self.calibration = calibration
        self.plane = Plane(None)
        self.tables = torch.nn.ModuleDict({stage: Table(OCTAVES, ["error", "mean"]) for stage in ("val", "test")})

    def setup(self, stage: str) -> None:
        """Set `plane` for the poses of the data. Raises ConfigError for poses that do not lie in a plane."""
        super().setup(stage)
        trainer: Any = self._trainer
        listed = getattr(trainer and trainer.datamodule, "clips", None)
        if listed is not None:
            self.plane = Plane(next((clip.form for clip in listed(FIRST[stage]) if clip.pose), None))

    def poses(self, batch: Batch) -> Tensor:
        """The poses of a batch as those of a map, [B, T, 5]."""
        if batch.pose is None:
            raise ConfigError("map: the data has no poses: use data/places")
        return complete(self.plane.laid(batch.pose))

    def forward(self, batch: Batch, stage: str) -> tuple[MapOutput, Asked]:
        """Continue the lanes of a stage with one segment."""
        with torch.no_grad():
            cells, asked = self._questions(batch, stage)
        output, state = self.model.learned(cells, self.state_before(batch, stage), batch.reset, asked.points)
        self.keep(stage, state)
        return output, asked

    def _questions(self, batch: Batch, stage: str) -> tuple[Cells, Asked]:
        """Draw the queries of a segment, and store its cells for later ones."""
        pose = self.poses(batch)
        if stage == "train":
            pose = torch.cat([pose[..., :4], pose[..., 4:] + renumbered(batch.clip)[..., None]], dim=-1)
        now = self.model.cells(batch.frames, pose, count=self.tokens)
        if stage == "train":
            now = now._replace(codes=now.codes * flips(batch.clip, now.codes.shape[-1])[:, :, None])
        rows, length, tokens = now.shown.shape
        before = Past(now.codes[:, 0, :0], now.points[:, 0, :0], batch.clip[:, :0], batch.clip[:, :0])
        if stage in self._carried and len(self._carried[stage][0]) == rows:
            before = Past(*self._carried[stage])
        frame = before.frame.amax(1, keepdim=True) + 1 if before.frame.shape[1] else batch.clip.new_zeros(rows, 1)
        frame = frame + torch.arange(length, device=frame.device)  # [B, T]
        life = torch.where(batch.reset, frame, -1).cummax(1)[0]  # the first frame of the visit, -1: before the segment
        keys = torch.where(
            batch.valid[..., None] & (now.shown >= WHOLE), cell_keys(now.points, self.model.config.side), -1
        )
        entries = Past(
            torch.cat([before.codes, now.codes.flatten(1, 2)], 1),
            torch.cat([before.points, now.points.flatten(1, 2)], 1),
            torch.cat([before.key, keys.flatten(1)], 1),
            torch.cat([before.frame, frame.repeat_interleave(tokens, 1)], 1),
        )
        since = torch.cat([torch.full_like(before.key, -1), life.repeat_interleave(tokens, 1)], 1)
        first, following = neighbours(entries.key, since, entries.frame)
        draw = torch.Generator().manual_seed(
            self.seed * 1_000_003 + int(batch.clip[0, 0]) * 7919 + int(batch.frame[0, 0])
        )
        there = (entries.key >= 0)[:, None] & (since[:, None] == life[:, :, None])  # [B, T, P]
        at, seen = frame[:, :, None], entries.frame[:, None]
        choice = drawn(there & (seen < at) & (following[:, None] > at), tokens, draw)
        later = drawn(there & (seen > at) & first[:, None], tokens, draw)
        ahead = torch.rand(rows, length, tokens, generator=draw).to(choice.device) < self.future
        choice = torch.where((ahead & (later >= 0)) | (choice < 0), later, choice)
        chosen = choice.clamp(min=0)
        row = torch.arange(rows, device=choice.device)[:, None, None]
        age = at - entries.frame[row, chosen]
        age = torch.where((choice >= 0) & (age > 0), age, 0)
        asked = Asked(entries.points[row, chosen], entries.codes[row, chosen], age, choice >= 0)
        last = (entries.key >= 0) & (following == NEVER) & (since == life[:, -1:])
        order = (last * (entries.frame + 1)).argsort(dim=1, descending=True, stable=True)[:, : self.past]
        kept = [part.gather(1, order) for part in (entries.key, entries.frame)]
        kept[0] = torch.where(last.gather(1, order), kept[0], -1)
        wide = order[..., None]
        self._carried[stage] = [
            entries.codes.gather(1, wide.expand(-1, -1, entries.codes.shape[-1])),
            entries.points.gather(1, wide.expand(-1, -1, 3)),
            *kept,
        ]
        return now, asked

    def losses(self, output: MapOutput, asked: Asked, valid: Tensor) -> dict[str, Tensor]:
        """The losses by name; gradients come from `loss`, their sum."""
        error = (output.codes - asked.codes).square().mean(-1)
        valid = valid[..., None] & asked.counts
        seen = valid & (asked.age > 0)
        squared = mean_where(error, seen)
        likelihood = mean_where(error.detach() / output.error + output.error.log(), valid)
        known = output.familiar.clamp(1e-6, 1 - 1e-6)
        familiar = mean_where(F.binary_cross_entropy(known, (asked.age > 0).to(known.dtype), reduction="none"), valid)
        loss = squared + 0.05 * likelihood + 0.1 * familiar
        return {"loss": loss, "squared": squared, "likelihood": likelihood, "familiar": familiar}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """One segment of every lane."""
        output, asked = self(batch, "train")
        losses = self.losses(output, asked, batch.valid)
        self.log_losses("train", losses, None, batch.valid, batch.valid)
        return losses["loss"]

    def validation_step(self, batch: Batch, index: int) -> dict[str, Any] | None:
        """Metrics as in training; for the first batch also pictures: frames, and below them the predictions for them
        from the state before the segment."""
        state = self.state_before(batch, "val")
        self.measure(batch, "val")
        if index or state is None:
            return None
        at, poses = torch.linspace(0, batch.frames.shape[1] - 1, 6).long(), self.poses(batch)
        views = [self.model.view(poses[:2, t], state.map(lambda part: part[:2])).picture for t in at]
        pairs = torch.stack([self.model.pixels(batch.frames[:2, at]), torch.stack(views, 1)], 1)
        return {"pictures": pairs.flatten(0, 1)}

    def measure(self, batch: Batch, stage: str) -> None:
        output, asked = self(batch, stage)
        losses = self.losses(output, asked, batch.valid)
        self.log_losses(stage, losses, None, batch.valid, batch.valid)
        seen = batch.valid[..., None] & asked.counts & (asked.age > 0)
        error = (output.codes - asked.codes).square().mean(-1)
        mean = (asked.codes - asked.codes[seen].mean(0)).square().mean(-1)
        self.tables[stage].update(octave(asked.age[seen]), torch.stack([error[seen], mean[seen]], 1))  # type: ignore[operator]

    def complete(self, model: SavedModel) -> None:
        """See StreamTask: calibrate the map."""
        assert isinstance(model, MapModel)
        if self.calibration:
            calibrate(model, frames=self.calibration)

    def finish(self, stage: str) -> None:
        """Log the errors by age."""
        table = self.tables[stage]
        assert isinstance(table, Table)
        overall = table.overall()
        if overall:
            self.log(f"{stage}/error", overall["error"] / overall["mean"], sync_dist=True)
        for row, means in table.means().items():
            self.log(f"{stage}/error/age_{2**row // 2}", means["error"] / means["mean"], sync_dist=True)
        table.reset()


def cell_keys(points: Tensor, side: int) -> Tensor:
    """A number for every cell, from its centre [..., 3], unique within a million cells of the origin."""
    column, row = (points[..., :2] * side).floor().long().unbind(-1)
    return (points[..., 2].round().long() * 2**21 + (row + 2**20)) * 2**21 + column + 2**20


def flips(clips: Tensor, count: int) -> Tensor:
    """A random sign for each of `count` components, from the number of the clip: clips [B, T] -> [B, T, count]. There
    are few photographs; with different signs the patches of every clip are unique, so the network cannot learn the
    photographs and has to use its memory."""
    numbers, back = clips.unique(return_inverse=True)
    drawn_by = (torch.Generator().manual_seed(int(number)) for number in numbers)
    signs = torch.stack([torch.randint(2, (count,), generator=draw) for draw in drawn_by])
    return (2.0 * signs.to(clips.device) - 1.0)[back]


def renumbered(clips: Tensor) -> Tensor:
    """Offsets for the numbers of worlds of clips [B, T], drawn from the number of the clip, below 2 ** 20, so that
    training uses the keys of very many worlds."""
    numbers, back = clips.unique(return_inverse=True)
    drawn_by = (torch.Generator().manual_seed(int(number) + 2**40) for number in numbers)
    return torch.stack([torch.randint(2**20, (), generator=draw) for draw in drawn_by]).to(clips.device)[back]


def neighbours(key: Tensor, since: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """For sightings [B, P]: whether each is the first with its key and since, and the frame of the next one, NEVER if
    there is none."""
    order = frame.argsort(dim=1, stable=True)
    for part in (key, since):
        order = order.gather(1, part.gather(1, order).argsort(dim=1, stable=True))
    key, since, frame = (part.gather(1, order) for part in (key, since, frame))
    alike = (key[:, 1:] == key[:, :-1]) & (since[:, 1:] == since[:, :-1])
    first = F.pad(~alike, (1, 0), value=True)
    following = F.pad(torch.where(alike, frame[:, 1:], NEVER), (0, 1), value=NEVER)
    back = order.argsort(1)
    return first.gather(1, back), following.gather(1, back)


def drawn(allowed: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """For allowed [B, T, P]: `count` indices of allowed ones, drawn uniformly with replacement, [B, T, count]; -1 if
    there are none."""
    many = allowed.int().cumsum(-1)
    share = torch.rand(*many.shape[:2], count, generator=draw).to(many.device)
    rank = (share * many[..., -1:]).int() + 1
    found = torch.searchsorted(many, rank).clamp(max=allowed.shape[-1] - 1)
    return torch.where(many[..., -1:] > 0, found, -1)


def begun(network: MapConfig, weights: str | None) -> MapModel:
    """A map with this shape and the named weights; or with random weights, and the principal components of patches of
    training worlds as codes."""
    if weights is not None:
        kept = load_as(MapModel, weights)
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
