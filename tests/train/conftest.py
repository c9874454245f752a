"""A generated stream in lanes: a window that moves over noise, so that the next frame is predictable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from tttstream.models.frame import ModelConfig
from tttstream.train.data import Batch
from tttstream.train.place import place

SIZE = 16


class Moving(Dataset[Batch]):
    """Segments of T frames in B rows; every 5th step each row begins another video.

    labels: the label of a video is its number modulo this; 0 for no labels.
    """

    def __init__(self, steps: int, rows: int = 2, frames: int = 4, first: int = 0, labels: int = 0) -> None:
        noise = torch.Generator().manual_seed(1)
        self.pictures = torch.randint(0, 256, (8, 3, SIZE, SIZE + 5 * frames), generator=noise, dtype=torch.uint8)
        self.steps, self.rows, self.frames, self.first, self.labels = steps, rows, frames, first, labels

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        times = (step % 5) * self.frames + torch.arange(self.frames)
        videos = (self.first + step // 5 + torch.arange(self.rows)) % 8
        rows = self.pictures[videos]
        frames = torch.stack([torch.stack([picture[:, :, t : t + SIZE] for t in times.tolist()]) for picture in rows])
        position = times.expand(self.rows, -1)
        minus = torch.full_like(position, -1)
        clip = videos[:, None].expand_as(position) if self.labels else minus
        label = clip % self.labels if self.labels else minus
        return Batch(frames, position == 0, position, position, clip, label, position >= 0)


class MovingData(LightningDataModule):
    """Training lanes that continue after a resume, and a validation."""

    def __init__(self, steps: int = 20, rows: int = 2, frames: int = 4, labels: int = 0) -> None:
        super().__init__()
        self.steps, self.rows, self.frames, self.labels = steps, rows, frames, labels
        self.loader: Any = None

    def train_dataloader(self) -> Any:
        first = place(self.trainer).rows * self.rows
        self.loader = _Resumable(Moving(self.steps, self.rows, self.frames, first, self.labels))
        return self.loader

    def val_dataloader(self) -> Any:
        first = 4 + place(self.trainer).rows * self.rows
        return DataLoader(Moving(3, self.rows, self.frames, first, self.labels), batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


class _Resumable:
    """Goes on at the step that a checkpoint names, as the loaders of tttstream.train.data do."""

    def __init__(self, data: Moving) -> None:
        self.data, self.step = data, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Batch]:
        while self.step < len(self.data):
            self.step += 1
            yield self.data[self.step - 1]
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


@pytest.fixture
def tiny() -> Callable[..., ModelConfig]:
    """A model of a few thousand parameters, with changes."""

    def make(**changes: Any) -> ModelConfig:
        return ModelConfig(**{"size": SIZE, "patch": 8, "dim": 16, "depth": 1, "heads": 2, **changes})

    return make


@pytest.fixture
def moving() -> type[MovingData]:
    """The data module, to be made."""
    return MovingData


@pytest.fixture
def trainer(tmp_path: Any) -> Callable[..., Trainer]:
    """A quiet trainer on the CPU, with changes."""

    def make(**changes: Any) -> Trainer:
        given: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 12,
            "logger": CSVLogger(tmp_path, name="log"),
            "default_root_dir": tmp_path,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
        }
        return Trainer(**{**given, **changes})

    return make
