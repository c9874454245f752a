"""Trains an agent whose memory learns while it acts, in a minute or two, and plays it with and without its memory.

    python demos/agent.py                                  trains into out/agent the first time
    python demos/agent.py --episodes 100 --video agent.mp4

The task is to recall the first card of a game (popgym). Without memory means that the memory is reset before every
step. Needs the extra `agents`: pip install 'tttstream[agents]'.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import tttstream
from tttstream_agents import MemoryPolicy, load_policy
from tttstream_agents.checkpoint import read_config
from tttstream_agents.cli import main as command
from tttstream_agents.envs import close, make, vector
from tttstream_agents.evaluate import evaluate


class Forgetful:
    """A policy that treats every step as the first of an episode, so its memory is reset each time."""

    def __init__(self, policy: MemoryPolicy) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def act(self, obs: Any, state: Any, starts: Any = None, rewards: Any = None, **more: Any) -> Any:
        """See MemoryPolicy.act."""
        return self._policy.act(obs, state, torch.ones_like(starts), rewards, **more)


def returns(folder: Path, episodes: int, forgetful: bool) -> float:
    """The mean return of new episodes."""
    config = read_config(folder)
    torch.manual_seed(1)
    envs = vector(
        lambda: make(config.env, None, config.env_args, config.wrappers), min(8, episodes), 1, "same_step", unseen=True
    )
    try:
        policy: Any = load_policy(folder, envs)
        return float(evaluate(Forgetful(policy) if forgetful else policy, envs, episodes).returns.mean())
    finally:
        close(envs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--work", type=Path, default=Path("out/agent"), help="folder of the run, which is trained if it does not exist"
    )
    parser.add_argument("--steps", type=int, default=100_000, help="of training")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--video", help="write a video of the agent to this MP4, with the surprise of its memory")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not (args.work / "summary.json").exists():
        failed = command(["train", "--config", "quick", "--steps", str(args.steps), "--out", str(args.work)])
        if failed:
            return failed
    try:
        kept, emptied = (returns(args.work, args.episodes, forgetful) for forgetful in (False, True))
    except tttstream.TTTStreamError as error:
        print(f"agent: {error}", file=sys.stderr)
        return 2
    print(f"return over {args.episodes} episodes, 1 is perfect: {kept:.2f} with its memory, {emptied:.2f} without")
    return command(["play", str(args.work), "--out", args.video]) if args.video else 0


if __name__ == "__main__":
    sys.exit(main())
