"""Generated things that no training saw: ten are taught with five views each, then forty more; all are asked for.

    python demos/teach_classes.py out/held-out --videos VIDEO … --out docs/results/teach_classes.md

Their pictures are photographs and videos that the training of `teach` did not use (demos/teach_train.py). The first run
draws the views and keeps their features in the folder. Each figure is the mean of so many trials.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tttstream import models
from tttstream.evaluation import things
from tttstream.sources.photographs import HELD_OUT
from tttstream.train.things import Classes, collect, episode

FIRST, MORE, SHOTS, ASKS, STRANGERS = 10, 40, 5, 8, 10


def first_of(rule: things.Rule) -> things.Rule:
    """The same rule, asked which of the first ten it is."""

    def among(examples: Tensor, labels: Tensor, questions: Tensor, count: int) -> Tensor:
        return rule(examples, labels, questions, count)[:, :FIRST]

    return among


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--videos", nargs="*", default=[], help="whose frames the things are made of besides photographs"
    )
    parser.add_argument("--chunks", type=int, default=2, help="of 60 things")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--model", default="teach")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    classes = Classes(list(collect(model, args.folder, HELD_OUT, args.videos, args.chunks, windows=False)))
    with torch.no_grad():
        plain = model.standardised(classes.features)
        keys = model.project(plain)
    rules: dict[str, tuple[things.Rule, Tensor]] = {
        "the memory": (things.bound(model.memory), keys),
        "nearest of all examples": (things.nearest, keys),
        "class means": (things.class_means, keys),
        "linear probe by SGD": (things.linear_probe, keys),
        "nearest of all examples, features before the projection": (things.nearest, plain),
        "class means, features before the projection": (things.class_means, plain),
    }
    found: dict[str, list[list[float]]] = {name: [] for name in rules}
    for trial in range(args.trials):
        rng = np.random.default_rng(trial)
        part = episode(classes, rng, FIRST + MORE, SHOTS, ASKS, STRANGERS)
        early, late = part.labels < FIRST, part.answers < FIRST
        unknown = part.answers == part.taught
        for name, (rule, rows) in rules.items():
            asked = part.questions[late | unknown]
            answers = torch.where(unknown, FIRST, part.answers)[late | unknown]
            ten = things.known(rule, rows[part.examples[early]], part.labels[early], rows[asked], answers)
            every = rows[part.examples], part.labels, rows[part.questions], part.answers
            fifty = things.known(rule, *every)
            first = things.known(rule, *every[:2], *(each[late] for each in every[2:]))
            among = things.known(first_of(rule), *every[:2], *(each[late] for each in every[2:]))
            figures = [ten.accuracy, ten.strangers, among.accuracy, first.accuracy, fifty.accuracy, fifty.strangers]
            found[name].append(figures)
    lines = [
        f"| {len(classes.of)} held-out things, {args.trials} trials | ten taught | unknown, AUROC "
        "| after forty more: the ten among the ten | the ten among all fifty | all fifty | unknown, AUROC |",
        "| --- |" + " --- |" * 6,
        *(f"| {n} | " + " | ".join(f"{v:.3f}" for v in np.mean(rows, 0)) + " |" for n, rows in found.items()),
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
