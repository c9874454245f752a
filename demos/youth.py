"""Measures how well memories learn after 1,000 scenes, with the paper's and the default update: a table and a picture.

    python demos/youth.py --scenes 1000 --out docs

For each inner model: the inner loss early in each scene (how fast it learns), and the loss on other tokens of the
scenes 1, 3, 7 and 31 back, read without learning (how much it recalls). demos/youth_front.py draws the trade-off.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from lives import BACK, WIDTH, WORLDS, default, live, origin
from runs import publish
from torch.nn.functional import avg_pool1d

from tttstream_kernels import Update

MODES = {"linear": "token", "mlp": "token", "conv": "frame"}
LABELS = ("the paper's update", "our default")
COLOURS = ("#c44e52", "#2a6f97")
READING = """![Loss early in each scene, and on old ones](../youth.png)

If scenes share nothing, the paper's update learns more and more slowly (linear and conv hardly at all in the end). The
default update stays as fast as at the start. If scenes share projections, one map partly fits all of them. The weights
of an ageing memory approach this map, so the paper's update recalls more there; the default learns a new scene at least
as fast. Other settings are compared in [youth_front.md](youth_front.md)."""
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 11}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000, help="at least 60")
    parser.add_argument("--out", type=Path, default=Path("out/youth"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), height_ratios=(3, 2), sharey="row", layout="constrained")
    heads = ["early, 2–6", "early, last 50", "late, 2–6", "late, last 50", *(f"{back} back" for back in BACK)]
    lines = ["| scenes | model | update | " + " | ".join(heads) + " |", "| --- " * 3 + "| ---: " * len(heads) + "|"]
    for world in WORLDS:
        for (name, mode), (above, below) in zip(MODES.items(), axes.T, strict=True):
            for place, update in enumerate((Update(), default(name, mode))):
                life = live(name, mode, update, world, args.scenes)
                means = [part.mean() for loss in life[:2] for part in (loss[1:6], loss[-50:])]
                cells = " | ".join(f"{float(cell):.1f}" for cell in (*means, *life.recall))
                lines.append(f"| {world} | {name}, {mode} mode | {LABELS[place]} | {cells} |")
                if world == "share nothing":
                    smooth = avg_pool1d(life.early.mT, 21, 1, 10, count_include_pad=False)[0]
                    above.plot(life.early, color=COLOURS[place], alpha=0.25, linewidth=0.6)
                    above.plot(smooth, color=COLOURS[place], linewidth=2, label=LABELS[place])
                    below.bar(torch.arange(4) + 0.4 * place - 0.2, life.recall[:, 0], 0.38, color=COLOURS[place])
            above.set(title=f"{name}, {mode} mode", xlabel="scene", xlim=(0, args.scenes), ylim=(0, 1.1 * WIDTH))
            below.set(xlabel="scenes back", xticks=range(4), xticklabels=BACK, ylim=(0, 1.1 * WIDTH))
            for row in (above, below):
                row.axhline(WIDTH, color="0.5", linewidth=1, linestyle=(0, (4, 3)))
    axes[0, 0].set_ylabel("loss early in a new scene")
    axes[1, 0].set_ylabel("loss on an old scene")
    axes[0, 0].annotate("chance", (0, WIDTH), (4, 4), textcoords="offset points", color="0.4")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=2)
    (args.out / "results").mkdir(parents=True, exist_ok=True)
    text = ["# How memories age", "", origin(f"demos/youth.py --scenes {args.scenes} --out docs"), "", READING, ""]
    text += [
        "Loss early and late in scenes 2 to 6 and in the last 50, and loss on earlier scenes, read without learning."
    ]
    publish([*text, "", *lines], args.out / "results" / "youth.md", quiet=True)
    figure.savefig(args.out / "youth.png", dpi=130)
    print(f"{args.out}/youth.png and {args.out}/results/youth.md")


if __name__ == "__main__":
    main()
