"""Runs the supervised probe (`tttstream-agents probe`) on several environments, and writes one table.

    python agents/bench/probes.py                        # runs what is missing; docs/results/probe.json and .md
    python agents/bench/probes.py --minutes 0            # only the table

The right action is the label; if several actions are right, any of them is accepted. The memories have equal width, not
equal parameters. Columns are memories, some with an option (a mini-batch of one token, K = 1) or with the gate of a
policy.
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
from tttstream_agents.probe import PLACES, probe

ROOT = Path(__file__).resolve().parents[2]
ENVS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (f"popgym-{name}-v0", {}) for name in (
            "RepeatPreviousEasy", "RepeatPreviousMedium", "RepeatFirstEasy", "CountRecallEasy", "AutoencodeEasy",
            "ConcentrationEasy", "MineSweeperEasy",
        )
    },
    "Revisit-4x4": ("tttstream/Revisit-v0", {"side": 4, "steps": 128}),
}  # fmt: skip
"""By name: the id and the arguments."""
MEMORIES = (
    "ttt", "ttt_linear", "ttt_linear:mini_batch=1", "ttt_mlp", "ttt_mlp:mini_batch=1", "delta", "gated_delta", "gru",
    "lstm",
)  # fmt: skip
GATED = ("ttt", "ttt_linear", "gru")
BOARD = {"PoseObservation": {"keys": "action", "period": 8, "waves": 4, "grid": [4, 4]}}
PLACED: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "MineSweeperEasy": ([BOARD], {"at": "pose", "ask": "grid", "width": 4, "features": 64}),
    "Revisit-4x4": ([], {"at": "here", "ask": "asked"}),
}
"""The environments in which a memory of places is scored, with their wrappers and the description of places."""
HEADS, AT_ONCE = 4, 3
"""AT_ONCE: memories between two savings."""


def columns() -> dict[str, tuple[str, bool]]:
    """By title: a memory and whether it has a gate."""
    plain = {name.replace(":mini_batch=1", ", K = 1"): (name, False) for name in (PLACES, *MEMORIES)}
    return plain | {f"{name}, gate": (name, True) for name in GATED}


def measure(env: str, memories: list[str], gate: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of some memories in one environment."""
    began, (name, arguments) = time.process_time(), ENVS[env]
    wrappers, places = PLACED[env] if memories == [PLACES] else ([], None)
    found = probe(
        functools.partial(make, name, env_args=arguments, wrappers=wrappers), heads=HEADS, gate=gate, quiet=False,
        memories=[] if places else memories, places=places, **settings,
    )  # fmt: skip
    return {
        "env": env, **found, "gate": gate, "settings": settings, "cpu_s": round(time.process_time() - began, 1),
        "date": datetime.date.today().isoformat(), "torch": torch.__version__,
    }  # fmt: skip


def scored(records: list[dict[str, Any]]) -> dict[tuple[str, str, bool], dict[str, Any]]:
    """The scores by environment, memory and gate."""
    return {
        (record["env"], one["memory"], record.get("gate", False)): one for record in records for one in record["scores"]
    }


def report(records: list[dict[str, Any]], settings: dict[str, Any], page: Path) -> None:
    """Write the table."""
    mine = [record for record in records if record["settings"] == settings]
    if not mine:
        return
    titles, scores = columns(), scored(mine)
    envs = [env for env in ENVS if any(record["env"] == env for record in mine)]
    words = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    sizes = ", ".join(
        f"{title} {scores[(envs[0], *key)]['parameters']:,}"
        for title, key in titles.items()
        if (envs[0], *key) in scores
    )
    lines = [
        "# Supervised probes of memories",
        "",
        f"Share of right actions on unseen sequences of random actions, after training on labels ({words}, {HEADS} "
        f"heads, one seed; one CPU thread of a busy machine; {max(r['date'] for r in mine)}). The mean is over all "
        "labelled steps. The label is the action with the highest reward; if several actions have it, each is right. "
        "`frequencies`: always the action that is right most often. K = 1: a mini-batch of one token; the default is "
        "16. places: a memory of places and no other (`--places`); in MineSweeper these are the cells of the board, "
        "and the place of the agent is that of its last action. gate: `train --gate`. Equal width, not equal "
        f"parameters (in the first row: {sizes}). Command: `python agents/bench/probes.py`; "
        f"{sum(r['cpu_s'] for r in mine):.0f} CPU seconds.",
        "",
        f"| environment | frequencies | {' | '.join(titles)} |",
        f"|---|---|{'---|' * len(titles)}",
    ]
    for env in envs:
        chance = next(record["chance"]["accuracy"] for record in mine if record["env"] == env)
        cells = [f"{scores[(env, *key)]['accuracy']:.3f}" if (env, *key) in scores else "" for key in titles.values()]
        lines.append(f"| {env} | {chance:.3f} | {' | '.join(cells)} |")
    with TextFile(page) as file:
        file.write("\n".join([*lines, ""]))


def main() -> int:
    """Run the probes and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="start nothing further after this time")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"updates": args.updates, "sequences": args.sequences, "steps": 128, "batch": 16, "lr": 3e-3, "dim": 64}
    path, until = args.docs / "probe.json", time.monotonic() + 60 * args.minutes

    def load() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        return found

    args.docs.mkdir(parents=True, exist_ok=True)

    def left(env: str, gate: bool) -> list[str]:
        known = scored([record for record in load() if record["settings"] == settings])
        names = [name for name, gated in columns().values() if gated == gate and (env, name, gate) not in known]
        if PLACES in names and env in PLACED:
            return [PLACES]  # alone, since its wrappers change the observations
        return [name for name in names if name != PLACES]

    for env, gate in ((env, gate) for gate in (False, True) for env in args.envs):
        while (some := left(env, gate)[:AT_ONCE]) and time.monotonic() < until:
            record = measure(env, some, gate, settings)
            with TextFile(path) as file:
                file.write(json.dumps([*load(), record], indent=1) + "\n")
            report(load(), settings, path.with_suffix(".md"))
    report(load(), settings, path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
