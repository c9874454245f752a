"""Evaluates trained agents in longer episodes: 10^2 to 10^6 steps of the same game.

    python agents/bench/length.py out/popgym/popgym-RepeatFirstEasy-v0/*-seed0 --most 100000

The runs are of RepeatFirstEasy and RepeatPreviousEasy, of their endless forms with a `SampledTimeLimit`, and of the
revisit of places. The table has the return (1 is perfect, -0.5 is chance), milliseconds per step and resident memory of
each trained agent, which runs in its own process. Cards are drawn with replacement, because dealing a card from
popgym's deck takes longer with each card; the symbols of places never change. docs/results/NAME.md is written again
after every agent: a million steps take a quarter of an hour.
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

from tttstream.io.outputs import TextFile
from tttstream_agents.checkpoint import CHECKPOINT, load_policy, read_checkpoint, read_config
from tttstream_agents.config import Config
from tttstream_agents.envs import make, vector
from tttstream_agents.errors import EnvError
from tttstream_agents.ppo import Player

ROOT = Path(__file__).resolve().parents[2]
GAMES = {
    "popgym-RepeatFirstEasy-v0": "tttstream/RepeatFirst-v0",
    "popgym-RepeatPreviousEasy-v0": "tttstream/RepeatPrevious-v0",
    **{f"tttstream/{name}-v0": f"tttstream/{name}-v0" for name in ("RepeatFirst", "RepeatPrevious", "Revisit")},
}
"""The endless form of each game."""
STEPS = {"popgym-RepeatFirstEasy-v0": "51", "popgym-RepeatPreviousEasy-v0": "51"}


def endless(config: Config) -> gym.Env[Any, Any]:
    """The endless form of a run's environment. Raises EnvError if it has none."""
    if config.env not in GAMES:
        raise EnvError(f"there is no endless form of {config.env}: expected {', '.join(GAMES)}")
    own = {} if config.env.startswith("popgym") else config.env_args
    return make(GAMES[config.env], env_args={**own, "steps": 0, "scale": 1.0})


def trained_at(config: Config) -> str:
    """The steps of an episode in training."""
    for one in config.wrappers:
        if isinstance(one, dict) and "SampledTimeLimit" in one:
            return "{low} to {high}".format(**one["SampledTimeLimit"])
    return STEPS.get(config.env) or str(config.env_args.get("steps", "no end"))


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
        print(f"{folder.name}: {steps:,} steps, return {found[-1][0]:.3f} a step", file=sys.stderr, flush=True)
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
        f"Learning rate {config.lr:g} in training; {args.n_envs} environments in parallel, most probable actions, "
        f"{args.device_name}. Trained with: steps of an episode, and of the whole training. Positions: whether the "
        "policy sees the steps since the start of the episode, and the longest period. Cells: return per step (1 is "
        "perfect, -0.5 is chance), CPU milliseconds for a step of all environments, resident memory in MB. "
        f"Command: `python agents/bench/length.py RUN... --most {args.most} --name {args.name}`, with runs of "
        f"{args.made_by}; {datetime.date.today()}, torch {torch.__version__}.",
        "",
        f"| game | memory | seed | trained with | positions | {' | '.join(f'{n:,} steps' for n in lengths)} |",
        f"|---|---|---|---|---|{'---|' * len(lengths)}",
    ]
    args.docs.mkdir(parents=True, exist_ok=True)
    work = functools.partial(measure, lengths=lengths, n_envs=args.n_envs)
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for folder, found in zip(args.runs, pool.imap(work, args.runs), strict=True):
            cells = [f"{r:.2f}, {ms:.1f} ms, {mb:.0f} MB" for r, ms, mb in found]
            config = read_config(folder)
            steps = read_checkpoint(folder / CHECKPOINT)["updates"] * config.rollout * config.n_envs
            setting = f"{trained_at(config)}, {steps // 1000}k in all | {config.period if config.positions else 'no'}"
            memory = f"{config.memory} and places" if config.places else config.memory
            lines.append(f"| {config.env} | {memory} | {config.seed} | {setting} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr, flush=True)
            with TextFile(args.docs / f"{args.name}.md") as file:
                file.write("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
