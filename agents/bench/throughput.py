"""Compares environment steps per CPU second of training (acting and learning) with sb3-contrib's RecurrentPPO-LSTM.

    python agents/bench/throughput.py --updates 10

All use the same environments, rollouts, batches and epochs, in one process with one thread. They take turns, one update
each, so that other load on the machine affects all of them equally. Writes docs/results/throughput.md.

    python agents/bench/throughput.py --pixels --updates 3

uses pictures of 84 x 84 random pixels, NatureCNN for all, smaller rollouts and fewer epochs, and writes
docs/results/throughput_pixels.md. It takes about two minutes of processor time.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import sb3_contrib
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from tqdm import tqdm

from tttstream.io.outputs import TextFile
from tttstream_agents.config import Config
from tttstream_agents.envs import make
from tttstream_agents.sb3 import RecurrentPPO
from tttstream_agents.train import Run

ROOT = Path(__file__).resolve().parents[2]


class Sizes(NamedTuple):
    """Of an update: environments, steps of each, steps of a batch, epochs."""

    envs: int
    steps: int
    batch: int
    epochs: int


NUMBERS, PIXELS = Sizes(16, 128, 512, 4), Sizes(8, 64, 256, 2)
YARDSTICK = "sb3-contrib RecurrentPPO, LSTM 256 (its default)"


class Pictures(gym.Env[Any, Any]):
    """Noise of 84 x 84 pixels, in episodes of 200 steps."""

    observation_space, action_space = spaces.Box(0, 255, (84, 84, 1), np.uint8), spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.pool, self.time = self.np_random.integers(0, 256, (8, 84, 84, 1), np.uint8), 0
        return self.pool[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The next picture."""
        self.time += 1
        return self.pool[self.time % 8], float(action), False, self.time == 200, {}


def made(env: str) -> gym.Env[Any, Any]:
    """An environment by name, or `Pictures`."""
    return Pictures() if env == "pixels" else make(env)


def sizes_of(env: str) -> Sizes:
    """Of the updates in an environment."""
    return PIXELS if env == "pixels" else NUMBERS


def sb3(kind: Any, policy: str, env: str, **policy_kwargs: Any) -> tuple[Callable[[], Any], Any]:
    """(one update, the policy) of a RecurrentPPO."""
    envs, steps, batch, epochs = sizes_of(env)
    model = kind(
        policy, DummyVecEnv([lambda: made(env)] * envs), n_steps=steps, batch_size=batch, n_epochs=epochs, seed=0,
        device="cpu", policy_kwargs=policy_kwargs,
    )  # fmt: skip
    return lambda: model.learn(envs * steps, reset_num_timesteps=False), model.policy


def own(memory: str, env: str) -> tuple[Callable[[], Any], Any]:
    """(one update, the policy) of our own PPO."""
    envs, steps, batch, epochs = sizes_of(env)
    sizes: dict[str, Any] = {"n_envs": envs, "rollout": steps, "minibatch": batch, "epochs": epochs}
    run = Run(Config(env=env, memory=memory, cnn="nature", target_kl=0.0, **sizes), lambda: made(env))
    return run.update, run.policy


def contestants(env: str) -> dict[str, tuple[Callable[[], Any], Any]]:
    """By name, all fresh."""
    stock = sb3_contrib.RecurrentPPO
    if env == "pixels":
        return {
            YARDSTICK: sb3(stock, "CnnLstmPolicy", env),
            "tttstream_agents.sb3.RecurrentPPO, ttt_linear": sb3(RecurrentPPO, "TTTCnnPolicy", env),
            "tttstream-agents train, ttt_linear": own("ttt_linear", env),
            "tttstream-agents train, ttt": own("ttt", env),
            "tttstream-agents train, ttt_mlp": own("ttt_mlp", env),
            "tttstream-agents train, gru": own("gru", env),
        }
    return {
        YARDSTICK: sb3(stock, "MlpLstmPolicy", env),
        "sb3-contrib RecurrentPPO, LSTM 64": sb3(stock, "MlpLstmPolicy", env, lstm_hidden_size=64),
        "tttstream_agents.sb3.RecurrentPPO, ttt_linear": sb3(RecurrentPPO, "TTTPolicy", env),
        "tttstream_agents.sb3.RecurrentPPO, ttt_mlp": sb3(RecurrentPPO, "TTTPolicy", env, memory="ttt_mlp"),
        "tttstream_agents.sb3.RecurrentPPO, lstm": sb3(RecurrentPPO, "TTTPolicy", env, memory="lstm"),
        "tttstream-agents train, ttt": own("ttt", env),
        "tttstream-agents train, ttt_linear": own("ttt_linear", env),
        "tttstream-agents train, ttt_mlp": own("ttt_mlp", env),
        "tttstream-agents train, gru": own("gru", env),
        "tttstream-agents train, lstm": own("lstm", env),
    }


def measure(env: str, updates: int) -> dict[str, tuple[float, int]]:
    """(environment steps per CPU second, parameters) of each: the median of some updates, after one to warm up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    taking_part = contestants(env)
    seconds: dict[str, list[float]] = {name: [] for name in taking_part}
    with tqdm(total=(updates + 1) * len(taking_part), desc=env, disable=None) as bar:
        for _ in range(updates + 1):
            for name, (update, _) in taking_part.items():
                bar.set_postfix_str(name, refresh=False)
                began = time.process_time()
                update()
                seconds[name].append(time.process_time() - began)
                bar.update()
    sizes = sizes_of(env)
    return {
        name: (
            sizes.envs * sizes.steps / float(np.median(seconds[name][1:])),
            sum(p.numel() for p in policy.parameters()),
        )
        for name, (_, policy) in taking_part.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--envs", nargs="+", default=["popgym-RepeatFirstEasy-v0", "CartPole-v1"])
    parser.add_argument("--pixels", action="store_true", help="random pictures instead of --envs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device-name", default="one CPU core", help="the device, as the page names it")
    args = parser.parse_args(argv)
    args.envs = ["pixels"] if args.pixels else args.envs
    chosen = "--pixels" if args.pixels else f"--envs {' '.join(args.envs)}"
    found = {env: measure(env, args.updates) for env in args.envs}
    sizes = sizes_of(args.envs[0])
    lines = [
        "# Training throughput",
        "",
        f"Environment steps per CPU second of acting and learning: {sizes.envs} environments, {sizes.steps} steps, "
        f"batches of {sizes.batch}, {sizes.epochs} epochs, median of {args.updates} updates. The programs take turns "
        f"in one process. In brackets: relative to {YARDSTICK}. On {args.device_name} ({platform.machine()}), torch "
        f"{torch.__version__}, sb3-contrib {sb3_contrib.__version__}, {datetime.date.today()}. "
        f"Command: `python agents/bench/throughput.py --updates {args.updates} {chosen}`.",
        "",
        f"| training | parameters | {' | '.join(args.envs)} |",
        f"|---|---|{'---|' * len(args.envs)}",
    ]
    for name in found[args.envs[0]]:
        cells = [f"{rates[name][0]:,.0f} ({rates[name][0] / rates[YARDSTICK][0]:.2f}×)" for rates in found.values()]
        lines.append(f"| {name} | {found[args.envs[0]][name][1]:,} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    args.docs.mkdir(parents=True, exist_ok=True)
    with TextFile(args.docs / ("throughput_pixels.md" if args.pixels else "throughput.md")) as file:
        file.write("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
