"""`tttstream track ROOT --davis`: writes results in the format of the DAVIS and YouTube-VOS servers."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ConfigError, OutputError, SourceError
from tttstream.io import mask_files
from tttstream.sources.folder import IMAGES, listed
from tttstream.sources.pages import read_image

if TYPE_CHECKING:
    from tttstream.models.masks import Propagator

SIZES = ("480p", "Full-Resolution")
REFUSED = ("mask", "box", "first_mask", "load_state", "save_state", "show", "max_frames", "poses", "pose")


@dataclass(frozen=True)
class BenchmarkSequence:
    """One sequence of a data set. frames: its images in order. masks: the masks that may be read, by frame. target: the
    folder of its results, below that of all."""

    name: str
    frames: list[Path]
    masks: dict[int, Path]
    target: Path


def sequences(root: Path, names: list[str] | None) -> list[BenchmarkSequence]:
    """The named sequences of a DAVIS or YouTube-VOS tree, or all of them.

    In DAVIS (ROOT/JPEGImages/480p/SEQUENCE) only the mask of the first frame is read. In YouTube-VOS
    (ROOT/JPEGImages/VIDEO) masks are read in all frames with new objects. Raises ConfigError for another tree, and for
    names that do not exist.
    """
    images, annotations = root / "JPEGImages", root / "Annotations"
    if not images.is_dir() or not annotations.is_dir():
        raise ConfigError(f"{root} is no DAVIS or YouTube-VOS tree: expected the folders JPEGImages and Annotations")
    size = next((size for size in SIZES if (images / size).is_dir()), None)
    images, annotations = (images, annotations) if size is None else (images / size, annotations / size)
    known = sorted(path.name for path in images.iterdir() if path.is_dir())
    missing = [name for name in names or [] if name not in known]
    if missing or not known:
        raise ConfigError(f"{images} has no sequence {', '.join(missing)}".rstrip())
    return [_sequence(images / name, annotations / name, size is not None) for name in names or known]


def _sequence(images: Path, annotations: Path, first_only: bool) -> BenchmarkSequence:
    frames = listed(images, IMAGES)
    masks = {
        index: annotations / f"{frame.stem}.png"
        for index, frame in enumerate(frames[:1] if first_only else frames)
        if (annotations / f"{frame.stem}.png").is_file()
    }
    if not masks:
        raise SourceError(
            f"{annotations} shows no object: there is no mask of {'the first' if first_only else 'any'} frame"
        )
    return BenchmarkSequence(
        images.name, frames, masks, Path(images.name) if first_only else Path("Annotations", images.name)
    )


def run(args: argparse.Namespace, root: Path, out: Path) -> int:
    """Follow the objects of every sequence and write their masks; returns the exit code."""
    for name in REFUSED:
        if getattr(args, name) not in (None, False, []):
            raise ConfigError(f"--davis takes its masks from the data set: leave --{name.replace('_', '-')} out")
    if not root.is_dir():
        raise SourceError(f"there is no folder {root}")
    if out.resolve() in (root.resolve(), (root / "Annotations").resolve()):
        raise OutputError(f"--out {out} is the data set itself: give another folder")
    every = sequences(root, args.sequences)
    import torch

    from tttstream.cli.progress import Progress
    from tttstream.io.outputs import OutputFolder
    from tttstream.models import load_as
    from tttstream.models.masks import Propagator
    from tttstream.streams.windows import usual

    torch.set_num_threads(1)
    model: Propagator[Any] = load_as(Propagator, args.model)  # type: ignore[type-abstract]
    size, crop = usual(model, args.size, args.crop)
    folder = OutputFolder(out)
    try:
        began, count = time.perf_counter(), 0
        for sequence in every:
            progress = Progress(sequence.name, len(sequence.frames))
            try:
                for state in follow(sequence, model, out, size, crop, not args.no_learn):
                    count += 1
                    progress.update(count / (time.perf_counter() - began), None, state)
            finally:
                progress.close()
    except BaseException:
        folder.discard()
        raise
    folder.release()
    fps = count / (time.perf_counter() - began)
    print(f"{root}: {len(every)} sequences, {count} frames, {fps:.1f} fps; results: {out}")
    return 0


def follow(
    sequence: BenchmarkSequence, model: Propagator[Any], out: Path, size: int | None, crop: int | None, learn: bool
) -> Iterator[str]:
    """Write the masks of one sequence, under the names of its frames. Yields the size of the state after each frame.
    The folder appears when it is complete."""
    from tttstream.cli.mask_recorder import MaskFolder
    from tttstream.io.outputs import OutputFolder
    from tttstream.streams import MaskStream
    from tttstream.views.masks import palette
    from tttstream.views.overlay import size_text

    read = mask_files.MaskSequence([*sequence.masks.values()])
    shown, colours, seen = {}, palette(), set[int]()
    for place, index in enumerate(sequence.masks):
        mask = read[place]
        # Objects that are already followed are not corrected
        shown[index] = np.where(np.isin(mask.labels, [*seen]), 0, mask.labels)
        seen |= {int(number) for number in np.unique(mask.labels) if number > 0}
        for number, colour in mask.colours.items():
            if number < len(colours):
                colours[number] = colour
    numbers = sorted(seen)
    if not 0 < len(numbers) < 256:
        raise SourceError(f"{sequence.name}: its masks show {len(numbers)} objects, expected 1 to 255")
    names = np.array([0, *numbers], np.int32)
    stream = MaskStream(model, objects=len(numbers), size=size, crop=crop, learn=learn)
    target = out / sequence.target
    OutputFolder(target.parent, claim=False)
    masks = MaskFolder(target, numbers, colours)
    with masks:
        for index, path in enumerate(sequence.frames):
            frame = read_image(path)
            given = _compact(shown.get(index), numbers)
            if given is None and not bool(stream.state.seen.any()):
                found: NDArray[np.integer[Any]] = np.zeros(frame.shape[:2], np.int32)
            else:
                found = names[stream.push(frame, given).mask]
            masks.write(path.stem, found)
            yield size_text(stream.state_bytes)


def _compact(labels: NDArray[Any] | None, numbers: list[int]) -> NDArray[Any] | None:
    """Labels with the objects 1, 2 … in the order of their numbers; None if there is no object."""
    if labels is None or not (labels > 0).any():
        return None
    return np.where(labels > 0, np.searchsorted(numbers, labels) + 1, labels).astype(np.int16)
