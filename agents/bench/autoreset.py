"""Compares two masks for NEXT_STEP environments: the right one, and the naive one that most recurrent code uses.

    python agents/bench/autoreset.py --minutes 10

The naive mask resets the memory on the row after `done`. In NEXT_STEP environments this row has the last observation of
the old episode, so the first observation of the new episode is read by a used memory. The loss also contains this row,
whose action was not executed. Each agent is also evaluated as in use, with a fresh memory at each first observation.
Writes docs/results/autoreset.md and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from tttstream.io.outputs import TextFile
from tttstream_agents.checkpoint import CHECKPOINT, load_policy
from tttstream_agents.config import Config, build, read
from tttstream_agents.envs import make, vector
from tttstream_agents.evaluate import evaluate
from tttstream_agents.logs import read_csv
from tttstream_agents.ppo import Player, Step
from tttstream_agents.train import train

ROOT = Path(__file__).resolve().parents[2]


class NaivePlayer(Player):
    """The mask that most recurrent code uses."""

    def step(self, deterministic: bool = False) -> Step:
        """One step; `done` resets the memory at the next row."""
        step = super().step(deterministic)
        self.starts, self.valid = step.terminated | step.truncated, torch.ones_like(self.valid)
        return step


def main() -> int:
    """Train and evaluate the agents, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each run")
    parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
    parser.add_argument("--memory", default="ttt_linear")
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "autoreset")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device-name", default="two CPU cores", help="the device, as the page names it")
    args = parser.parse_args()
    base = build({**read("popgym"), "env": args.env, "memory": args.memory, "steps": args.steps}, "the ablation")
    base = dataclasses.replace(base, stop_return=float("inf"))

    curves: dict[str, list[tuple[list[float], list[float]]]] = {"right": [], "naive": [], "SAME_STEP": []}
    used: dict[str, list[float]] = {name: [] for name in curves}
    for seed in range(args.seeds):
        for name in curves:
            config = dataclasses.replace(
                base, seed=seed, autoreset="same_step" if name == "SAME_STEP" else "next_step"
            )  # fmt: skip
            folder = args.out / f"{name}-seed{seed}"
            _train(config, folder, args.minutes, NaivePlayer if name == "naive" else Player)
            rows = [row for row in read_csv(folder / "metrics.csv") if np.isfinite(row["return"])]
            curves[name].append(([row["steps"] for row in rows], [row["return"] for row in rows]))
            used[name].append(_in_use(args.env, folder))
    lines = [
        "# Autoreset: the naive and the right mask",
        "",
        f"{args.env}, {args.memory}, preset popgym, {args.seeds} seed(s), {args.device_name}. "
        f"Torch {torch.__version__}, {datetime.date.today()}. "
        f"Command: `python agents/bench/autoreset.py --env {args.env} --steps {args.steps} --seeds {args.seeds}`. "
        "In use: mean return of 64 episodes with a fresh memory at each first observation. One number for each seed.",
        "",
        "| handling of resets in training | steps | return in training (last 100 episodes) | return in use |",
        "|---|---|---|---|",
    ]
    for name, found in curves.items():
        ends, uses = (", ".join(f"{value:.2f}" for value in part) for part in ([c[1][-1] for c in found], used[name]))
        lines.append(f"| {name} | {found[0][0][-1]:,.0f} | {ends} | {uses} |")
    args.docs.mkdir(parents=True, exist_ok=True)
    with TextFile(args.docs / "autoreset.md") as file:
        file.write("\n".join([*lines, "", "![learning curves](autoreset.png)", ""]))
    _draw(curves, args.docs / "autoreset.png")
    return 0


def _train(config: Config, folder: Path, minutes: float, player: type[Player]) -> None:
    torch.set_num_threads(1)
    with mock.patch("tttstream_agents.train.Player", player):
        resume = (folder / CHECKPOINT).exists()
        train(config, folder, resume=resume, minutes=minutes, tensorboard=False)


def _in_use(env_id: str, folder: Path) -> float:
    """Mean return with the right resets."""
    torch.manual_seed(0)
    envs = vector(lambda: make(env_id), 8, seed=1, autoreset="same_step")
    try:
        return float(evaluate(load_policy(folder, envs), envs, episodes=64).returns.mean())
    finally:
        envs.close()


def _draw(curves: dict[str, list[tuple[list[float], list[float]]]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, found), colour in zip(curves.items(), ("#d6336c", "#868e96", "#1c7ed6"), strict=True):
        for place, (steps, returns) in enumerate(found):
            axes.plot(steps, returns, color=colour, linewidth=1.6, label=None if place else name)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    part = path.with_name(f".{path.name}")
    with open(part, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
