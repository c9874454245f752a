"""Training on streams: lanes that continue, exact resume, features of Lightning, and the measures of prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from tttstream.errors import CheckpointError, ConfigError, ShapeError
from tttstream.models.frame import ModelConfig
from tttstream.state import pack
from tttstream.train.metrics import Table, octave, qualities
from tttstream.train.prediction import Prediction, log_relative_error
from tttstream.train.task import StreamTask

Make = Callable[..., Any]


class Losses(Callback):
    """Notes the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seen.append(float(outputs["loss"]))


def task(config: ModelConfig, seed: int = 0, **options: Any) -> Prediction:
    torch.manual_seed(seed)
    made = Prediction(config, **{"warmup": 2, "lr": 1e-2, **options})
    torch.nn.init.normal_(made.model.next_frame.change.weight, std=0.02)
    return made


def fit(made: StreamTask, trainer: Trainer, data: Any, **options: Any) -> list[float]:
    notes = Losses()
    trainer.callbacks.append(notes)
    trainer.fit(made, datamodule=data, **options)
    return notes.seen


class TestLanes:
    def test_the_memory_continues_from_step_to_step(self, tiny: Make, moving: Make) -> None:
        made = task(tiny())
        data = moving().train_dataloader().data
        with torch.no_grad():
            parts = [made(data[i], "train").output.prediction for i in range(3)]
            whole, _ = made.model(torch.cat([data[i].frames for i in range(3)], 1))
        torch.testing.assert_close(torch.cat(parts, 1), whole.prediction)

    def test_a_reset_begins_another_video(self, tiny: Make, moving: Make) -> None:
        made = task(tiny())
        data = moving().train_dataloader().data
        with torch.no_grad():
            for step in range(6):
                after = made(data[step], "train").output.prediction
            alone, _ = made.model(data[5].frames)
        torch.testing.assert_close(after, alone.prediction)

    def test_the_graph_is_cut_between_steps(self, tiny: Make, moving: Make) -> None:
        made = task(tiny())
        data = moving().train_dataloader().data
        made(data[0], "train").output.prediction.sum().backward()
        made(data[1], "train").output.prediction.sum().backward()  # would fail: the first graph is freed

    def test_rows_must_keep_their_place(self, tiny: Make, moving: Make) -> None:
        made = task(tiny())
        made(moving(rows=2).train_dataloader().data[0], "train")
        made(moving(rows=3).train_dataloader().data[0], "train")
        with pytest.raises(ShapeError, match="rows that continue must keep their position"):
            made(moving(rows=2).train_dataloader().data[1], "train")

    def test_validation_leaves_the_training_lanes_alone(self, tiny: Make, moving: Make, trainer: Make) -> None:
        plain = fit(task(tiny()), trainer(), moving())
        validated = fit(task(tiny()), trainer(limit_val_batches=2, val_check_interval=3), moving())
        assert validated == plain

    @pytest.mark.parametrize("memory", ["ttt_linear", "ttt_mlp", "ttt_conv", "gru", "window"])
    def test_the_loss_falls(self, tiny: Make, moving: Make, trainer: Make, memory: str) -> None:
        seen = fit(task(tiny(memory=memory)), trainer(max_steps=25), moving(25))
        assert sum(seen[-3:]) < sum(seen[:3]) - 0.1

    def test_a_memory_that_grows_is_refused(self, tiny: Make) -> None:
        with pytest.raises(ConfigError, match="grows with the stream: use window"):
            task(tiny(memory="attention"))

    def test_frozen_does_not_learn(self, tiny: Make, moving: Make, trainer: Make) -> None:
        made = task(tiny(), learn=False)
        fit(made, trainer(max_steps=3), moving())
        state = made._states["train"]
        assert state is not None
        assert not pack(state).any()


