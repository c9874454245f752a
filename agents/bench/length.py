"""Evaluates agents on games longer than in training: they play the same game for 10^2 to 10^6 steps.

    python agents/bench/length.py out/popgym/popgym-RepeatFirstEasy-v0/*-seed0 --most 100000

The runs are of RepeatFirstEasy and RepeatPreviousEasy (trained with 51 steps) and of the revisit of places (trained
with 128). The table has the return (1 is perfect, -0.5 is chance), milliseconds per step and resident memory of each
trained agent, which runs in its own process. Cards are drawn with replacement, because dealing a card from popgym's
deck takes longer with each card; the symbols of places never change. docs/results/NAME.md is written again after every
agent: a million steps take a quarter of an hour.
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
from tttstream_agents.config import Config
from tttstream_agents.envs import make, vector
from tttstream_agents.errors import EnvError
from tttstream_agents.ppo import Player

ROOT = Path(__file__).resolve().parents[2]
SUITS = 4
GAMES = {"popgym-RepeatFirstEasy-v0": 0, "popgym-RepeatPreviousEasy-v0": 4}


class Endless(gym.Env[Any, Any]):
    """RepeatFirst or RepeatPrevious without an end: the right action repeats the suit of a card; reward +1 or -1.

    back: the number of cards since that card, 1 for the current one; 0 for the first card of the episode.
    """

    def __init__(self, back: int = 0) -> None:
        self.observation_space = self.action_space = spaces.Discrete(SUITS)
        self.back = back

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Show the first card."""
        super().reset(seed=seed)
        self.shown = [int(self.np_random.integers(SUITS))]
        return self.shown[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show another card. The reward is 0 until `back` cards were shown."""
        place = len(self.shown) - self.back if self.back else 0
        asked = self.shown[place] if place >= 0 else None
        reward = 0.0 if asked is None else 1.0 if int(action) == asked else -1.0
        card = int(self.np_random.integers(SUITS))
        self.shown = [*self.shown, card][-self.back :] if self.back else self.shown
        return card, reward, False, False, {}


def endless(config: Config) -> gym.Env[Any, Any]:
    """The endless form of a run's environment. Raises EnvError if it has none."""
    if config.env == "tttstream/Revisit-v0":
        return make(config.env, env_args={**config.env_args, "steps": 0, "scale": 1.0})
    if config.env not in GAMES:
        raise EnvError(f"there is no endless form of {config.env}: expected {', '.join(GAMES)}, tttstream/Revisit-v0")
    return Endless(GAMES[config.env])


def measure(folder: Path, lengths: list[int], n_envs: int) -> list[tuple[float, float, float]]:
    """At each length: (return per step so far, CPU milliseconds for a step of all environments, resident MB)."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    envs = vector(functools.partial(endless, read_config(folder)), n_envs, 0)
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
    """Evaluate the runs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `tttstream-agents train --out` wrote")
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="agents in parallel")
    parser.add_argument("--made-by", default="`agents/bench/popgym_bench.py`", help="the command that made the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--name", default="length", help="name of the page in --docs")
    parser.add_argument("--device-name", default="two CPU cores, one thread", help="the device, as the page names it")
    args = parser.parse_args()
    lengths = [length for length in (100, 1000, 10_000, 100_000, 1_000_000) if length <= args.most]
    config = read_config(args.runs[0])
    lines = [
        "# Games longer than in training",
        "",
        f"Trained with 51 steps, the revisit of places with 128 (learning rate {config.lr:g}, stopped at a mean return "
        f"of {config.stop_return:g}), {args.n_envs} environments in parallel, most probable actions, "
        f"{args.device_name}. Cells: return per step (1 is perfect, -0.5 is chance), CPU milliseconds for a step of "
        "all environments, resident memory in MB. "
        f"Command: `python agents/bench/length.py RUN... --most {args.most} --name {args.name}`, with runs of "
        f"{args.made_by}; {datetime.date.today()}, torch {torch.__version__}.",
        "",
        f"| game | memory | seed | {' | '.join(f'{length:,} steps' for length in lengths)} |",
        f"|---|---|---|{'---|' * len(lengths)}",
    ]
    args.docs.mkdir(parents=True, exist_ok=True)
    work = functools.partial(measure, lengths=lengths, n_envs=args.n_envs)
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for folder, found in zip(args.runs, pool.imap(work, args.runs), strict=True):
            cells = [f"{r:.2f}, {ms:.1f} ms, {mb:.0f} MB" for r, ms, mb in found]
            config = read_config(folder)
            lines.append(f"| {config.env} | {config.memory} | {config.seed} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
            file = TextFile(args.docs / f"{args.name}.md")
            with file:
                file.write("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
