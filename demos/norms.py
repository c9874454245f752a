"""Why does a trained memory forget after a long time? Trained weights are tested with other inner updates.

    python demos/revisit.py --only ttt_mlp_longer --rates 3e-4 --seeds 1 --keep out/revisit
    python demos/norms.py --weights out/revisit/ttt_mlp_longer-0.0003-0.pt

Nothing is trained here. The measurement is that of long ages in demos/revisit.py: rows leave half of their world for
4,352 or 16,640 tokens. The norm of the inner model's last layer is fixed. If the norm is larger, an update of the same
size changes the direction of the weights less, by the square. `forget` is the share of the inner weights' difference
from their initial values that is removed at the end of each mini-batch. With a margin, tokens with a smaller error
change no weight (`Update.margin`). The tables give the error divided by that of the mean code, on photographs that are
not in the training data: by the number of tokens since the place was last seen, and in the first and last eight of 64
worlds of 100 places, 2,048 tokens each.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from revisit import AGES, LONG, MEMORIES, OLD, build, follow, youth
from runs import publish
from tile_walks import Walks, tiles
from tqdm import tqdm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="that demos/revisit.py kept")
    parser.add_argument("--memory", choices=tuple(MEMORIES), default="ttt_mlp_longer", help="whose weights these are")
    parser.add_argument("--norms", type=float, nargs="*", default=[1.0, 1.33, 1.78], help="times that of training")
    parser.add_argument("--forget", type=float, nargs="*", default=[0.0], help="as in training otherwise")
    parser.add_argument("--margins", type=float, nargs="*", default=[0.0, 0.25, 1.0], help="at each norm")
    parser.add_argument("--sides", type=int, nargs="+", default=[12, 16], help="of the worlds, in places")
    parser.add_argument("--out", type=Path, default=Path("docs/results/norms.md"))
    args = parser.parse_args()
    if not args.weights.is_file():
        parser.error(f"--weights {args.weights}: no such file; demos/revisit.py --keep makes one")
    torch.set_num_threads(1)
    _, held, _ = tiles()
    network = build(args.memory).eval()
    network.load_state_dict(torch.load(args.weights))
    memory: Any = network.memory
    usual = memory.update
    grid = itertools.product(args.norms, args.margins)
    updates = [usual._replace(max_norm=factor * usual.max_norm, margin=margin) for factor, margin in grid]
    updates += [usual._replace(forget=forget) for forget in args.forget]
    head = ["places", "norm", "forget", "margin", *(f"age ≥ {age}" for age in AGES)]
    lines = ["# Norm, forgetting and margin", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    spans = [span for span, rows in OLD.items() for _ in range(rows)]
    jobs = [(side, update) for side in args.sides for update in updates]
    for side, update in tqdm(jobs, disable=None):
        memory._update = update
        ages = follow(network, Walks(held, [side] * len(spans), 150 + side, spans), LONG)["age"]
        cells = [
            f"{value:.3f}{'' if count >= 500 else f' ({count})'}" if count else "" for value, count in ages.values()
        ]
        about = [
            side * side,
            f"{update.max_norm / usual.max_norm:.2f} times",
            f"{update.forget:g}",
            f"{update.margin:g}",
        ]
        lines.append("| " + " | ".join(map(str, [*about, *cells])) + " |")
    lines += ["", "| norm | forget | margin | first eight worlds | last eight |", "| --- | --- | --- | --- | --- |"]
    for update in tqdm(updates, "worlds", disable=None):
        memory._update = update
        worlds = youth(network, held, 64)
        about = [f"{update.max_norm / usual.max_norm:.2f} times", f"{update.forget:g}", f"{update.margin:g}"]
        ends = [f"{sum(part) / 8:.3f}" for part in (worlds[:8], worlds[-8:])]
        lines.append("| " + " | ".join([*about, *ends]) + " |")
    lines += ["", f"(n): under 500 visits. {LONG} tokens, {len(spans)} rows, one seed, no training; weights of "]
    lines[-1] += f"`{args.memory}`; {time.strftime('%Y-%m-%d')}. Made by `python demos/norms.py`."
    publish(lines, args.out)


if __name__ == "__main__":
    main()
