"""VideoData: an index, a window, a decoder and a transform, composed into lanes for Lightning."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torchvision.transforms import v2
from tqdm import tqdm

from tttstream.errors import DataError, SourceError
from tttstream.train.data.clips import Clip, Decoder
from tttstream.train.data.indices import Index
from tttstream.train.data.lanes import FOREVER, Schedule, Window
from tttstream.train.data.listing import logger
from tttstream.train.data.loader import LaneLoader
from tttstream.train.data.reading import Footage, named
from tttstream.train.data.split import cut, shared
from tttstream.train.data.transforms import fitted
from tttstream.train.data.video import PyAV
from tttstream.train.given import missing
from tttstream.train.place import place

SIZE = 128


class BadVideoWarning(UserWarning):
    """Some videos were skipped, or could be read only in part."""


class VideoData(LightningDataModule):
    """Batches of segments from lanes of video, see Batch.

    train, val, test: indices. If val or test is None and fractions are given, its clips are split from train by file.
    size: side of the frames, 128 unless given; on the command line that of the model. length: frames in a segment, T
    (in total for all ranks that share a segment in time). batch_size: lanes in each process, B. window: the part of a
    clip in a visit in training; eval_window: in validation and test, where each clip occurs once. Whole clips need
    their lengths in advance: all files are opened once when the run starts. transform: of torchvision.transforms.v2,
    for training; eval_transform: for validation and test. The result must be uint8 of size × size; None crops the
    central square, v2.Resize([size, size]) changes the aspect ratio. Random choices are the same for all frames of a
    visit, and for their masks. decoder: PyAV, for whole streams, or Decord, which can be faster for short windows.
    steps: batches in an epoch; None: about one pass over all frames. eval_steps: batches of a validation; None: each
    clip once. workers: processes that read, 0 for none. seed: of orders, windows and transforms. bad_video: "skip"
    skips videos that cannot be read and lists them in a warning, "raise" raises DataError.
    """

    def __init__(
        self,
        train: Index | None = None,
        val: Index | None = None,
        test: Index | None = None,
        *,
        fractions: list[float] | None = None,
        size: int | None = None,
        length: int = 16,
        batch_size: int = 8,
        window: Window | None = None,
        eval_window: Window | None = None,
        transform: nn.Module | None = None,
        eval_transform: nn.Module | None = None,
        decoder: Decoder | None = None,
        steps: int | None = None,
        eval_steps: int | None = None,
        workers: int = 2,
        seed: int = 0,
        bad_video: str = "skip",
    ) -> None:
        super().__init__()
        size = SIZE if size is None else size
        counts = {"size": size, "length": length, "batch_size": batch_size, "steps": steps, "eval_steps": eval_steps}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise DataError(f"data: {name} must be at least 1, got {value}")
        if min(workers, seed) < 0:
            raise DataError(f"data: workers and seed cannot be negative, got {workers} and {seed}")
        if bad_video not in ("skip", "raise"):
            raise DataError(f"data: bad_video is {bad_video!r}, expected 'skip' or 'raise'")
        if fractions is not None and len(fractions) != 3:
            raise DataError(f"data: fractions are {fractions}, expected three, for train, val and test")
        parts = {"train": train, "val": val, "test": test}
        self._indices = {part: index and index.sized(size) for part, index in parts.items()}
        self._fractions = fractions
        self.size, self.length, self.batch_size, self.workers, self.seed = size, length, batch_size, workers, seed
        self._windows = (window or Window(), eval_window or Window(start="centre"))
        self._transforms = (transform or fitted(size), eval_transform or fitted(size))
        self.fitting = _fitting(eval_transform, size)
        self._decoder = decoder or PyAV()
        self._steps = (steps, eval_steps)
        self._strict = bad_video == "raise"
        self._clips: dict[str, list[Clip]] = {}
        self._loaders: dict[str, LaneLoader] = {}
        self._listed: set[str] = set()
        self._resume: dict[str, Any] | None = None

    reads_parts = True
    """Whether its batches contain only the part in time of this process, see `Place`."""

    @property
    def classes(self) -> list[str]:
        """The names of the labels, in order; none where clips have no labels, or numbers without names."""
        return self.classes_of(next((part for part, index in self._indices.items() if index is not None), "train"))

    def classes_of(self, part: str) -> list[str]:
        """The names of the labels of a part; see `classes`."""
        self.clips(part)
        index = self._indices[part] or self._indices["train"]
        return [] if index is None else list(index.classes)

    @property
    def validated(self) -> bool:
        """Whether there is validation data."""
        return self.gives("val")

    def gives(self, part: str) -> bool:
        """Whether there is data for "train", "val" or "test"; no file is opened."""
        train = self._indices["train"] is not None
        share = self._fractions[list(self._indices).index(part)] if self._fractions and train else 0.0
        return self._indices[part] is not None or share > 0

    @property
    def eval_frames(self) -> int | None:
        """The number of frames of each clip in validation and test; None for all."""
        return self._windows[1].frames

    def clips(self, part: str) -> list[Clip]:
        """The clips of "train", "val" or "test"; `Batch.clip` counts in this list.

        Raises DataError if there is no data for the part, or if its classes differ from those of train.
        """
        if part not in self._clips:
            self._clips[part] = self._list(part)
            index = self._indices[part]
            if index is not None and index.classes and list(index.classes) != (classes := self.classes):
                raise DataError(
                    f"data: {part} has {len(index.classes)} classes that are not the {len(classes)} of train, or in "
                    "another order; give both the same `classes`"
                )
            if part != "train" and "train" in self._clips and (both := shared(self._clips["train"], self._clips[part])):
                logger.warning(
                    "data: %d videos of %s are among those of train too, such as %s: the figures on them do not show "
                    "the quality on other videos", len(both), part, both[0],
                )  # fmt: skip
        return self._clips[part]

    def _list(self, part: str) -> list[Clip]:
        index, train = self._indices[part], self._indices["train"]
        if index is None and train is None:
            raise DataError(missing(part))
        whole = index is None or (part == "train" and None in (self._indices["val"], self._indices["test"]))
        if self._fractions is None or not whole:
            if index is None:
                raise DataError(missing(part))
            if train is not None and index is not train and index.named:
                index.share(self.classes)
            return index.clips()
        assert train is not None
        clips = cut(train.clips(), self._fractions)[list(self._indices).index(part)]
        if not clips:
            raise DataError(f"data: {part} has no video with the fractions {self._fractions}; give data.{part}")
        return clips

    def loader(self, part: str) -> LaneLoader:
        """The loader of a part for this process: endless for "train", each clip once for "val" and "test"."""
        training = part == "train"
        window, steps = self._windows[not training], self._steps[not training]
        clips, lengths, bad = self._lengths(self.clips(part), window)
        self._clips[part] = clips
        footage = Footage(
            clips, window, self._decoder, self._transforms[not training], self.size, self._strict, training
        )
        mine = place(self.trainer)
        rank, world = mine.rows, mine.sets
        if self.length < mine.parts:
            raise DataError(
                f"data: length is {self.length}, but {mine.parts} ranks share a segment: give as many frames"
            )
        lanes = self.batch_size if training else min(self.batch_size, -(-len(clips) // world))
        rounds = None if training else 1
        schedule = Schedule(lengths, lanes * world, seed=self.seed, shuffle=training, rounds=rounds)
        if steps is None:
            if max(lengths) >= FOREVER:
                raise DataError(f"data: {part} has clips that never end; give {'' if training else 'eval_'}steps")
            if training:
                steps = max(1, sum(lengths) // (lanes * world * self.length))
            else:
                steps = -(-max(schedule.frames(lane) for lane in range(lanes * world)) // self.length)
        loader = LaneLoader(
            footage,
            schedule,
            range(rank * lanes, (rank + 1) * lanes),
            length=self.length,
            steps=steps,
            part=mine.frames(self.length),
            workers=self.workers,
            endless=training,
            pin=torch.cuda.is_available(),
        )
        loader.bad |= bad
        if training and self._resume is not None:
            loader.load_state_dict(self._resume)
            self._resume = None
        self._loaders[part] = loader
        return loader

    def _lengths(self, clips: list[Clip], window: Window) -> tuple[list[Clip], list[int], dict[str, str]]:
        """The clips that can be opened with the frames of a visit to each; the others with reasons."""
        if window.frames is not None:
            return clips, [window.frames] * len(clips), {}
        bad: dict[str, str] = {}

        def length(clip: Clip) -> int:
            try:
                return window.length(clip.count(self._decoder))
            except SourceError as error:
                if self._strict:
                    raise DataError(f"{clip.name}: {error}; bad_video=skip skips such videos") from error
                bad[clip.name] = str(error)
                return 0

        with ThreadPoolExecutor(8) as pool:
            measured = pool.map(length, clips)
            lengths = list(tqdm(measured, "measuring videos", len(clips), disable=None, delay=1.0, leave=False))
        bad |= {c.name: f"{c.name} holds no frames" for c, n in zip(clips, lengths, strict=True) if not n} | bad
        kept = [(clip, frames) for clip, frames in zip(clips, lengths, strict=True) if frames]
        if not kept:
            raise DataError(f"data: not one of {len(clips)} videos can be read: {named(bad)}")
        return [clip for clip, _ in kept], [frames for _, frames in kept], bad

    def state_dict(self) -> dict[str, Any]:
        """The position of training: lanes continue from it, also if Lightning restarts an epoch."""
        return self._loaders["train"].state_dict() if "train" in self._loaders else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position of training."""
        self._resume = state_dict or None

    def train_dataloader(self) -> LaneLoader:
        return self.loader("train")

    def val_dataloader(self) -> LaneLoader | list[Any]:
        """See LightningDataModule; empty without validation data."""
        if self.validated:
            return self.loader("val")
        logger.warning("data: nothing is given for val: there is no validation, and no best checkpoint")
        return []

    def test_dataloader(self) -> LaneLoader:
        return self.loader("test")

    def predict_dataloader(self) -> LaneLoader:
        return self.loader("test")

    def teardown(self, stage: str) -> None:
        """End the workers, and list the videos that could not be read."""
        bad: dict[str, str] = {}
        for loader in self._loaders.values():
            loader.close()
            bad |= {name: why for name, why in loader.bad.items() if name not in self._listed}
        self._listed |= bad.keys()
        if bad:
            warnings.warn(f"{len(bad)} videos could not be read in full: {named(bad)}", BadVideoWarning, stacklevel=2)


def _fitting(transform: nn.Module | None, size: int) -> str | None:
    """How evaluations make pictures square, in the words of `Classifier.fitting`; None for a custom transform."""
    if transform is None:
        return "crop"
    return "squeeze" if isinstance(transform, v2.Resize) and list(transform.size or []) == [size, size] else None
