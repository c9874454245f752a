"""VideoData under Lightning: exact resume, epochs that continue, processes with lanes of their own, splits,
mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

import tttstream.train.data
from tests.train.forked import ranks
from tttstream.cli.main import main
from tttstream.errors import DataError
from tttstream.train.data import Batch, Decord, Index, MovingDigits, VideoData, Videos, Walks, Window
from tttstream.train.data.split import cut


class Probe(LightningModule):
    """Learns the mean grey, records its inputs and losses, and saves itself after some steps."""

    def __init__(self, save_in: Path | None = None) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[Any, ...]] = []
        self.save_in = save_in

    def training_step(self, batch: Batch) -> Tensor:
        loss = (batch.frames.float().mean((0, 2, 3, 4)) / 255 - self.mean).square().mean()
        self.seen.append((batch.clip.tolist(), batch.frame.tolist(), loss.item()))
        return loss

    def validation_step(self, batch: Batch) -> None:
        assert batch.frames.shape[2:] == (3, 16, 16)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.save_in is not None and len(self.seen) in (3, 5, 9):
            self.trainer.save_checkpoint(self.save_in / f"{len(self.seen)}.ckpt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


Fit = Callable[..., tuple[Trainer, Probe]]


@pytest.fixture
def fit(folder: Path, tmp_path: Path) -> Fit:
    """fit(epochs, resume=None, **options of VideoData): a trainer, and the probe that it trained."""

    def run(epochs: int, resume: Path | None = None, **options: Any) -> tuple[Trainer, Probe]:
        settings = {"val": Videos(str(folder)), "size": 16, "length": 4, "batch_size": 2, "workers": 1} | options
        data = VideoData(Videos(str(folder)), **settings)
        probe = Probe(tmp_path if resume is None else None)
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=1, num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(probe, datamodule=data, ckpt_path=resume)
        return trainer, probe

    return run


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_resumed_run_equals_an_uninterrupted_one(fit: Fit, tmp_path: Path) -> None:
    trainer, probe = fit(2, steps=5)
    whole = probe.seen
    trainer.save_checkpoint(tmp_path / "10.ckpt")
    assert len(whole) == 10
    assert whole[5:] != whole[:5]  # an epoch continues where the last one stopped
    for step in (3, 5, 9):
        assert fit(2, tmp_path / f"{step}.ckpt", steps=5, workers=0)[1].seen == whole[step:]
    three = fit(3, tmp_path / "5.ckpt", steps=5, workers=0)[1].seen
    assert fit(3, tmp_path / "10.ckpt", steps=5, workers=0)[1].seen == three[5:]


def test_an_epoch_lasts_as_long_as_the_videos(fit: Fit) -> None:
    trainer, probe = fit(3)
    assert trainer.num_training_batches == (7 + 9 + 11 + 13 + 15) // (2 * 4)
    assert len(probe.seen) == 3 * trainer.num_training_batches


def rank_of(index: Index, rank: int, world: int, part: str = "train", **options: Any) -> list[Batch]:
    data = VideoData(index, index, index, size=32, length=4, workers=0, **options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, strategy=None)  # type: ignore[assignment]
    loader = data.loader(part)
    return [batch for _, batch in zip(range(4), loader, strict=False)]


def test_processes_share_the_lanes(folder: Path) -> None:
    index = Videos(str(folder))
    alone = rank_of(index, 0, 1, batch_size=4)
    ranks = [rank_of(index, rank, 2, batch_size=2) for rank in range(2)]
    for whole, *halves in zip(alone, *ranks, strict=False):
        assert torch.equal(torch.cat([half.clip for half in halves]), whole.clip)
        assert torch.equal(torch.cat([half.frames for half in halves]), whole.frames)
    validated = [rank_of(index, rank, 3, "val", batch_size=8) for rank in range(3)]
    assert {len(batches) for batches in validated} == {4}  # all processes take the same number of steps
    shown = [
        pair
        for batches in validated
        for batch in batches
        for pair in zip(batch.clip[batch.valid].tolist(), batch.frame[batch.valid].tolist(), strict=True)
    ]
    assert len(shown) == len(set(shown))


def test_two_processes_read_their_own_lanes(folder: Path, tmp_path: Path) -> None:
    def train() -> list[list[list[int]]]:
        probe, data = Probe(), VideoData(Videos(str(folder)), size=32, length=4, batch_size=2, workers=1, steps=3)
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=3, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(probe, datamodule=data)
        return [clips for clips, _, _ in probe.seen]

    expected = rank_of(Videos(str(folder)), 0, 1, batch_size=4)
    found = [one + two for one, two in zip(*ranks(train, 2), strict=True)]
    assert found == [batch.clip.tolist() for batch in expected[:3]]


class TestParts:
    def test_are_cut_by_file(self, folder: Path) -> None:
        data = VideoData(Videos(str(folder)), fractions=[0.4, 0.4, 0.2])
        parts = {part: {clip.name for clip in data.clips(part)} for part in ("train", "val", "test")}
        assert set.union(*parts.values()) == {str(path) for path in folder.iterdir()}
        assert sum(map(len, parts.values())) == 5
        assert data.val_dataloader()

    def test_do_not_depend_on_the_folder_or_on_other_files(self) -> None:
        names = [f"{number}.mp4" for number in range(300)]
        here, there = ([Named(f"{root}/{name}") for name in names] for root in ("/a/b", "c"))
        one, other, fewer = cut(here, [0.7, 0.2, 0.1]), cut(there, [0.7, 0.2, 0.1]), cut(here[:100], [0.7, 0.2, 0.1])
        for first, second, third in zip(one, other, fewer, strict=True):
            assert [clip.name[5:] for clip in first] == [clip.name[2:] for clip in second]
            assert {clip.name for clip in third} <= {clip.name for clip in first}
        assert [len(part) for part in one] == pytest.approx([210, 60, 30], abs=25)

    @pytest.mark.parametrize("count", range(3, 8))
    def test_no_part_is_empty_where_there_are_enough_files(self, count: int) -> None:
        clips = [Named(f"{number % count}.mp4") for number in range(2 * count)]
        parts = cut(clips, [0.8, 0.1, 0.1])
        names = [{clip.name for clip in part} for part in parts]
        assert all(names)
        assert sum(map(len, names)) == count
        assert [len(part) for part in parts] == [2 * len(found) for found in names]
        assert cut(clips[:1], [0.8, 0.1, 0.1]).count([]) == 2

    def test_a_part_given_is_not_cut(self, folder: Path) -> None:
        walks = Walks(3, frames=9)
        data = VideoData(Videos(str(folder)), val=walks, fractions=[0.5, 0.0, 0.5])
        assert len(data.clips("val")) == 3
        assert len(data.clips("train")) + len(data.clips("test")) == 5

    @pytest.mark.parametrize(
        ("fractions", "message"),
        [
            ([0.5, 0.5], "expected three"),
            ([0.5, 0.4, 0.2], "sum to 1"),
            ([1.5, -0.5, 0.0], "at least 0"),
            ([0.0, 0.0, 1.0], "train has no video with the fractions"),
            ([float("nan"), 0.5, 0.5], "sum to 1"),
        ],
    )
    def test_invalid_fractions(self, folder: Path, fractions: list[float], message: str) -> None:
        with pytest.raises(DataError, match=message):
            VideoData(Videos(str(folder)), fractions=fractions).clips("train")

    def test_a_part_that_is_missing(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        for data in (VideoData(Videos(str(folder))), VideoData(Videos(str(folder)), fractions=[0.8, 0.0, 0.2])):
            assert not data.validated
            assert data.val_dataloader() == []
        assert caplog.messages == ["data: nothing is given for val: there is no validation, and no best checkpoint"] * 2
        data = VideoData(Videos(str(folder)))
        with pytest.raises(DataError, match=r"nothing is given for test; give data\.test"):
            data.test_dataloader()
        with pytest.raises(DataError, match="nothing is given for train"):
            VideoData(val=Videos(str(folder))).clips("train")


def Named(name: str) -> Any:
    return SimpleNamespace(name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": -1}, "workers and seed cannot be negative"),
        ({"bad_video": "ignore"}, "bad_video is 'ignore'"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        VideoData(Walks(1), **options)


def test_endless_streams_need_the_length_of_an_epoch() -> None:
    with pytest.raises(DataError, match="never end; give steps"):
        VideoData(Walks(2)).loader("train")
    with pytest.raises(DataError, match="never end; give eval_steps"):
        VideoData(val=Walks(2)).loader("val")
    assert len(VideoData(val=Walks(2, frames=33), length=16).loader("val")) == 3
    assert len(VideoData(MovingDigits(7), batch_size=2, length=20).loader("train")) == 3


def instantiated(config: str) -> LightningDataModule:
    parser = ArgumentParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before 4.50
    data = instantiate(parser.parse_string(config)).data
    assert isinstance(data, LightningDataModule)
    return data


def test_the_readme(root: Path) -> None:
    text = (root / "tttstream" / "train" / "data" / "README.md").read_text("utf-8")
    for name, takes in re.findall(r"\| `(\w+)`[^|]* \| `([^|]*)` \|", text):
        index = getattr(tttstream.train.data, name)
        assert issubclass(index, Index)
        assert {word.strip() for word in takes.partition(":")[0].split(",")} <= {*signature(index).parameters}, name


def test_the_commands_of_the_readme(
    root: Path, movie: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example is trained and tested unchanged, on a UCF101 with two classes."""
    text = (root / "tttstream" / "train" / "data" / "README.md").read_text("utf-8")
    (example,) = re.findall(r"(?s)```yaml\n(.*?)```", text)
    fit, test = re.findall(r"(?m)^tttstream (.*)$", text)
    monkeypatch.chdir(tmp_path)
    Path("ucf101.yaml").write_text(example, "utf-8")
    Path("ucfTrainTestlist").mkdir()
    for part in ("train", "test"):
        names = [f"{kind}/v_{kind}_{part}{number}.avi" for kind in ("Run", "Sit") for number in range(2)]
        Path(f"ucfTrainTestlist/{part}list01.txt").write_text("\n".join(names))
        for name in names:
            movie(f"UCF-101/{name}", 20)
    Path("ucfTrainTestlist/classInd.txt").write_text("1 Run\n2 Sit\n")
    short = ["--data.init_args.batch_size=2", "--data.init_args.workers=0", "--trainer.enable_progress_bar=false"]
    short += [
        "--trainer.log_every_n_steps=1",
        "--trainer.max_steps=2",
        "--model.depth=1",
        "--model.dim=16",
        "--trainer.enable_model_summary=false",
    ]
    assert main([*fit.replace("classes=101", "classes=2").split(), "--trainer.val_check_interval=2", *short]) == 0
    assert main(test.split()) == 0


def test_from_a_config(folder: Path) -> None:
    data = instantiated(
        f"""
data:
  class_path: tttstream.train.data.VideoData
  init_args:
    train:
      class_path: tttstream.train.data.Videos
      init_args: {{folders: ["{folder}"]}}
    fractions: [0.6, 0.2, 0.2]
    size: 24
    window: {{frames: 6, stride: 2}}
    decoder:
      class_path: tttstream.train.data.Decord
      init_args: {{short_side: 30}}
    transform:
      class_path: torchvision.transforms.v2.Compose
      init_args:
        transforms:
          - class_path: torchvision.transforms.v2.RandomResizedCrop
            init_args: {{size: 24, antialias: true}}
          - class_path: torchvision.transforms.v2.RandomHorizontalFlip
          - class_path: torchvision.transforms.v2.ColorJitter
            init_args: {{brightness: 0.2}}
    length: 6
    batch_size: 2
    workers: 0
"""
    )
    assert isinstance(data, VideoData)
    assert data._windows[0] == Window(6, 2)
    assert isinstance(data._decoder, Decord)
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (2, 6, 3, 24, 24)
