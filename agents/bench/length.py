"""How far a memory carries: agents trained on short episodes play the same game for 10^2 to 10^6 steps.

    python agents/bench/length.py out/popgym/popgym-RepeatFirstEasy-v0/*-seed0 --most 100000

Runs of RepeatFirstEasy and RepeatPreviousEasy (trained at 51 steps) and of the revisit of places (trained at 128).
Return (1 is perfect, -0.5 is chance), milliseconds a step and resident memory, for each trained agent, which has a
process of its own. The cards are drawn with replacement, since popgym's own deck takes longer with every card dealt;
places keep their symbols for ever. Writes docs/results/NAME.md, anew after every agent: a million steps take a
quarter of an hour each.
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
    """RepeatFirst or RepeatPrevious without an end: say a card's suit again, for +1 or -1 a step.

    back: how many cards ago it was shown, this one being 1 ago; 0 for the first of all.
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
        """Show another card. Before so many were shown the reward is 0."""
        place = len(self.shown) - self.back if self.back else 0
        asked = self.shown[place] if place >= 0 else None
        reward = 0.0 if asked is None else 1.0 if int(action) == asked else -1.0
        card = int(self.np_random.integers(SUITS))
        self.shown = [*self.shown, card][-self.back :] if self.back else self.shown
        return card, reward, False, False, {}


def endless(config: Config) -> gym.Env[Any, Any]:
    """The environment of a run without an end. Raises EnvError where there is none."""
    if config.env == "tttstream/Revisit-v0":
        return make(config.env, env_args={**config.env_args, "steps": 0, "scale": 1.0})
    if config.env not in GAMES:
        raise EnvError(f"there is no endless form of {config.env}: expected {', '.join(GAMES)}, tttstream/Revisit-v0")
    return Endless(GAMES[config.env])


def measure(folder: Path, lengths: list[int], n_envs: int) -> list[tuple[float, float, float]]:
    """(return a step since the beginning, CPU milliseconds a step of all environments, MB resident) at each length."""
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
    """See the file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that `tttstream-agents train --out` wrote")
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--n-envs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1, help="agents side by side")
    parser.add_argument("--made-by", default="`agents/bench/popgym_bench.py`", help="what the table says of the runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--name", default="length", help="of the page in --docs")
    parser.add_argument("--device-name", default="two CPU cores, one thread", help="what it was measured on")
    args = parser.parse_args()
    lengths = [length for length in (100, 1000, 10_000, 100_000, 1_000_000) if length <= args.most]
    config = read_config(args.runs[0])
    lines = [
        "# Games longer than in training",
        "",
        f"Trained at 51 steps, of places at 128 (learning rate {config.lr:g}, stopped at a mean return of "
        f"{config.stop_return:g}), {args.n_envs} environments side by side, likeliest actions, {args.device_name}. "
        "Cells: return a step (1 is perfect, -0.5 is chance), CPU milliseconds a step of all of them, MB resident. "
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
