"""Evaluates `teach` on things in real videos: taught in the first second, found in the last, all in one memory.

    python demos/teach_table.py ../shared/videos --out docs/results/teach.md

Boxes of 20 things in eight videos were drawn by hand (docs/results/teach_things.json); the others are the objects of
six DAVIS sequences, whose masks give the boxes. Five frames of the first second are taught. The last second is
evaluated

- with the box given: which of all things is it (accuracy, the mean over things)? With half of the things left out, how
  well does the evidence tell a known thing from an unknown one (AUROC, mean of 20 halves)?
- with the whole frame, as `push` does: which things are found, and is the middle of the thing's box in the box found?
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tttstream import models, open_source
from tttstream.evaluation import things
from tttstream.evaluation.detection import auroc
from tttstream.streams import TeachStream

THINGS = Path(__file__).parent.parent / "docs" / "results" / "teach_things.json"
Shares = tuple[float, float, float, float]


class Shot(NamedTuple):
    """One frame in which things are taught or queried, and their boxes."""

    image: NDArray[np.uint8]
    taught: bool
    boxes: dict[str, Shares]


def shots(videos: Path) -> Iterator[Shot]:
    """The frames that are used, video by video."""
    for name, inside in json.loads(THINGS.read_text())["things"].items():
        with open_source(videos / name) as source:
            frames = [np.asarray(frame.image) for frame in source]
            second = round(source.fps or 25)
        places = [(0, 0), (1, 0), (2, 0), (second - 1, 1), (second, 1)]
        last = len(frames) - 1
        asked = [(last - second, 2), (last - second + 1, 2), (last - second + 2, 2), (last - 1, 3), (last, 3)]
        for number, place in places + asked:
            boxes = {f"{Path(name).stem}: {thing}": tuple(at[place]) for thing, at in inside.items() if at[place]}
            yield Shot(frames[number], place < 2, boxes)
    for folder in sorted((videos / "masks/davis/JPEGImages/480p").iterdir()):
        files = sorted(folder.iterdir())
        last = len(files) - 1
        for number in (0, 6, 12, 18, 24, last - 24, last - 18, last - 12, last - 6, last):
            mask = files[number].parents[3] / "Annotations/480p" / folder.name / f"{files[number].stem}.png"
            rows, columns = np.nonzero(np.asarray(Image.open(mask).convert("L")) > 127)
            image = np.asarray(Image.open(files[number]).convert("RGB"))
            height, width = image.shape[:2]
            if len(rows):
                box = columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height
                yield Shot(image, number <= 24, {f"davis: {folder.name}": box})


def given_box(stream: TeachStream, keys: Tensor, names: list[str], taught: Tensor) -> list[str]:
    """The table of rules with the box given."""
    labels = torch.tensor([stream.labels.index(name) for name in names])
    parts = keys[taught], labels[taught], keys[~taught], labels[~taught]
    rules = {"the memory": things.bound(stream.model.memory), "nearest of all examples": things.nearest}
    rules |= {"class means": things.class_means, "linear probe by SGD": things.linear_probe}
    lines = ["| box given | accuracy | unknown, AUROC |", "| --- | --- | --- |"]
    for name, rule in rules.items():
        accuracy, unknown = things.known(rule, *parts).accuracy, things.halves(rule, *parts)
        lines.append(f"| {name} | {accuracy:.3f} | {unknown:.3f} |")
    return lines


class Answer(NamedTuple):
    """The result for one thing in one frame. evidence: in the best window. box: left, top, width, height in pixels."""

    evidence: float
    box: Shares


def answers(stream: TeachStream, asked: list[Shot]) -> list[dict[str, Answer]]:
    """The results for every thing in every frame; results with very little evidence are left out."""
    found, certain, search = [], stream.certain, stream.model.config.search
    stream.certain = 1e-9
    for shot in asked:
        result = stream.push(shot.image)
        found.append(
            {f.label: Answer(search + math.log(f.probability / (1 - f.probability)), f.box) for f in result.found}
        )
    stream.certain = certain
    return found


def absent(label: str, shot: Shot) -> bool:
    """Whether a thing is certainly not in a frame: it is of another video, or of another sequence of DAVIS."""
    video = next(iter(shot.boxes)).split(":")[0]
    return label.split(":")[0] != video or (video == "davis" and label not in shot.boxes)


def whole_frames(labels: Sequence[str], asked: list[Shot], said: list[dict[str, Answer]], search: float) -> list[str]:
    """The table of things in whole frames, and lines over all of them."""
    seen, hits, ghosts, frames = Counter(), Counter(), Counter(), Counter()
    present, away = [], []
    for shot, found in zip(asked, said, strict=True):
        height, width = shot.image.shape[:2]
        frames.update(list(shot.boxes))
        for name in labels:
            evidence = found[name].evidence if name in found else search - 20
            if absent(name, shot):
                away.append(evidence)
                ghosts[name] += evidence >= search
            elif name in shot.boxes:
                present.append(evidence)
                if evidence >= search:
                    left, top, right, bottom = shot.boxes[name]
                    x, y, wide, tall = found[name].box
                    inside = x < (left + right) / 2 * width < x + wide and y < (top + bottom) / 2 * height < y + tall
                    seen[name] += 1
                    hits[name] += inside
    lines = [
        "| whole frame | frames | found | at its place | found in other videos |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {frames[name]} | {seen[name]} | {hits[name]} | {ghosts[name]} |" for name in labels]
    total = [sum(counter.values()) for counter in (frames, seen, hits, ghosts)]
    lines += [f"| all {len(labels)} things in {len(asked)} frames | " + " | ".join(map(str, total)) + " |"]
    one = float(np.quantile(away, 0.99))
    found = auroc(np.array(present), np.array(away))
    lines += ["", f"In the best window, evidence tells a thing in view from an absent one with AUROC {found:.3f};"]
    lines += [f"one in a hundred absent ones has more than {one:.2f}."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--model", default="teach")
    parser.add_argument("--size", type=int)
    parser.add_argument(
        "--search", type=float, help="the evidence from which a thing is found, the model's own unless given"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stream = TeachStream(models.load(args.model), size=args.size)
    all_shots, keys, names, taught = list(shots(args.videos)), [], [], []
    for shot in all_shots:
        height, width = shot.image.shape[:2]
        with torch.inference_mode():
            found = stream.model.keys(
                stream.model.maps(stream.picture(shot.image)), torch.tensor([*shot.boxes.values()])
            )
        for name, key, (left, top, right, bottom) in zip(shot.boxes, found, shot.boxes.values(), strict=True):
            if shot.taught:
                box = (left * width, top * height, (right - left) * width, (bottom - top) * height)
                stream.teach(name, shot.image, box)
            keys.append(F.normalize(key, dim=-1))
            names.append(name)
            taught.append(shot.taught)
    lines = given_box(stream, torch.stack(keys), names, torch.tensor(taught))
    asked = [shot for shot in all_shots if not shot.taught]
    search = stream.model.config.search if args.search is None else args.search
    lines += ["", *whole_frames(stream.labels, asked, answers(stream, asked), search)]
    lines += [
        "",
        f"State {stream.state_bytes:,} bytes, short side {stream.size} pixels, found from evidence {search:g}.",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
