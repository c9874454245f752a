"""Measures the benefit of a memory's read-out as an additional observation for an agent without memory.

    python agents/bench/readout.py --seeds 3

Stable-Baselines3's PPO is trained without a memory, with a reader of random outer weights that updates after every
observation or after every sixteenth, and with a reader that was trained on random actions. Writes
docs/results/readout.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from tttstream.io.outputs import TextFile
from tttstream_agents import MemoryReader, TTTMemoryObservation, pretrain
from tttstream_agents.envs import make

ROOT = Path(__file__).resolve().parents[2]
ENVS, EPISODES = 8, 64


def readers(env: str, seed: int) -> dict[str, Callable[[], MemoryReader | None]]:
    """For each row of the table, a function that returns its reader (None for no memory)."""
    space = make(env).observation_space

    def trained() -> MemoryReader:
        reader = MemoryReader(space, seed=seed)
        pretrain(reader, lambda: make(env), seed=seed)
        return reader

    return {
        "no memory": lambda: None,
        "random reader": lambda: MemoryReader(space, seed=seed),
        "random reader, mini_batch=16": lambda: MemoryReader(space, seed=seed, options={"mini_batch": 16}),
        "reader trained on random actions": trained,
    }


def score(env: str, reader: MemoryReader | None, steps: int, seed: int) -> float:
    """Mean return of EPISODES episodes with the most probable actions, after training."""

    def played() -> gym.Env[object, object]:
        return Monitor(make(env) if reader is None else TTTMemoryObservation(make(env), reader))

    envs = DummyVecEnv([played] * ENVS)
    model = PPO(
        "MlpPolicy", envs, n_steps=128, batch_size=256, n_epochs=6, learning_rate=1e-3, ent_coef=0.01, seed=seed,
        device="cpu",
    )  # fmt: skip
    model.learn(steps)
    return float(evaluate_policy(model, envs, EPISODES, deterministic=True)[0])


def main() -> int:
    """Train the agents and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="popgym-RepeatFirstEasy-v0")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device-name", default="a CPU core", help="the device, as the page names it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(readers(args.env, 0))
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(args.seeds):
        for name, make_reader in tqdm(readers(args.env, seed).items(), desc=f"seed {seed}", disable=None):
            found[name].append(score(args.env, make_reader(), args.steps, seed))
            print(f"seed {seed}, {name}: {found[name][-1]:.2f}", file=sys.stderr, flush=True)
    lines = [
        "# A memory's read-out as an observation",
        "",
        f"{args.env}, PPO of Stable-Baselines3 with an MLP, {args.steps:,} steps in {ENVS} environments: mean return "
        f"of {EPISODES} episodes with the most probable actions, one number for each seed. Readers: ttt_linear of "
        f"width 32, not trained by the agent. "
        f"On {args.device_name}, torch {torch.__version__}, {datetime.date.today()}. "
        f"Command: `python agents/bench/readout.py --env {args.env} --steps {args.steps} --seeds {args.seeds}`.",
        "",
        "| additional observation | return |",
        "|---|---|",
        *(f"| {name} | {', '.join(f'{value:.2f}' for value in found[name])} |" for name in names),
        "",
    ]
    args.docs.mkdir(parents=True, exist_ok=True)
    with TextFile(args.docs / "readout.md") as file:
        file.write("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
