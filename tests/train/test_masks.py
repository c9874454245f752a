"""The task of mask propagation: lanes, counted objects, learning, checkpoints, and the exported model."""

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream import models
from tttstream.errors import CheckpointError, ConfigError, ShapeError
from tttstream.evaluation.mask_baselines import NAMES, propagate
from tttstream.models import load
from tttstream.models.map import MapConfig, MapModel
from tttstream.models.masks import MixtureConfig, MixtureModel
from tttstream.models.masks.networks import STRIDE, Features
from tttstream.train.data import Batch
from tttstream.train.export import read
from tttstream.train.masks import MaskPropagation, overlap

SMALL = MixtureConfig(width=16, heads=2, head_width=8, placed=1, contour=8, slots=40, size=32)


def batch(rows: int = 2, count: int = 4, first: bool = True, seed: int = 0) -> Batch:
    """Squares that move over noise; the second object is in the first row only."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 80, (rows, count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(rows, count, 32, 32, dtype=torch.int64)
    for t in range(count):
        mask[:, t, 4:14, 4 + t : 14 + t] = 1
        mask[0, t, 18:28, 18 - t : 28 - t] = 2
    colours = torch.tensor([[0, 0, 0], [250, 60, 60], [60, 250, 60]], dtype=torch.uint8)
    frames = torch.where(mask[:, :, None] > 0, colours[mask].permute(0, 1, 4, 2, 3), frames)
    number = torch.arange(count).expand(rows, -1)
    minus = torch.full_like(number, -1)
    clip = torch.arange(rows)[:, None].expand(-1, count)
    return Batch(frames, (number == 0) & first, number, number, clip, minus, number >= 0, mask)


def piece(whole: Batch, begin: int, end: int) -> Batch:
    return Batch(*(part[:, begin:end] for part in whole if part is not None))


def task(**options: Any) -> MaskPropagation:
    torch.manual_seed(0)
    return MaskPropagation(SMALL, **options)


def test_lanes_continue_where_they_stopped() -> None:
    whole = batch()
    one, two = task().eval(), task().eval()
    expected = one(whole, "val")
    found = [two(piece(whole, begin, begin + 2), "val") for begin in (0, 2)]
    logits = torch.cat([segment.output.logits for segment in found], 1)
    torch.testing.assert_close(logits, expected.output.logits, rtol=0, atol=1e-4)
    assert torch.equal(torch.cat([segment.counted for segment in found], 1), expected.counted)


def test_only_frames_in_which_an_object_had_to_be_found_count() -> None:
    segment = task().eval()(batch(), "val")
    assert segment.counted[:, 0].sum() == 0
    assert segment.counted[0, 1:].all()
    assert segment.counted[1, 1:].tolist() == [[True, False]] * 3
    assert len(overlap(segment)) == int(segment.counted.sum()) == 9
    idle = batch()._replace(valid=torch.zeros(2, 4, dtype=torch.bool))
    learner = task().eval()
    assert all(float(loss.detach()) == 0 for loss in learner.losses(learner(idle, "val")).values())


def test_overlap_by_hand() -> None:
    segment = task().eval()(batch(), "val")
    perfect = torch.cat([0.5 - segment.masks.sum(2, keepdim=True), segment.masks], 2)
    assert (overlap(segment._replace(output=segment.output._replace(logits=perfect))) == 1).all()
    shifted = perfect.roll(5, -1)
    values = overlap(segment._replace(output=segment.output._replace(logits=shifted)))
    assert values[0] == pytest.approx(50 / 150)


def test_void_pixels_count_in_no_loss_and_no_overlap() -> None:
    """Predictions at unknown pixels do not change the loss; others do."""
    whole = batch()
    assert whole.mask is not None
    void = torch.zeros_like(whole.mask, dtype=torch.bool)
    void[:, 1:, 8:24, 10:30] = True
    segment = task().eval()(whole._replace(mask=whole.mask.masked_fill(void, -1)), "val")
    learner = task()
    before, values = learner.losses(segment), overlap(segment)
    for where, same in ((void, True), (~void, False)):
        moved = segment.output.logits + torch.where(where[:, :, None], 20 * torch.randn(2, 4, 3, 32, 32), 0.0)
        other = segment._replace(output=segment.output._replace(logits=moved))
        after = learner.losses(other)
        for name in ("pixels", "dice"):
            assert torch.allclose(after[name], before[name], atol=1e-6) == same, name
        assert torch.allclose(overlap(other), values) == same
    coarse = F.max_pool2d((~void).float(), STRIDE) == 0  # cells of which nothing is known
    assert coarse.any()
    told = segment.output._replace(guess=segment.output.guess + 9 * coarse[:, :, None])
    assert torch.equal(learner.losses(segment._replace(output=told))["guess"], before["guess"])
    everything = segment._replace(known=torch.zeros_like(segment.known), masks=torch.zeros_like(segment.masks))
    assert all(torch.isfinite(loss) for loss in learner.losses(everything).values())


def test_rows_that_continue_keep_their_position() -> None:
    """Another number of rows is refused, unless all of them begin a sequence."""
    learner, whole = task().eval(), batch()
    learner(piece(whole, 0, 2), "val")
    rest = piece(whole, 2, 4)
    with pytest.raises(ShapeError, match=r"a batch of 1 rows after one of 2.*keep batch_size"):
        learner(Batch(*(part[:1] for part in rest if part is not None)), "val")
    first = Batch(*(part[:1] for part in whole if part is not None))
    expected = task().eval()(first, "val").output.logits
    assert torch.equal(learner(first, "val").output.logits, expected)


def test_the_numbers_of_objects_do_not_matter() -> None:
    """They are those of the files, with gaps; a sequence follows those that its first frame shows, in order."""
    whole = batch()
    assert whole.mask is not None
    table = torch.tensor([0, 300, 70_000])
    plain, other = task().eval(), task().eval()
    expected, renamed = plain(whole, "val"), other(whole._replace(mask=table[whole.mask]), "val")
    assert torch.equal(renamed.output.logits, expected.output.logits)
    assert torch.equal(renamed.masks, expected.masks)
    assert renamed.numbers[:, -1].tolist() == [[300, 70_000], [300, -2]]
    lanes = task().eval()
    parts = [lanes(piece(whole._replace(mask=table[whole.mask]), begin, begin + 2), "val") for begin in (0, 2)]
    assert torch.equal(torch.cat([part.masks for part in parts], 1), expected.masks)
    with torch.no_grad():
        rows = task().eval().predict_step(whole._replace(mask=table[whole.mask]), 0)
    assert [rows[0]["objects"], rows[4]["objects"]] == [[300, 70_000], [300, None]]
    crowd = torch.where(whole.mask == 0, 9, whole.mask)
    assert task().eval()(whole._replace(mask=crowd), "val").numbers[:, 0].tolist() == [[1, 2], [1, 9]]


def test_training_finds_the_objects() -> None:
    """After some steps on two easy sequences the masks of frames that were not given are mostly right."""
    learner = task(lr=5e-3)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
    segment = batch()
    before = overlap(learner.eval()(segment, "val")).mean()
    for _ in range(25):
        optimizer.zero_grad()
        learner.eval()  # no forced frames and no moved middles: there is no trainer to ask
        learner._states.clear()
        loss = torch.stack(list(learner.losses(learner(segment, "train")).values())).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
    learner._states.clear()
    after = overlap(learner(segment, "val")).mean()
    assert after > max(0.7, float(before.detach()))


def test_gradients_reach_the_encoder_through_the_mixture() -> None:
    """The loss of the second frame has gradients for the keys of the first, from which the components come."""
    learner = task(slots=24).train()
    learner.forced_frames = lambda reset: None  # type: ignore[method-assign]
    whole = batch(1, 2)
    seen: list[Tensor] = []

    def keep(module: object, inputs: object, features: Features) -> Features:
        keys = features.keys.detach().requires_grad_()
        seen.append(keys)
        return features._replace(keys=keys)

    handle = learner.model.encoder.register_forward_hook(keep)
    losses = learner.losses(learner(whole, "train"))
    handle.remove()
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(loss, seen, retain_graph=True)
        first, second = gradient.abs().amax((1, 2))
        assert first > 0, name
        assert second > 0, name
    assert learner._states["train"] is not None
    assert learner._states["train"].slots.shape[1] == 24
    assert not learner._states["train"].slots.requires_grad


def test_middles_are_moved_for_each_sequence_alike() -> None:
    learner = task()
    moved = learner.offset(torch.tensor([3, 4, 3]))
    assert moved is not None
    assert torch.equal(moved[0], moved[2])
    assert not torch.equal(moved[0], moved[1])
    assert moved.abs().max() <= 200
    assert learner.eval().offset(torch.tensor([3])) is None


@pytest.mark.parametrize("name", NAMES)
def test_baselines(name: str) -> None:
    model = task().model.eval()
    segment = batch(2, 3)
    masks = (segment.mask[:, :1, None] == torch.tensor([1, 2])[:, None, None])[:, 0].float()  # type: ignore[index]
    with torch.no_grad():
        logits = propagate(name, model, segment.frames, masks)
    assert logits.shape == (2, 3, 3, 32, 32)
    found = logits.argmax(2)
    if name == "copy":
        assert torch.equal(found, segment.mask[:, :1].expand(-1, 3, -1, -1))  # type: ignore[index]
    if name in ("matching", "frozen"):
        assert torch.equal(found[:, 0], segment.mask[:, 0])  # type: ignore[index]
    with pytest.raises(ConfigError, match="no baseline"):
        propagate("luck", model, segment.frames, masks)


def test_data_without_masks_and_invalid_options() -> None:
    with pytest.raises(ConfigError, match="no masks"):
        task()(batch()._replace(mask=None), "val")
    with pytest.raises(ConfigError, match="at least 1"):
        task(objects=0)
    with pytest.raises(ConfigError, match="slots of at least 1"):
        task(slots=0)
    with pytest.raises(ConfigError, match="lr cannot be negative"):
        task(lr=-1.0)


def test_what_predict_says_of_each_frame() -> None:
    whole, measured = batch(), task().eval()
    with torch.no_grad():
        rows = measured.predict_step(whole, 0)
    assert [(row["clip"], row["frame"]) for row in rows] == [(b, t) for b in range(2) for t in range(4)]
    assert rows[0]["J"] == [None, None]
    assert [value is None for value in rows[5]["J"]] == [False, True]
    measured._states.clear()
    with torch.no_grad():
        segment = measured(whole, "predict")
    found = segment.output.logits[0, 2].argmax(0)
    assert rows[2]["share"] == pytest.approx([float((found == number).float().mean()) for number in (1, 2)], abs=1e-6)
    assert whole.mask is not None
    truth = whole.mask[0, 2]
    either = (found == 1) | (truth == 1)
    assert rows[2]["J"][0] == pytest.approx(float(((found == 1) & (truth == 1)).sum() / either.sum()), abs=1e-4)


def test_a_process_without_sequences_logs_as_the_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, logged = task().eval(), []

    def log(name: str, value: Tensor, **options: Any) -> None:
        logged.append((name, options["batch_size"], float(value)))

    monkeypatch.setattr(measured, "log", log)
    whole = batch()
    with torch.no_grad():
        measured.validation_step(whole._replace(valid=torch.zeros_like(whole.valid)), 1)
    assert logged == [("val/loss", 0, 0.0), ("val/J", 0, 0.0)]


def test_pictures_of_validation_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = task().eval()
    monkeypatch.setattr(measured, "log", lambda *_, **__: None)
    with torch.no_grad():
        said = measured.validation_step(batch(2, 3), 0)
        assert measured.validation_step(batch(2, 3), 1) == {}
    assert said["pictures"].shape == (2, 3, 3, 32, 32)
    words = [f"frame {t}: {'found' if t else 'given'}" for t in range(3)]
    assert said["labels"] == [[f"clip {b}, {word}" for word in words] for b in range(2)]


CONFIG = """
model: {{size: 48}}
trainer: {{accelerator: cpu, devices: 1, max_steps: {steps}, limit_val_batches: 1, num_sanity_val_steps: 0,
  log_every_n_steps: 1, enable_progress_bar: false, enable_model_summary: false, default_root_dir: {out},
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {out}, name: run}}}}}}
task:
  class_path: tttstream.train.masks.MaskPropagation
  init_args: {{slots: 30, network: {{width: 16, heads: 2, head_width: 8, placed: 1, contour: 8, slots: 40, size: 32}}}}
