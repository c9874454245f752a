"""Runs the supervised probe (`tttstream-agents probe`) on several environments, and writes one table.

    python agents/bench/probes.py                        # runs what is missing; docs/results/probe.json and .md
    python agents/bench/probes.py --minutes 0            # only the table

The right action is the label; if several actions are right, any of them is accepted. The memories have equal width, not
equal parameters.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tttstream.io.outputs import TextFile
from tttstream_agents.envs import make
from tttstream_agents.probe import probe

ROOT = Path(__file__).resolve().parents[2]
ENVS = ("RepeatPreviousEasy", "RepeatFirstEasy", "CountRecallEasy", "AutoencodeEasy", "MineSweeperEasy")
MEMORIES = ("ttt", "ttt_linear", "ttt_mlp", "gru", "lstm")
HEADS = 4


def measure(env: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of all memories in one environment."""
    began = time.process_time()
    found = probe(
        functools.partial(make, f"popgym-{env}-v0"), memories=MEMORIES, heads=HEADS, quiet=False, **settings
    )  # fmt: skip
    return {
        "env": env, **found, "settings": settings, "cpu_s": round(time.process_time() - began, 1),
        "date": datetime.date.today().isoformat(), "torch": torch.__version__,
    }  # fmt: skip


def report(records: list[dict[str, Any]], settings: dict[str, Any], page: Path) -> None:
    """Write the table."""
    mine = [record for record in records if record["settings"] == settings]
    if not mine:
        return
    words = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    sizes = ", ".join(f"{one['memory']} {one['parameters']:,}" for one in mine[0]["scores"])
    lines = [
        "# Supervised probes of memories",
        "",
        f"Share of right actions on unseen sequences of random actions, after training on labels ({words}, {HEADS} "
        f"heads, one seed; one CPU thread of a busy machine; {max(r['date'] for r in mine)}). The mean is over all "
        "labelled steps. The label is the action with the highest reward; if several actions have it, each is right. "
        "`frequencies`: always the action that is right most often. Equal width, not equal parameters (in the first "
        f"row: {sizes}). Command: `python agents/bench/probes.py`.",
        "",
        f"| environment | frequencies | {' | '.join(MEMORIES)} | CPU seconds for all |",
        f"|---|---|{'---|' * len(MEMORIES)}---|",
    ]
    for record in mine:
        scores = {one["memory"]: f"{one['accuracy']:.3f}" for one in record["scores"]}
        cells = [f"{record['chance']['accuracy']:.3f}", *(scores[name] for name in MEMORIES), f"{record['cpu_s']:.0f}"]
        lines.append(f"| {record['env']} | {' | '.join(cells)} |")
    with TextFile(page) as file:
        file.write("\n".join([*lines, ""]))


def main() -> int:
    """Run the probes and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further environment after this time")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"updates": args.updates, "sequences": args.sequences, "steps": 128, "batch": 16, "lr": 3e-3, "dim": 64}
    path, until = args.docs / "probe.json", time.monotonic() + 60 * args.minutes

    def load() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        return found

    args.docs.mkdir(parents=True, exist_ok=True)
    for env in args.envs:
        if time.monotonic() > until or any((r["env"], r["settings"]) == (env, settings) for r in load()):
            continue
        record = measure(env, settings)
        with TextFile(path) as file:
            file.write(json.dumps([*load(), record], indent=1) + "\n")
        report(load(), settings, path.with_suffix(".md"))
    report(load(), settings, path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
