"""Stores features of things on disk, and makes episodes of examples and queries to train the model of `teach`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.models.teach import TeachModel, seen
from tttstream.train.data import things
from tttstream.train.data.sprites import Sprite

LEAST = 8  # least number of windows of a thing
EMPTY = -1  # the number of windows without a thing

Numbered = tuple[Tensor, Tensor]
"""Features of windows [n, C], float16, and the number of the thing in each [n]; `EMPTY` for none."""


def collect(
    model: TeachModel, folder: Path, photographs: Sequence[str], videos: Sequence[str], chunks: int, *, size: int = 60,
    windows: bool = True,
) -> Iterator[Numbered]:  # fmt: skip
    """Features of `chunks` times `size` generated things from these pictures, and of tracked windows of the videos
    unless `windows` is false. Features that were computed before are read from the folder.

    The names of the files depend on their content, not on the pictures: use another folder for other pictures.
    """
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    of = None
    for number in range(chunks + windows * len(videos)):
        name = (
            f"generated-{number}"
            if number < chunks
            else f"video-{number - chunks}-{Path(videos[number - chunks]).stem}"
        )
        path = folder / f"{name}.safetensors"
        if not path.exists():
            if number < chunks:
                of = of or things.pool(photographs, videos)
                views = _generated(of, number, size)
            else:
                views = things.followed(np.random.default_rng([number, 1]), videos[number - chunks])
            found = list(_features(model, views))
            part = path.with_suffix(".part")
            features = torch.cat([each[0] for each in found]) if found else torch.zeros(0, sum(model.widths))
            numbers = torch.cat([each[1] for each in found]) if found else torch.zeros(0, dtype=torch.int64)
            save_file({"features": features.half(), "numbers": numbers}, part)
            part.rename(path)
            print(f"{name}: {len(numbers)} windows", flush=True)
        kept = load_file(path)
        yield kept["features"], kept["numbers"]


def _generated(of: things.Pool, chunk: int, size: int, views: int = 24) -> Iterator[things.View]:
    """Views of `size` things, of each about so many."""
    rng = np.random.default_rng([chunk, 0])
    made: dict[int, Sprite] = {}
    for number in range(size):
        made[number] = things.thing(rng, of, made[number - 1] if number % 7 == 6 else None)
    for _ in range(views):
        order = rng.permutation(size)
        for start in range(0, size, 3):
            yield things.view(rng, of, {int(n): made[int(n)] for n in order[start : start + 3]})


@torch.no_grad()
def _features(model: TeachModel, views: Iterable[things.View]) -> Iterator[Numbered]:
    for view in views:
        boxes = torch.tensor([*view.boxes, *view.empty])
        if len(boxes):
            maps = model.maps(torch.from_numpy(view.image).permute(2, 0, 1) / 255)
            yield seen(maps, boxes).half(), torch.tensor([*view.things, *[EMPTY] * len(view.empty)])


class Classes:
    """Features of all things together. features [n, C]; of: the rows of each thing; empty: the rows without one."""

    def __init__(self, parts: Iterable[Numbered]) -> None:
        features, self.of, empty, start = [], [], [], 0
        for part, numbers in parts:
            features.append(part.float())
            rows = torch.arange(start, start + len(part))
            empty.append(rows[numbers == EMPTY])
            alike = [rows[numbers == number] for number in numbers[numbers != EMPTY].unique()]
            self.of += [each for each in alike if len(each) >= LEAST]
            start += len(part)
        self.features, self.empty = torch.cat(features), torch.cat(empty)


class Episode(NamedTuple):
    """Rows of examples [n] with their labels [n], rows of queries [m] with their answers [m]. The answer is `taught`,
    the number of labels, if the thing was not taught."""

    examples: Tensor
    labels: Tensor
    questions: Tensor
    answers: Tensor
    taught: int


def episode(
    classes: Classes, rng: np.random.Generator, taught: int, shots: int | None = None, asks: int = 2,
    strangers: int | None = None,
) -> Episode:  # fmt: skip
    """Draw an episode: some things are taught with `shots` examples each (1 to 7 if None), and `asks` other views of
    each are queries. Further queries are views of `strangers` (by default a fifth as many), and half as many windows
    without a thing."""
    strangers = max(2, taught // 5) if strangers is None else strangers
    examples, labels, questions, answers = [], [], [], []
    for label, number in enumerate(rng.permutation(len(classes.of))[: taught + strangers]):
        rows = rng.permutation(classes.of[number].numpy())
        if label >= taught:
            questions.append(rows[:asks])
            answers.append(np.full(len(questions[-1]), taught))
            continue
        count = min(int(rng.integers(1, 8)) if shots is None else shots, len(rows) - asks)
        examples.append(rows[:count])
        labels.append(np.full(count, label))
        questions.append(rows[count : count + asks])
        answers.append(np.full(len(questions[-1]), label))
    if len(classes.empty):
        questions.append(rng.choice(classes.empty.numpy(), max(2, strangers * asks // 2)))
        answers.append(np.full(len(questions[-1]), taught))
    parts = [torch.from_numpy(np.concatenate(part)) for part in (examples, labels, questions, answers)]
    return Episode(parts[0], parts[1], parts[2], parts[3], taught)


def evidence(model: TeachModel, classes: Classes, part: Episode) -> Tensor:
    """The evidence [m, taught] for the queries after all examples. The state does not depend on the order of the
    examples or on queries, so one call covers all times of a stream."""
    rows = torch.cat([part.examples, part.questions])
    keys = model.project(model.standardised(classes.features[rows]))
    told, asked = keys[None].split((len(part.examples), len(part.questions)), 1)
    state = model.memory.told(told, F.one_hot(part.labels, part.taught)[None])
    found: Tensor = model.memory.evidence(state, asked)[0]
    return found
