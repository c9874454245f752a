"""Which memories still learn after 1,000 scenes, with the paper's update and with the default: a table and a picture.

    python demos/youth.py --scenes 1000 --out docs

For each inner model: the inner loss early in each scene (how fast it learns), and the loss on other tokens of the
scenes 1, 3, 7 and 31 back, read without learning (how much it remembers). demos/youth_front.py draws the trade-off.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from lives import BACK, WIDTH, WORLDS, default, live, origin
from torch.nn.functional import avg_pool1d

from tttstream_kernels import Update

MODES = {"linear": "token", "mlp": "token", "conv": "frame"}
LABELS = ("the paper's update", "our default")
COLOURS = ("#c44e52", "#2a6f97")
READING = """![Loss early in each scene, and on old ones](../youth.png)

Where scenes share nothing, the paper's update learns ever more slowly (linear and conv in the end hardly at all);
ours stays as it was. Where scenes share projections one map serves them all in part: an ageing memory approaches it, so
that the paper's update keeps more there, while ours learns a new scene faster or as fast. What else could be had is in
[youth_front.md](youth_front.md)."""
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
        "Loss early and late in scenes 2 to 6 and in the last 50, and on scenes further back, asked without learning."
    ]
    (args.out / "results" / "youth.md").write_text("\n".join([*text, "", *lines]) + "\n", encoding="utf-8")
    figure.savefig(args.out / "youth.png", dpi=130)
    print(f"{args.out}/youth.png and {args.out}/results/youth.md")


if __name__ == "__main__":
    main()
