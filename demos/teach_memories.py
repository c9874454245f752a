"""Compares memories that are taught ten things with five views each, up to 100,000 frames and forty things later.

    python demos/teach_memories.py out/teach/features out/held-out --videos VIDEO … --minutes 60  # the queue
    python demos/teach_memories.py out/teach/features out/held-out --only memory  # the rules that need no training

The first folder contains the features of demos/teach_train.py. The second receives features of things from photographs
and videos that were not used in training, 60 per chunk. All memories have the same keys, the frozen projection of
`teach`. The networks (LSTM, window, TTT …) are trained on the same streams of examples and queries; each consists of
one memory that reads the keys, and logits of 64 slots and of "unknown". Queries follow 1, 100, 10,000 and 100,000
frames of other things later.

Each network is trained and tested in up to three ways:

- NAME: every frame is learned, and the state after it is kept.
- NAME, told: only the state after a frame with a label is kept, as in the memory of `teach`. Other frames are read one
  by one from that state.
- NAME, told, few first: so, too, and the greatest number of things grows from 3 to 50 over the first two thirds of the
  training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from runs import Record, best, following, go_on, records_of
from safetensors.torch import load_file
from teach_networks import NETWORKS, TOLD, Learned, keys_of, train
from teach_trials import AGES, TRIALS, Bound, Kept, follow

from tttstream import models
from tttstream.evaluation import things
from tttstream.io.outputs import TextFile
from tttstream.sources.photographs import HELD_OUT
from tttstream.train.things import Classes, collect

END = "<!-- the tables end here -->"
RULES: dict[str, things.Rule] = {
    "nearest of all examples": things.nearest,
    "class means": things.class_means,
    "linear probe by SGD": things.linear_probe,
}


def line(records: list[Record], name: str, ages: Sequence[int]) -> str:
    """The line of one memory: the run of seed 0 with the least loss, or the mean over the seeds of its kind."""
    mine = [record for record in records if record["memory"] == name]
    chosen = best(mine)
    mine = [r for r in mine if (r["rate"], r.get("steps")) == (chosen["rate"], chosen.get("steps"))]
    whens = [*map(str, ages), "more, among ten", "more, among fifty"]
    differs = any(r["same after a restart"] is False for r in mine)
    cells = [
        f"{name}, differs after a restart" if differs else name,
        f"{chosen['state_bytes'] / 1e3:,.0f} kB" if chosen["state_bytes"] else "grows",
    ]
    cells += [f"{np.mean([r['accuracy'][when] for r in mine]):.3f}" for when in whens]
    cells += [f"{np.mean([r['unknown'][str(age)] for r in mine]):.3f}" for age in (ages[0], ages[-1])[: len(ages)]]
    cells.append(f"{np.mean([r['losses'][-1] for r in mine]):.2f}" if chosen["rate"] else "")
    return f"| {' | '.join(cells)} |"


def tables(records: list[Record]) -> list[str]:
    """One table of the memories that only examples change, and one of those that every frame changes."""
    names = sorted({record["memory"] for record in records if record["rate"]}, key=NETWORKS.index)
    rules = list(dict.fromkeys(record["memory"] for record in records if not record["rate"]))
    lines: list[str] = []
    for title, rows, ages in (
        ("Only examples change the state", [*rules, *(name for name in names if TOLD in name)], AGES[-1:]),
        ("Every frame changes the state", [name for name in names if TOLD not in name], AGES),
    ):
        head = ["memory", "state", *(f"after {age:,}" for age in ages), "40 more, of the ten", "of all fifty"]
        head += [f"unknown, AUROC, after {age:,}" for age in (ages[0], ages[-1])[: len(ages)]]
        lines += headed(title, [*head, "loss"]) + [line(records, name, ages) for name in rows]
    runs = {(r["memory"], r["steps"], r["seed"], r["rate"]): r["losses"][-1] for r in records if r["rate"]}
    rates = sorted({rate for *_, rate in runs})
    lines += headed("Losses of all runs", ["memory", "steps", "seed", *(f"rate {rate:g}" for rate in rates)])
    for kind in sorted({run[:3] for run in runs}, key=lambda run: (NETWORKS.index(run[0]), *run[1:])):
        found = (runs.get((*kind, rate)) for rate in rates)
        cells = [*map(str, kind), *("" if loss is None else f"{loss:.2f}" for loss in found)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines[1:]


def headed(title: str, head: Sequence[str]) -> list[str]:
    """A title and the head of a table."""
    return ["", f"## {title}", "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, help="folder of features of things for training")
    parser.add_argument("held_out", type=Path, help="folder of features of things that no training saw")
    parser.add_argument("--videos", nargs="*", default=[], help="whose frames the held-out things are made of")
    parser.add_argument("--chunks", type=int, default=2, help="of 60 held-out things")
    parser.add_argument("--model", default="teach")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further run after so many")
    parser.add_argument("--only", nargs="+", choices=("memory", *NETWORKS), default=["memory", *NETWORKS])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="of which the best counts")
    parser.add_argument("--seeds", type=int, default=1, help="runs at the best rate")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/results/teach_classes.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    classes = Classes(list(collect(model, args.held_out, HELD_OUT, args.videos, args.chunks, windows=False)))
    held, plain = keys_of(model, classes), keys_of(model, classes, projected=False)
    common = {"date": time.strftime("%Y-%m-%d"), "held_out": len(held.of), "trials": TRIALS}
    if "memory" in args.only:
        found: list[Record] = []
        streams_of = {"memory of teach": (held, partial(Bound, model.memory))}
        streams_of |= {name: (held, partial(Kept, rule)) for name, rule in RULES.items()}
        streams_of |= {
            f"{name}, before the projection": (plain, partial(Kept, RULES[name])) for name in list(RULES)[:2]
        }
        for name, (of, make) in streams_of.items():
            found.append({"memory": name, "rate": 0, "seed": 0, "losses": [0], **follow(of, make), **common})
            print(line(found, name, AGES[-1:]), flush=True)
        with TextFile(args.out) as file:
            kept = [record for record in records_of(args.out) if record["rate"]]
            file.write(json.dumps([*found, *kept], indent=1) + "\n")
    names = [name for name in args.only if name in NETWORKS]
    if names:
        files = sorted(args.training.glob("*.safetensors"))
        training = keys_of(model, Classes((kept["features"], kept["numbers"]) for kept in map(load_file, files)))

        def measure(name: str, rate: float, seed: int) -> Record:
            began = time.perf_counter()
            network, losses = train(training, name, rate, seed, args.steps)
            found = follow(held, partial(Learned, network))
            record = {"memory": name, "rate": rate, "seed": seed, "steps": args.steps, "losses": losses, **found}
            return {**record, **common, "minutes": round((time.perf_counter() - began) / 60, 1)}

        def missing(records: list[Record]) -> tuple[str, float, int] | None:
            as_long = [record for record in records if record.get("steps") == args.steps]
            return following(as_long, names, args.rates, args.seeds)

        go_on(args.out, args.minutes, missing, measure)
    lines, page = tables(records_of(args.out)), args.out.with_suffix(".md")
    print("\n".join(lines))
    below = page.read_text(encoding="utf-8").partition(END)[2] if page.exists() else "\n"
    with TextFile(page) as file:
        file.write("\n".join([*lines, "", END]) + below)


if __name__ == "__main__":
    main()
