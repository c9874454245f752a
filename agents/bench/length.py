"""How far a memory carries: agents trained on RepeatFirstEasy (51 steps) play the same game for 10^2 to 10^6 steps.

    python agents/bench/length.py out/popgym/popgym-RepeatFirstEasy-v0/*-seed0 --most 100000

Return (1 is perfect, -0.5 is chance), milliseconds a step and resident memory, for each trained agent, which has a
process of its own. The cards are drawn with replacement, since popgym's own deck takes longer with every card dealt.
Writes docs/results/length.md, anew after every agent: a million steps take a quarter of an hour each.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import torch
from gymnasium import spaces

from tttstream.io.outputs import TextFile
from tttstream_agents.checkpoint import load_policy, read_config
from tttstream_agents.envs import vector
from tttstream_agents.ppo import Player

ROOT = Path(__file__).resolve().parents[2]
SUITS = 4


class Endless(gym.Env[Any, Any]):
    """RepeatFirst without an end: say the first card's suit again, for +1 or -1 a step."""

    def __init__(self) -> None:
        self.observation_space = self.action_space = spaces.Discrete(SUITS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Show the first card."""
        super().reset(seed=seed)
        self.first = int(self.np_random.integers(SUITS))
        return self.first, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show another card."""
        return int(self.np_random.integers(SUITS)), 1.0 if int(action) == self.first else -1.0, False, False, {}


def measure(folder: Path, lengths: list[int], n_envs: int) -> list[tuple[float, float, float]]:
    """(return a step since the beginning, CPU milliseconds a step of all environments, MB resident) at each length."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    envs = vector(Endless, n_envs, 0)
    player = Player(envs, load_policy(folder, envs))
    earned, found, steps, since = 0.0, [], 0, time.process_time()
    for length in lengths:
        before = steps
        while steps < length:
            earned += float(player.step(deterministic=True).reward.mean())
            steps += 1
        took = time.process_time() - since
        since += took
        memory = psutil.Process(os.getpid()).memory_info().rss / 1e6
        found.append((earned / steps, 1e3 * took / (steps - before), memory))
    return found


def main() -> int:
    """See the file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `tttstream-agents train --out` wrote")
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="agents side by side")
    parser.add_argument("--made-by", default="`agents/bench/popgym_bench.py`", help="what the table says of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device-name", default="two CPU cores, one thread", help="what it was measured on")
    args = parser.parse_args()
    lengths = [length for length in (100, 1000, 10_000, 100_000, 1_000_000) if length <= args.most]
    config = read_config(args.runs[0])
    lines = [
        "# RepeatFirst, longer than it was trained",
        "",
        f"Trained at 51 steps (learning rate {config.lr:g}, seed {config.seed}, stopped at a mean return of "
        f"{config.stop_return:g}), {args.n_envs} environments side by side, likeliest actions, {args.device_name}. "
        "Cells: return a step (1 is perfect, -0.5 is chance), CPU milliseconds a step of all of them, MB resident. "
        f"Command: `python agents/bench/length.py RUN... --most {args.most}`, with runs of {args.made_by}; "
        f"{datetime.date.today()}, torch {torch.__version__}.",
        "",
        f"| memory | {' | '.join(f'{length:,} steps' for length in lengths)} |",
        f"|---|{'---|' * len(lengths)}",
    ]
    args.docs.mkdir(parents=True, exist_ok=True)
    work = functools.partial(measure, lengths=lengths, n_envs=args.n_envs)
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for folder, found in zip(args.runs, pool.imap(work, args.runs), strict=True):
            cells = [f"{r:.2f}, {ms:.1f} ms, {mb:.0f} MB" for r, ms, mb in found]
            lines.append(f"| {read_config(folder).memory} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
            file = TextFile(args.docs / "length.md")
            with file:
                file.write("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
