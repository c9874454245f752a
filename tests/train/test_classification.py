"""Classification of frames and clips, and torchvision's backbones under the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from lightning.pytorch import Callback

from tttstream import encoders
from tttstream.encoders import VisionTokens
from tttstream.errors import CheckpointError, ConfigError
from tttstream.train.classification import Classification, Encoder
from tttstream.train.data import Batch, VideoClip

Make = Callable[..., Any]


def labelled(batch: Batch) -> Batch:
    """Each row's clip is its class; frames are of its colour."""
    row = torch.arange(len(batch.frames))[:, None].expand(batch.reset.shape)
    frames = (60 + 120 * row[:, :, None, None, None]).expand(batch.frames.shape).to(torch.uint8)
    return batch._replace(frames=frames.contiguous(), label=row, clip=row)


class Losses(Callback):
    """Records the loss of every step, and stops after a number of steps."""

    def __init__(self, stop: int | None) -> None:
        self.losses: list[float] = []
        self.stop = stop

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        trainer.should_stop = len(self.losses) == self.stop


class TestTask:
    def test_it_learns_and_the_clip_is_judged_by_all_its_frames(self, tiny: Make, moving: Make) -> None:
        torch.manual_seed(0)
        task = Classification(tiny(), 2)
        batch = labelled(moving().train_dataloader().data[0])
        optimizer = torch.optim.Adam([p for p in task.parameters() if p.requires_grad], 1e-2)
        for _ in range(30):
            task._states.clear()
            loss = task.loss(batch, task(batch, "train").logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss.item() < 0.2
        task._states.clear()
        with torch.no_grad():
            rows = task.predict_step(batch, 0)
        assert [row["clip_class"] for row in rows] == [row["clip"] for row in rows]

    def test_the_clip_so_far_is_carried_and_reset(self, tiny: Make, moving: Make) -> None:
        task, data = Classification(tiny(), 3), moving().train_dataloader().data
        logits = torch.randn(2, 4, 3)
        first = task.so_far(data[0], logits, "val")
        torch.testing.assert_close(first, logits.log_softmax(-1).cumsum(1))
        second = task.so_far(data[1], logits, "val")
        torch.testing.assert_close(second[:, 0], first[:, -1] + first[:, 0])
        torch.testing.assert_close(task.so_far(data[5], logits, "val"), first)

    def test_with_lightning(self, tiny: Make, moving: Make, trainer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = moving()
        original = type(seen.train_dataloader().data).__getitem__
        monkeypatch.setattr(type(seen.loader.data), "__getitem__", lambda s, i: labelled(original(s, i)))
        run = trainer(max_steps=3, limit_val_batches=1.0, val_check_interval=3)
        run.fit(Classification(tiny(), 2), datamodule=seen)
        assert {"val/loss", "val/frame_accuracy", "val/clip_accuracy"} <= set(run.callback_metrics)

    def test_labels_beyond_the_classes(self, tiny: Make, moving: Make) -> None:
        batch = labelled(moving(rows=4).train_dataloader().data[0])
        with pytest.raises(ConfigError, match=r"the data has a label 3, the task 2 classes: set task.classes to 4"):
            Classification(tiny(), 2).loss(batch, torch.zeros(4, 4, 2))

    def test_data_that_does_not_fit_is_refused_at_the_start(self, tiny: Make, moving: Make, trainer: Make) -> None:
        for label, says in ((-1, "no video of train has a label"), (2, "the data has a label 2")):
            data = moving()
            data.clips = lambda part, label=label: [VideoClip("a.mp4", label)]
            with pytest.raises(ConfigError, match=says):
                trainer().fit(Classification(tiny(), 2), datamodule=data)

    def test_classes_without_a_training_video_are_reported_in_a_line(
        self, tiny: Make, moving: Make, trainer: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        def said(classes: int, names: list[str] | None = None, **parts: list[int]) -> list[str]:
            caplog.clear()
            data = moving()
            data.clips = lambda part: [VideoClip("a.mp4", label) for label in parts[part]]
            data.classes, data.validated = names or [], "val" in parts
            task, run = Classification(tiny(), classes), trainer()
            run._data_connector.attach_data(task, datamodule=data)
            task.trainer = run
            task.setup("fit")
            return [line for line in caplog.messages if line.startswith("classification")]

        assert said(3, train=[0, 1, 2, 2], val=[1]) == []
        assert said(6, train=[0, 5, 2, 2]) == ["classification: 3 of the 6 classes have no video in train: 1, 3, 4"]
        (line,) = said(5, train=[0, 1, 2])
        assert line.endswith("2 of the 5 classes have no video in train: 3, 4: set task.classes to 3?")
        (line,) = said(3, train=[1, 2, 2])
        assert line.endswith("1 of the 3 classes have no video in train: 0: do its numbers begin at 1?")
        one, two = said(3, ["run", "sit", "walk"], train=[0, 1, 0], val=[2, 2, 1, 0])
        assert one.endswith("1 of the 3 classes have no video in train: 2 (walk)")
        assert two == "classification: 2 of 4 videos of val have classes without a video in train: 2 (walk)"
        (line,) = said(2, train=[0, 1, -1], val=[0])
        assert line == "classification: 1 of 3 videos of train have no label and do not count"
        for names, parts, says in (
            (["run"], {"train": [0, 0]}, r"has 1 class \(run\), the task 3: a classifier needs two: add another"),
            (
                ["run", "sit"],
                {"train": [0, 1]},
                r"has 2 classes \(run, sit\), the task 3: set task.classes to 2",
            ),
            ([], {"train": [0, 1, 2], "val": [-1]}, "no video of val has a label"),
            ([], {"train": [0, 1, 2], "val": [3]}, "the data has a label 3, the task 3 classes"),
        ):
            with pytest.raises(ConfigError, match=says):
                said(3, names, **parts)

    def test_random_draws_are_the_same_after_a_resume(
        self, tiny: Make, moving: Make, trainer: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        data = type(moving().train_dataloader().data)
        original = data.__getitem__
        monkeypatch.setattr(data, "__getitem__", lambda s, i: labelled(original(s, i)))

        def fit(stop: int | None = None, resume: Path | None = None) -> tuple[Any, list[float]]:
            torch.manual_seed(0)
            task, seen = Classification(tiny(), 2, warmup=0), Losses(stop)
            task.model.norm = torch.nn.Sequential(task.model.norm, torch.nn.Dropout(0.5))
            run = trainer(max_steps=5, callbacks=[seen], max_epochs=-1)
            torch.rand(stop or 0)  # a run and its resume do not come to training with the same random state
            run.fit(task, datamodule=moving(), ckpt_path=resume)
            return run, seen.losses

        run, _ = fit(2)
        run.save_checkpoint(tmp_path / "two.ckpt")
        assert fit(resume=tmp_path / "two.ckpt")[1] == fit()[1][2:]

    def test_a_process_without_clips_logs_as_the_others_do(
        self, tiny: Make, moving: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task, names = Classification(tiny(), 2), []
        monkeypatch.setattr(task, "log", lambda name, value, **options: names.append((name, options["batch_size"])))
        monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
        batch = labelled(moving().train_dataloader().data[0])
        task.on_validation_epoch_start()
        task.validation_step(batch._replace(valid=torch.zeros_like(batch.valid)), 0)
        task.on_validation_epoch_end()
        assert names == [("val/frame_accuracy", 0), ("val/clip_accuracy", 0)]

    def test_frames_without_a_label_do_not_count(self, tiny: Make, moving: Make) -> None:
        batch = moving().train_dataloader().data[0]
        assert float(Classification(tiny(), 2).loss(batch, torch.randn(2, 4, 2))) == 0.0

    def test_sizes_that_do_not_fit(self, tiny: Make) -> None:
        with pytest.raises(ConfigError, match="at least two classes"):
            Classification(tiny(), 1)
        with pytest.raises(ConfigError, match="registers"):
            Classification(tiny(registers=2), 2, encoder=Encoder("resnet18"))


class TestEncoders:
    @pytest.mark.parametrize(
        ("name", "side"),
        [("resnet18", 2), ("convnext_tiny", 2), ("vit_b_16", 4), ("swin_t", 2), ("efficientnet_lite0", 2)],
    )
    def test_backbones_give_tokens(self, name: str, side: int) -> None:
        encoder = VisionTokens(name, 64, 24)
        assert encoder.side == side
        tokens = encoder(torch.rand(1, 2, 3, 64, 64))
        assert tokens.shape == (1, 2, side * side, 24)
        assert torch.isfinite(tokens).all()

    def test_frozen_and_finetuned(self, tiny: Make) -> None:
        for frozen in (True, False):
            task = Classification(tiny(size=64), 2, encoder=Encoder("resnet18", frozen=frozen))
            task.train()
            tokens = task.model.tokens
            assert tokens.encoder.training is not frozen
            said, _ = task.model(torch.rand(1, 2, 3, 64, 64))
            said.logits.sum().backward()
            assert all((p.grad is None) is frozen for p in tokens.encoder.parameters())
            assert tokens.project.weight.grad is not None

    def test_the_installed_weights_compute_the_input_of_the_classifier(self) -> None:
        frames = torch.rand(1, 2, 3, 64, 64)
        whole = encoders.load(head=True)
        tokens = VisionTokens("efficientnet_lite0", 64, 24, weights="default")
        expected = tokens.project(tokens.norm(whole.last(frames[0]).flatten(2).mT))
        assert torch.equal(tokens(frames)[0], expected)
        assert not tokens.train().encoder.training
        assert {p.requires_grad for p in tokens.encoder.parameters()} == {False}
        free = VisionTokens("efficientnet_lite0", 64, 24, frozen=False)
        free(frames).sum().backward()
        assert all(p.grad is not None for p in free.encoder.parameters())
        with pytest.raises(ConfigError, match="expected default or none"):
            VisionTokens("efficientnet_lite0", 64, 24, weights="weights.pth")

    def test_weights_from_a_file(self, tmp_path: Path) -> None:
        from torchvision.models import resnet18

        torch.manual_seed(1)
        model = resnet18()
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        encoder = VisionTokens("resnet18", 32, 8, weights=str(tmp_path / "weights.pth"))
        assert torch.equal(encoder.encoder[0].weight, model.conv1.weight)
        (tmp_path / "torn.pth").write_bytes(b"nothing")
        for name, says in (("away.pth", "there is no file"), ("torn.pth", "cannot be read")):
            with pytest.raises(CheckpointError, match=says):
                VisionTokens("resnet18", 32, 8, weights=str(tmp_path / name))
        with pytest.raises(CheckpointError, match=r"do not fit resnet34: .* Missing key"):
            VisionTokens("resnet34", 32, 8, weights=str(tmp_path / "weights.pth"))
        torch.save([1], tmp_path / "list.pth")
        with pytest.raises(CheckpointError, match="do not fit resnet18"):
            VisionTokens("resnet18", 32, 8, weights=str(tmp_path / "list.pth"))

    def test_without_a_network_the_error_names_the_file_and_its_folder(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def offline(*_: Any, **__: Any) -> None:
            raise URLError("no network")

        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
        with pytest.raises(CheckpointError, match=r"fetch http\S+resnet18\S+ .* put it at .*checkpoints.resnet18"):
            VisionTokens("resnet18", 32, 8, weights="default")

    @pytest.mark.parametrize(
        ("name", "says"), [("resnet19", "there is no encoder"), ("shufflenet_v2_x0_5", "known here")]
    )
    def test_names_that_do_not_fit(self, name: str, says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            VisionTokens(name, 64, 8)
