"""Runs a short training with the example of each adapter, and writes docs/results/adapters.md.

    make rllib                                  # once: the separate Python environment for Ray
    python agents/bench/adapters.py --steps 100000

Each example runs in its own process and prints its result at the end. Libraries that are not installed are left out.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

import torch

from tttstream.io.outputs import TextFile

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"sb3_ppo": "--steps", "torchrl_ppo": "--steps", "rllib_ppo": "--steps", "cleanrl_ppo": "--total-timesteps"}


def main() -> int:
    """Run the examples and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--rllib-python", type=Path, default=ROOT / ".venv-rllib" / "bin" / "python")
    parser.add_argument("--device-name", default="two CPU cores, one thread", help="the device, as the page names it")
    args = parser.parse_args()
    lines = [
        "# Short training runs with each adapter",
        "",
        f"POPGym RepeatFirstEasy (1 is perfect, -0.5 is chance), memory ttt_linear, 16 environments, PPO of each "
        f"library, one seed; mean return of the last 100 episodes (Stable-Baselines3: of 64 episodes with the most "
        f"probable actions). On {args.device_name} ({platform.machine()}), torch {torch.__version__}, "
        f"{datetime.date.today()}. Command: `python agents/bench/adapters.py --steps {args.steps}`. Each row is the "
        "output of the program in agents/examples. The seconds of RLlib are wall time, because it uses several "
        "processes; those of the others are CPU time.",
        "",
        "| example | library | steps | seconds | return |",
        "|---|---|---|---|---|",
    ]
    for name, option in EXAMPLES.items():
        python = args.rllib_python if name == "rllib_ppo" else Path(sys.executable)
        if not python.exists():
            print(f"{name} is left out: there is no {python} (make rllib)", file=sys.stderr)
            continue
        command = [str(python), "-W", "ignore", str(ROOT / "agents" / "examples" / f"{name}.py")]
        done = subprocess.run([*command, option, str(args.steps)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} failed:\n{done.stderr}", file=sys.stderr)
            return 1
        found = json.loads(done.stdout.splitlines()[-1])
        print(done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
        seconds = found.get("cpu_seconds", found.get("seconds"))
        lines.append(f"| {name}.py | {found['library']} | {found['steps']:,} | {seconds} | {found['return']:.2f} |")
    args.docs.mkdir(parents=True, exist_ok=True)
    with TextFile(args.docs / "adapters.md") as file:
        file.write("\n".join([*lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