data:
  class_path: tttstream.train.data.VideoData
  init_args:
    train: {{class_path: tttstream.train.data.objects.MovingObjects, init_args: {{count: 50, frames: 6}}}}
    val:
      class_path: tttstream.train.data.objects.MovingObjects
      init_args: {{count: 2, frames: 6, seed: 90}}
    test:
      class_path: tttstream.train.data.objects.MovingObjects
      init_args: {{count: 2, frames: 6, seed: 95}}
    window: {{frames: 6}}
    eval_window: {{frames: 6, start: first}}
    length: {length}
    batch_size: 2
    steps: 2
    workers: 0
"""


def fit(folder: Path, steps: int, *words: str, command: str = "fit", length: int = 3) -> None:
    from tttstream.train.cli import main

    config = folder / f"{command}.yaml"
    config.write_text(CONFIG.format(steps=steps, out=folder, length=length))
    assert main([command, "--config", str(config), *words]) == 0


def losses(folder: Path, version: int) -> list[str]:
    with (folder / "run" / f"version_{version}" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [row["train/loss"] for row in rows if row["train/loss"]]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_fit_resume_export_and_test(tmp_path: Path) -> None:
    """A resumed run has the losses of an uninterrupted one, and its export is a model that loads with `models.load`."""
    fit(tmp_path, 4)
    checkpoints = sorted((tmp_path / "run" / "version_0" / "checkpoints").glob("*.ckpt"))
    assert len(losses(tmp_path, 0)) == 4
    exported = load(tmp_path / "run" / "version_0" / "model")
    again = read(checkpoints[-1])
    assert again.fingerprint() == exported.fingerprint()
    assert isinstance(again, MixtureModel)
    sequence = batch(1)
    shown = (sequence.mask[:, :, None] == torch.tensor([1, 2])[:, None, None]).float()  # type: ignore[index]
    given = sequence.reset[:, :, None].expand(-1, -1, 2)
    with torch.no_grad():
        one, other = (model(sequence.frames, masks=shown, given=given)[0].logits for model in (again, exported))
    assert torch.equal(one, other)
    fit(tmp_path, 2, "--task.forced=0.8", "--trainer.max_steps=4", "--trainer.max_epochs=1")
    half = sorted((tmp_path / "run" / "version_1" / "checkpoints").glob("*.ckpt"))[-1]
    fit(tmp_path, 4, f"--ckpt_path={half}")
    assert losses(tmp_path, 2) == losses(tmp_path, 0)[2:]
    fit(tmp_path, 4, f"--ckpt_path={checkpoints[-1]}", command="test", length=6)
    fit(tmp_path, 4, f"--ckpt_path={checkpoints[-1]}", command="predict", length=6)
    with pytest.raises(CheckpointError, match="another model: heads"):
        fit(tmp_path, 4, f"--ckpt_path={half}", "--task.network.heads=3")
    with pytest.raises(CheckpointError, match="lanes are of a task with other options"):
        fit(tmp_path, 4, f"--ckpt_path={half}", "--task.slots=29")
    saved = torch.load(half)
    saved["tttstream"]["lanes"] = saved["tttstream"]["lanes"].expand(2, -1, -1)
    torch.save(saved, tmp_path / "two.ckpt")
    with pytest.raises(CheckpointError, match="the lanes of 2 processes, this run has 1"):
        fit(tmp_path, 4, f"--ckpt_path={tmp_path / 'two.ckpt'}")
    fit(tmp_path, 3, f"--ckpt_path={half}", "--task.network.first=3")
    assert len(losses(tmp_path, 8)) == 1


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    frames, places = models.build("small", size=16), MapModel(MapConfig(size=32, patch=16, marks=4, codes=4))
    for model, saved in (
        (task().model, {"task": "MaskPropagation", "network": asdict(SMALL), "lanes": None, "numbers": None}),
        (frames, {"task": "Prediction", "model": asdict(frames.config), "lanes": None}),
        (places, {"task": "Map", "model": asdict(places.config), "lanes": None}),
    ):
        weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
        torch.save({"state_dict": weights, "tttstream": saved}, tmp_path / "old.ckpt")
        assert read(tmp_path / "old.ckpt").fingerprint() == model.fingerprint()