class TestResume:
    @pytest.mark.parametrize("stop", [4, 7])
    def test_the_losses_are_those_of_an_uninterrupted_run(
        self, tiny: Make, moving: Make, trainer: Make, tmp_path: Path, stop: int
    ) -> None:
        whole = fit(task(tiny()), trainer(accumulate_grad_batches=1), moving())
        first_trainer = trainer(max_steps=12)
        first_trainer.callbacks.append(StopAfter(stop))
        first = fit(task(tiny()), first_trainer, moving())
        assert first == whole[:stop]
        first_trainer.save_checkpoint(tmp_path / "stopped.ckpt")
        rest = fit(task(tiny(), seed=1), trainer(), moving(), ckpt_path=tmp_path / "stopped.ckpt")
        assert rest == whole[stop:]

    def test_a_resumed_run_has_its_own_learning_rate(
        self, tiny: Make, moving: Make, trainer: Make, tmp_path: Path
    ) -> None:
        """Lightning restores that of the checkpoint. The same step of a run with the new one from the start has it."""
        new: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.2}
        rates = []
        for options in ({}, new):
            run = trainer(max_steps=12)
            run.callbacks.append(StopAfter(4))
            fit(task(tiny(), **options), run, moving())
            run.save_checkpoint(tmp_path / f"{len(rates)}.ckpt")
            rates.append([(group["lr"], group["weight_decay"]) for group in run.optimizers[0].param_groups])
        resumed = trainer(max_steps=12)
        resumed.callbacks.append(StopAfter(4))
        made = task(tiny(), **new)
        started: list[Any] = []
        made.on_train_batch_start = lambda *_: started.append(
            [(group["lr"], group["weight_decay"]) for group in resumed.optimizers[0].param_groups]
        )
        fit(made, resumed, moving(), ckpt_path=tmp_path / "0.ckpt")
        assert started[0] == rates[1] != rates[0]
        assert resumed.lr_scheduler_configs[0].scheduler.base_lrs == [3e-4, 3e-4]

    def test_another_task_or_model_is_refused(self, tiny: Make, moving: Make, trainer: Make, tmp_path: Path) -> None:
        run = trainer(max_steps=1)
        fit(task(tiny()), run, moving())
        path = tmp_path / "a.ckpt"
        run.save_checkpoint(path)
        with pytest.raises(CheckpointError, match=r"of another model: dim 16, here 32"):
            trainer().fit(task(tiny(dim=32)), datamodule=moving(), ckpt_path=path)
        with pytest.raises(CheckpointError, match="of the task Prediction, this is Other"):
            trainer().fit(Other(tiny()), datamodule=moving(), ckpt_path=path)
        checkpoint = torch.load(path)
        del checkpoint["tttstream"]
        torch.save(checkpoint, path)
        with pytest.raises(CheckpointError, match="not written by `tttstream fit`"):
            trainer().fit(task(tiny()), datamodule=moving(), ckpt_path=path)


class Other(Prediction):
    """A task of another name."""


