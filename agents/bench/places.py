"""Does a map of places serve an agent without memory? A supervised probe in MiniGrid's Memory, with a view of 3 cells.

    python agents/bench/places.py

A key or a ball lies in the room where the agent begins. The label of a step is which of them, at the steps at which it
was seen before in the episode and is out of view now. Play is random. Rows are memories, with and without the pose
(`PoseObservation`) or the map (`MapObservation`). Writes docs/results/places.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from tttstream.io.outputs import TextFile
from tttstream_agents import MapObservation, PoseObservation
from tttstream_agents.answers import collect
from tttstream_agents.envs import Seen, make
from tttstream_agents.probe import probe

ROOT = Path(__file__).resolve().parents[2]
AROUND = [[x, y] for x in range(-3, 2) for y in range(-1, 2)]
HEADS = 4
VIEW, CELL, KINDS = 9, Seen.CELL, {"key": 5, "ball": 6}
"""Cells of a view, the choices of a cell, and the numbers that MiniGrid gives to the two kinds of things."""


class Cue(gym.Wrapper[Any, Any, Any, Any]):
    """MiniGrid's Memory with info["answer"]: 0 for a key in the first room, 1 for a ball, -1 where it is in view or was
    not seen yet."""

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        world: Any = self.unwrapped
        place = 1, world.height // 2 - 1
        in_view = world.agent_sees(*place)
        self.seen = self.seen or in_view
        kind = list(KINDS).index(world.grid.get(*place).type)
        return {**info, "answer": kind if self.seen and not in_view else -1}

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        obs, info = self.env.reset(**given)
        self.seen = False
        return obs, self._told(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, self._told(info)


def game() -> gym.Env[Any, Any]:
    """Memory with a view of three cells."""
    return Cue(make("MiniGrid-MemoryS7-v0", env_args={"agent_view_size": 3}))


SEEN: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "the view": game,
    "the view and the pose": lambda: PoseObservation(game(), ["env.agent_pos", "env.agent_dir"], period=16.0, waves=8),
    "the view and the map": lambda: MapObservation(game(), "env.agent_pos", around=AROUND, show="image", features=256),
}
ROWS = {"the view": ("mlp", "gru", "ttt_linear"), "the view and the pose": ("mlp", "ttt_linear"),
        "the view and the map": ("mlp",)}  # fmt: skip


def by_rule(sequences: int, steps: int) -> float:
    """The accuracy of a rule on the map: it answers the kind, key or ball, with the larger weight in the readings."""
    data = collect(SEEN["the view and the map"], steps, sequences, 1, answers=True)
    cells = data.obs[..., -len(AROUND) * (VIEW * sum(CELL) + 1) :].unflatten(-1, (len(AROUND), -1))[..., :-1]
    weights = cells.unflatten(-1, (VIEW, -1))[..., list(KINDS.values())].sum((-3, -2))
    labelled = data.answers.any(-1)
    right = weights[labelled].argmax(-1) == data.answers[labelled].float().argmax(-1)
    return float(right.double().mean())


def main() -> int:
    """Train and evaluate the rows, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=640)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"updates": args.updates, "sequences": args.sequences, "steps": 32, "batch": 64, "lr": 3e-3, "dim": 64}
    lines, began = [], time.process_time()
    for seen, memories in ROWS.items():
        found = probe(SEEN[seen], memories=memories, seeds=args.seeds, heads=HEADS, quiet=False, **settings)
        for memory in memories:
            scores = [one for one in found["scores"] if one["memory"] == memory]
            cells = [f"{sum(one[key] for one in scores) / len(scores):.3f}" for key in ("accuracy", "loss")]
            span = f"{min(one['accuracy'] for one in scores):.3f} to {max(one['accuracy'] for one in scores):.3f}"
            name = "none" if memory == "mlp" else memory
            lines.append(f"| {seen} | {name} | {scores[0]['parameters']:,} | {cells[0]} | {span} | {cells[1]} |")
            print(lines[-1], file=sys.stderr, flush=True)
        chance = found["chance"]
    lines.append(f"| the map, by a rule | none | 0 | {by_rule(args.sequences // 4, settings['steps']):.3f} | | |")
    words = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    head = [
        "# A map of places for agents without memory",
        "",
        "MiniGrid-MemoryS7 with a view of 3 x 3 cells: a key or a ball lies in the first room. Is it known which, when "
        "it was seen before and is out of view? Random play, cross-entropy, accuracy on unseen sequences "
        f"({words}, {HEADS} heads, {args.seeds} seeds: mean, range, mean loss). The map keeps the view that was "
        f"last seen at each position (`env.agent_pos`); the agent reads it at {len(AROUND)} positions near it. "
        "By a rule: no network; of keys and balls in these readings, the kind that weighs more. "
        f"Always the more frequent answer: {chance['accuracy']:.3f}, {chance['loss']:.3f} nats. Command: `python "
        f"agents/bench/places.py`; {time.process_time() - began:.0f} CPU seconds, one thread of a busy machine, "
        f"{datetime.date.today()}.",
        "",
        "| the agent sees | memory | parameters | accuracy | range | loss |",
        "|---|---|---|---|---|---|",
    ]
    args.docs.mkdir(parents=True, exist_ok=True)
    with TextFile(args.docs / "places.md") as file:
        file.write("\n".join([*head, *lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
