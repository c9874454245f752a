"""Which memories stay young: 1,000 scenes one after another, with the paper's update and with ours; a table, a picture.

    python demos/youth.py --scenes 1000 --out docs

For each inner model: the inner loss early in each scene (what it costs to learn something new), and the loss on other
tokens of the scenes 1, 3, 7 and 31 back, asked without learning (what is still remembered).
"""

import argparse
import datetime
import platform
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from tttstream import TTTLayer
from tttstream.testing import scene
from tttstream_kernels import Update

DIM, HEADS, ROWS, TOKENS, BACK = 32, 2, 4, 1024, (1, 3, 7, 31)
LAYERS = {"linear": {}, "mlp": {}, "conv": {"causal": "frame", "grid": (8, 8)}}
UPDATES = {"the paper's update": Update(), "our default": None}
COLOURS = {"the paper's update": "#c44e52", "our default": "#2a6f97"}


def live(inner: str, update: Update | None, scenes: int) -> tuple[list[float], list[float], dict[int, float]]:
    """Loss early and late in each scene, and mean loss on scenes further back."""
    torch.manual_seed(0)
    layer = TTTLayer(DIM, HEADS, inner, update=update, **LAYERS[inner])
    unit = max(64, layer.tokens)
    state, early, late, recall = None, [], [], {back: [] for back in BACK}
    with torch.no_grad():
        for number in tqdm(range(scenes), desc=inner, disable=None):
            x = scene("subspace", number, dim=DIM, rows=ROWS, tokens=TOKENS)
            _, state, loss = layer(x, state, return_loss=True)
            early.append(loss.before[..., 16 : 16 + unit].mean().item())
            late.append(loss.before[..., -2 * unit :].mean().item())
            if number % 10 == 9 and number > max(BACK):
                for back in BACK:
                    probe = scene("subspace", number - back, dim=DIM, rows=ROWS, tokens=128, part=1)
                    recall[back].append(layer(probe, state, return_loss=True, learn=False)[2].before.mean().item())
    return early, late, {back: sum(values) / max(1, len(values)) for back, values in recall.items()}


def smooth(values: list[float]) -> list[float]:
    window = max(1, len(values) // 50)
    return [
        sum(values[max(0, i - window) : i + 1]) / len(values[max(0, i - window) : i + 1]) for i in range(len(values))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/youth"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = plt.subplots(2, len(LAYERS), figsize=(12, 6), height_ratios=(3, 2), layout="constrained")
    lines = [
        f"Command `python demos/youth.py --scenes {args.scenes} --out docs`, {datetime.date.today()}, one thread of a "
        f"{platform.machine()} CPU, torch {torch.__version__}. Scenes of {TOKENS} tokens in new four-dimensional "
        f"subspaces, D = {DIM // HEADS}, mean of {ROWS} streams.",
        "",
        "| inner model | update | early, scenes 1–5 | early, last 20 | late, scenes 1–5 | late, last 20 | "
        + " | ".join(f"recall {back} back" for back in BACK) + " |",
        "| --- " * (6 + len(BACK)) + "|",
    ]  # fmt: skip
    for column, inner in enumerate(LAYERS):
        for place, (name, update) in enumerate(UPDATES.items()):
            early, late, recall = live(inner, update, args.scenes)
            cells = [sum(v) / len(v) for v in (early[:5], early[-20:], late[:5], late[-20:])] + list(recall.values())
            lines.append(f"| {inner} | {name} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
            axes[0, column].plot(early, color=COLOURS[name], alpha=0.2, linewidth=0.7)
            axes[0, column].plot(smooth(early), color=COLOURS[name], label=name)
            where = [x + 0.4 * place - 0.2 for x in range(len(BACK))]
            axes[1, column].bar(where, recall.values(), 0.38, color=COLOURS[name])
        axes[0, column].set(title=inner, xlabel="scene", ylim=(0, None))
        axes[1, column].set(xlabel="scenes back", xticks=range(len(BACK)), xticklabels=BACK)
    axes[0, 0].set_ylabel("loss early in the scene")
    axes[1, 0].set_ylabel("loss when asked again")
    axes[0, 0].legend(frameon=False)
    (args.out / "results").mkdir(parents=True, exist_ok=True)
    (args.out / "results" / "youth.md").write_text("# How memories age\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    figure.savefig(args.out / "youth.png", dpi=130)
    print(f"{args.out}/youth.png and {args.out}/results/youth.md")


if __name__ == "__main__":
    main()
