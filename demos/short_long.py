"""Short streams first, then long ones: attention and TTT at the same number of training tokens.

    python demos/short_long.py --minutes 30      # continues the queue; records in docs/results

A network of `demos/memories.py` is trained on 1,024,000 tokens: on streams of 128 tokens (short), on streams of 1,024
tokens (long), or three quarters of the tokens on short ones and then the last quarter on long ones (short-then-long).
All are tested on streams of 8,192 tokens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from memories import LENGTH, TASKS, TIMES, Part, follow, train, width
from runs import Record, go_on, publish, records_of

LONG = 8 * LENGTH
RECIPES: dict[str, tuple[Part, ...]] = {
    "short": (Part(500),),
    "long": (Part(500, 2, LONG),),
    "short-then-long": (Part(375), Part(125, 2, LONG)),
}
MEMORIES = ("attention", "ttt_linear", "ttt")


def measure(name: str, recipe: str, rate: float, seed: int) -> Record:
    """Train one network by one recipe, and test it."""
    began = time.perf_counter()
    network, losses = train(name, width(name, "parameters"), rate, seed, RECIPES[recipe])
    found = follow(network, seed)
    return {
        "memory": name, "recipe": recipe, "rate": rate, "seed": seed, "losses": losses, **found,
        "date": time.strftime("%Y-%m-%d"), "minutes": round((time.perf_counter() - began) / 60, 1),
    }  # fmt: skip


def report(records: list[Record], out: Path) -> None:
    """Write the table."""
    assert __doc__ is not None
    ends = [str(LENGTH), str(LONG), str(LENGTH * TIMES)]
    lines = ["# Short, then long", "", __doc__.split("\n\n")[2].replace("\n", " "), ""]
    head = ["memory", "training", "rate", "seed", *(f"{t} ≤ {e}" for t in ("recall", "count", "copy") for e in ends)]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for r in sorted(records, key=lambda r: (MEMORIES.index(r["memory"]), list(RECIPES).index(r["recipe"]), r["seed"])):
        cells = [r["memory"], r["recipe"], f"{r['rate']:g}", r["seed"]]
        cells += [f"{r['position'][task][end]:.3f}" for task in TASKS if task != "first-seen" for end in ends]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "Errors as in [what memories can do](memories.md): recall and copy are shares of wrong answers (chance 0.88),"
        " count is the distance over that of the median. One CPU thread of a busy machine;"
        f" {records[-1]['date']}. Made by `python demos/short_long.py`.",
    ]
    publish(lines, out.with_suffix(".md"), quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after this time")
    parser.add_argument("--only", nargs="+", choices=MEMORIES, default=list(MEMORIES))
    parser.add_argument("--rate", type=float, default=6e-3)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/results/short_long.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)

    def missing(records: list[Record]) -> tuple[str, float, int] | None:
        done = {(r["memory"], r["recipe"], r["rate"], r["seed"]) for r in records}
        for seed in range(args.seeds):
            for name in args.only:
                for recipe in RECIPES:
                    if (name, recipe, args.rate, seed) not in done:
                        return f"{name}/{recipe}", args.rate, seed
        return None

    def run(job: str, rate: float, seed: int) -> Record:
        name, recipe = job.split("/")
        return measure(name, recipe, rate, seed)

    go_on(args.out, args.minutes, missing, run)
    if records := records_of(args.out):
        report(records, args.out)


if __name__ == "__main__":
    main()
