"""Changes out of view in grid worlds: does the memory notice an exchanged, vanished or new tile at the next visit?

    python demos/exchanged.py --steps 900 --tokens 16384

The worlds, the walk and the training are those of demos/revisit.py; tiles of held-out photographs. While the walk
continues, seen tiles that are out of view are exchanged for others, vanish (the mean tile replaces them) or appear in
place of the mean tile. Every view carries noise of --noise deviations. The score of a visit is the squared error of the
prediction for it. The baselines are a dictionary of the last view of every place, the difference to the view before,
and OpenCV's MOG2 on the tiles as pictures. Only places that were seen before count.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from revisit import MEMORIES, build, train
from runs import publish
from tile_walks import CODES, TILE, Walks, tiles
from torch import Tensor
from tqdm import tqdm

from tttstream.evaluation.detection import Baselines, auroc

KINDS = ("exchanged", "vanished", "appeared")
SCORES = ("memory", "dictionary", "frame difference", "MOG2")
CHUNK = 16  # views between two changes of a row
AWAY = 32  # least number of views since a tile was seen, before it changes
EMPTY = 0.2  # share of places that show the mean tile at first
RATE = 30 * 60  # views a minute


@torch.no_grad()
def follow(memory: torch.nn.Module, walks: Walks, basis: Tensor, tokens: int, noise: float) -> dict[str, np.ndarray]:
    """The scores of every revisit, and the kind of change since the previous visit (-1 for none)."""
    rng, rows = np.random.default_rng(3), len(walks.sides)
    draw, state = torch.Generator().manual_seed(4), None
    for row in range(rows):
        walks.worlds[row, torch.from_numpy(rng.random(walks.worlds.shape[1]) < EMPTY)] = 0
    changed = np.full(walks.last.shape, -1)
    kept = torch.zeros_like(walks.worlds)
    baselines, before = [Baselines() for _ in range(rows)], torch.zeros(rows, CODES)
    found, kinds = [], []
    first: Tensor | None = None
    for _ in tqdm(range(0, tokens, CHUNK), disable=None):
        what, where, ask, target, age = walks.walk(CHUNK)
        cells = walks.visited  # [rows, CHUNK], of the next views
        seen = target + noise * torch.randn(target.shape, generator=draw)
        what = torch.cat([what[:, :1] if first is None else first, seen[:, :-1]], 1)
        first = seen[:, -1:]
        answer, state = memory(what, where, ask, state)
        error = (answer[..., :CODES] - seen).square().mean(-1)
        pictures = (seen @ basis).view(rows, CHUNK, 3, TILE, TILE).permute(0, 1, 3, 4, 2)
        pictures = ((pictures + 0.5).clamp(0, 1) * 255).byte().numpy()
        for t in range(CHUNK):
            for row in range(rows):
                cell, view = cells[row, t], seen[row, t]
                scores = [float(error[row, t]), float((kept[row, cell] - view).square().mean())]
                scores += [float((before[row] - view).square().mean()), baselines[row].scores(pictures[row, t])[1]]
                if age[row, t] > 0:
                    found.append(scores)
                    kinds.append(changed[row, cell])
                changed[row, cell] = -1
                kept[row, cell], before[row] = view, view
        for row in range(rows):
            far = (walks.last[row] >= 0) & (walks.time - walks.last[row] >= AWAY) & (changed[row] < 0)
            if far.any():
                cell, kind = rng.choice(np.flatnonzero(far)), int(rng.integers(3))
                empty = not walks.worlds[row, cell].any()
                kind = 2 if empty else kind % 2  # an empty place can only get a tile
                new = walks.pool[int(rng.integers(len(walks.pool)))]
                walks.worlds[row, cell] = torch.zeros(CODES) if kind == 1 else new
                changed[row, cell] = kind
    return {"scores": np.array(found), "kinds": np.array(kinds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", choices=tuple(MEMORIES), default="ttt_mlp_longer")
    parser.add_argument("--weights", type=Path, help="of a network that is trained already, or where to keep them")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--rate", type=float, default=3e-4, help="of training")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--side", type=int, default=12)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pool, held, basis = tiles()
    if args.weights is not None and args.weights.exists():
        network = build(args.memory).eval()
        network.load_state_dict(torch.load(args.weights))
    else:
        network, _ = train(args.memory, args.rate, 0, args.steps, pool)
        if args.weights is not None:
            torch.save(network.state_dict(), args.weights)
    run = follow(network, Walks(held, [args.side] * 4, 90), basis, args.tokens, args.noise)
    scores, kinds = run["scores"], run["kinds"]
    quiet = kinds < 0
    head = ["score", "AUROC", "found at one false alarm a minute", *KINDS]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for column, name in enumerate(SCORES):
        calm, hit = scores[quiet, column], scores[~quiet, column]
        limit = np.quantile(calm, 1 - 1 / RATE)
        cells = [f"{auroc(scores[kinds == kind, column], calm):.3f}" for kind in range(len(KINDS))]
        lines.append(f"| {name} | {auroc(hit, calm):.3f} | {(hit > limit).mean():.2f} | " + " | ".join(cells) + " |")
    lines += ["", f"{args.side**2} places, {len(kinds)} revisits, {int((~quiet).sum())} changes, noise {args.noise}; "]
    lines[-1] += f"{args.memory} after {args.steps} steps of training; {time.strftime('%Y-%m-%d')}."
    publish(lines, args.out)


if __name__ == "__main__":
    main()