class StopAfter(Callback):
    """Ends a run after some steps, as a person would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


class TestLightning:
    def test_clipping_and_accumulation(self, tiny: Make, moving: Make, trainer: Make) -> None:
        made = task(tiny())
        fit(made, trainer(max_steps=3, accumulate_grad_batches=2, gradient_clip_val=0.1), moving())
        assert made.trainer.global_step == 3

    def test_mixed_precision(self, tiny: Make, moving: Make, trainer: Make) -> None:
        made = task(tiny())
        seen = fit(made, trainer(max_steps=25, precision="bf16-mixed"), moving(25))
        assert sum(seen[-3:]) < sum(seen[:3]) - 0.1
        state = made._states["train"]
        assert state is not None
        assert all(leaf.dtype == torch.float32 for leaf in state.tensors())

    def test_averaged_weights(self, tiny: Make, moving: Make, trainer: Make) -> None:
        plain, averaged = task(tiny()), task(tiny())
        fit(plain, trainer(), moving())
        fit(averaged, trainer(callbacks=[EMAWeightAveraging(decay=0.5)]), moving())
        pairs = list(zip(plain.parameters(), averaged.parameters(), strict=True))
        assert any(not torch.equal(a, b) for a, b in pairs)
        torch.testing.assert_close(
            *(torch.cat([p.detach().flatten() for p in z]) for z in zip(*pairs, strict=True)), atol=0.1, rtol=0
        )

    @pytest.mark.parametrize("pieces", [1, 3])
    def test_recomputed_activations_give_the_same_gradients(self, tiny: Make, moving: Make, pieces: int) -> None:
        gradients = []
        for recompute in (0, pieces):
            made = task(tiny(), recompute=recompute).double()
            data = moving().train_dataloader().data
            for step in range(2):
                segment = made(data[step], "train")
            made.losses(data[1], segment)["loss"].backward()
            gradients.append([p.grad for p in made.parameters() if p.requires_grad])
        assert all(gradient is not None for gradient in gradients[0])
        torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-12)

    def test_checkpoints_of_the_best(self, tiny: Make, moving: Make, trainer: Make, tmp_path: Path) -> None:
        keep = ModelCheckpoint(tmp_path / "best", monitor="val/loss")
        run = trainer(callbacks=[keep], limit_val_batches=1.0, val_check_interval=5, enable_checkpointing=True)
        fit(task(tiny()), run, moving())
        assert Path(keep.best_model_path).is_file()


class TestBeginnings:
    def test_the_blocks_of_the_surprise_stay_untrained(self, tiny: Make, moving: Make, trainer: Make) -> None:
        made = task(tiny(depth=2, motion=2, surprise=1), steady=True)
        before = {name: weight.clone() for name, weight in made.model.state_dict().items()}
        fit(made, trainer(max_steps=4), moving())
        moved = {name for name, weight in made.model.state_dict().items() if not torch.equal(weight, before[name])}
        assert not any(name.startswith(("tokens.", "backbone.blocks.0.")) for name in moved)
        assert {"motion.prefer.weight", "motion.describe.weight", "backbone.blocks.1.memory.project.weight"} <= moved

    def test_steady_needs_blocks_of_the_surprise(self, tiny: Make) -> None:
        with pytest.raises(ConfigError, match=r"model\.surprise"):
            task(tiny(), steady=True)

    def test_it_begins_with_given_weights(self, tiny: Make, tmp_path: Path) -> None:
        kept = task(tiny(motion=2), seed=3).model
        kept.save(tmp_path)
        again = Prediction(tiny(motion=2), weights=str(tmp_path)).model
        assert again.fingerprint() == kept.fingerprint()
        with pytest.raises(ConfigError, match="has the shape"):
            task(tiny(motion=3), weights=str(tmp_path))
        with pytest.raises(CheckpointError, match="no model 'nowhere'"):
            task(tiny(), weights="nowhere")


class TestMeasures:
    def test_relative_error_of_repeating_is_one(self) -> None:
        last, target = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 3, 8, 8)
        assert (log_relative_error(last, last, target) == 0).all()
        assert (log_relative_error(target, last, target) < -9).all()
        double = log_relative_error(last + (last - target), last, target)
        torch.testing.assert_close(double, torch.full_like(double, 4.0).log(), atol=1e-3, rtol=0)
        still = log_relative_error(target + 0.001, target, target)
        assert ((still > 0) & (still < 0.1)).all()

    def test_frames_that_are_not_valid_do_not_count(
        self, tiny: Make, moving: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        measured, logged = task(tiny()), {}

        def log_dict(values: dict[str, Tensor], batch_size: int, sync_dist: bool) -> None:
            logged.update({name: (float(value), batch_size) for name, value in values.items()})

        monkeypatch.setattr(measured, "log_dict", log_dict)
        batch = moving().train_dataloader().data[1]
        empty = torch.zeros_like(batch.frames[:1])
        half = batch._replace(
            frames=torch.cat([batch.frames[:1], empty]), valid=torch.tensor([[True] * 4, [False] * 4])
        )
        measured.validation_step(half, 1)
        half_logged = dict(logged)
        measured._states.clear()
        measured.validation_step(batch.map(lambda item: item[:1]), 1)
        assert half_logged.keys() == logged.keys()
        for name, (value, count) in logged.items():
            assert half_logged[name] == (pytest.approx(value, rel=1e-5), count), name

    def test_pictures_have_labels(self, tiny: Make, moving: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        batch = moving().train_dataloader().data[1]
        batch = batch._replace(clip=torch.full_like(batch.clip, 3))
        batch.valid[1, -1] = False
        for horizon, expected in (
            (1, [["clip 3, frame 6", "clip 3, frame 7: target", "predicted", "difference, 4 times"],
                 ["clip 3, frame 6", "no frame: target", "predicted", "difference, 4 times"]]),
            (2, [[f"clip 3, frame {t}: {what}" for t in (6, 7)] for what in ("target", "predicted")]
                + [[f"clip 3, frame 6: {what}", f"no frame: {what}"] for what in ("target", "predicted")]),
        ):  # fmt: skip
            measured = task(tiny(), horizon=horizon)
            monkeypatch.setattr(measured, "log_dict", lambda *_, **__: None)
            with torch.no_grad():
                said = measured.validation_step(batch, 0)
            assert said is not None
            assert said["labels"] == expected
            assert list(said["pictures"].shape[:2]) == [len(expected), len(expected[0])]

    def test_segments_of_one_frame_are_refused(self, tiny: Make, moving: Make) -> None:
        batch = moving(frames=1).train_dataloader().data[0]
        with pytest.raises(ShapeError, match=r"set data.length to 2"):
            task(tiny()).losses(batch, task(tiny())(batch, "train"))

    def test_octaves(self) -> None:
        assert octave(torch.tensor([0, 1, 2, 3, 4, 7, 8, 1_000_000])).tolist() == [0, 1, 2, 2, 3, 3, 4, 20]

    def test_qualities_of_a_known_error(self) -> None:
        target = torch.rand(2, 3, 16, 16) * 0.5
        mse, psnr, ssim = qualities(target + 0.1, target)[0].tolist()
        assert mse == pytest.approx(0.01, rel=1e-4)
        assert psnr == pytest.approx(20.0, rel=1e-4)
        assert 0 < ssim < 1
        assert qualities(target, target)[0].tolist() == pytest.approx([0, 100, 1])

    def test_ssim_by_its_definition(self) -> None:
        target = torch.rand(2, 3, 24, 20, dtype=torch.float64)
        noisy = (target + 0.1 * torch.randn_like(target)).clamp(0, 1)
        bell = torch.exp(-((torch.arange(11) - 5) ** 2) / (2 * 1.5**2)).double()
        window = (bell[:, None] * bell / bell.sum() ** 2)[None, None]

        def mean(values: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.conv2d(values.flatten(0, 1)[:, None], window).view(2, 3, 14, 10)

        x, y = mean(noisy), mean(target)
        xx, yy, xy = mean(noisy**2) - x**2, mean(target**2) - y**2, mean(noisy * target) - x * y
        c1, c2 = 0.01**2, 0.03**2
        ssim = (2 * x * y + c1) * (2 * xy + c2) / ((x**2 + y**2 + c1) * (xx + yy + c2))
        assert qualities(noisy, target)[:, 2].tolist() == pytest.approx(ssim.mean((1, 2, 3)).tolist(), abs=1e-5)
        assert qualities(noisy[..., :8], target[..., :8])[:, 2].isfinite().all()

    def test_a_table_means_row_by_row(self) -> None:
        table = Table(3, ["a", "b"])
        table.update(torch.tensor([0, 2, 7]), torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        assert table.means() == {0: {"a": 1, "b": 2}, 2: {"a": 4, "b": 5}}
        assert table.overall() == {"a": 3, "b": 4}

    def test_horizons_and_positions_are_logged(self, tiny: Make, moving: Make, trainer: Make) -> None:
        made = task(tiny(), horizon=2)
        run = trainer(max_steps=2, limit_val_batches=1.0, val_check_interval=2)
        fit(made, run, moving())
        found = run.callback_metrics
        for name in ("mse", "psnr", "ssim", "copy_mse", "mse/ahead_1", "mse/ahead_2", "mse/from_1", "mse/from_8"):
            assert torch.isfinite(found[f"val/{name}"]), name
        assert "val/mse/ahead_3" not in found
        assert {"train/next", "train/ahead", "train/inner_before", "train/inner_after"} <= set(found)

    def test_a_reset_after_a_number_of_frames(self, tiny: Make, moving: Make) -> None:
        data = moving().train_dataloader().data
        made, plain = task(tiny(), reset_every=2), task(tiny())
        with torch.no_grad():
            first, second = (made(data[step], "val").output.prediction for step in (0, 1))
            whole = plain(data[0], "val").output.prediction
            alone, _ = made.model(data[1].frames[:, 2:])
            trained = made(data[0], "train").output.prediction
        torch.testing.assert_close(second[:, 2:], alone.prediction)
        torch.testing.assert_close(first[:, :2], whole[:, :2])
        assert not torch.allclose(first[:, 2:], whole[:, 2:])
        torch.testing.assert_close(trained, whole)

    def test_a_horizon_as_long_as_the_segment_is_refused(self, tiny: Make, moving: Make) -> None:
        with pytest.raises(
            ShapeError, match=r"horizon 4 needs segments of more frames than that, got 4: set data.length to 5"
        ):
            task(tiny(), horizon=4)(moving().train_dataloader().data[0], "train")

    def test_rolling_out_neither_learns_nor_forgets(self, tiny: Make, moving: Make) -> None:
        data = moving().train_dataloader().data
        plain, ahead = task(tiny()), task(tiny(), horizon=2)
        with torch.no_grad():
            for step in range(2):
                expected = plain(data[step], "train").output.prediction
                got = ahead(data[step], "train")
        torch.testing.assert_close(got.output.prediction, expected)
        torch.testing.assert_close(got.ahead[:, 0], expected[:, 1])
