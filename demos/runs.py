"""For demos: a queue of training runs that can be stopped and resumed, with its records in one JSON file, and tables in
Markdown files."""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tttstream.io.outputs import TextFile

Record = dict[str, Any]
"""The record of a run: memory, rate, seed, losses, and measurements."""


def records_of(path: Path) -> list[Record]:
    """The records of a file, none if it does not exist."""
    found: list[Record] = json.loads(path.read_text()) if path.exists() else []
    return found


def best(records: Sequence[Record]) -> Record:
    """The run of seed 0 with the least training loss at its end."""
    return min((r for r in records if r["seed"] == 0), key=lambda r: float(r["losses"][-1]))


def following(
    kept: Sequence[Record], names: Sequence[str], rates: Sequence[float], seeds: int
) -> tuple[str, float, int] | None:
    """The next run, None after the last one. First every memory at every rate with seed 0, then the other seeds at the
    best rate of each memory."""
    done = {(r["memory"], r["rate"], r["seed"]) for r in kept}
    for rate in rates:
        for name in names:
            if (name, rate, 0) not in done:
                return name, rate, 0
    for seed in range(1, seeds):
        for name in names:
            rate = best([r for r in kept if r["memory"] == name and r["rate"] in rates])["rate"]
            if (name, rate, seed) not in done:
                return name, rate, seed
    return None


def add_queue(parser: argparse.ArgumentParser, names: Sequence[str], rates: list[float], steps: int, out: str) -> None:
    """Add the options of a queue of runs."""
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after this time")
    parser.add_argument("--only", nargs="+", choices=tuple(names), default=list(names))
    parser.add_argument("--rates", type=float, nargs="+", default=rates, help="the best of them is used")
    parser.add_argument("--seeds", type=int, default=3, help="runs at the best rate")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", type=Path, default=Path(out))


def descend(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """One step of training, gradients clipped to a norm of 1; returns the loss."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def fifties(losses: Sequence[float]) -> list[float]:
    """The mean of every 50 losses."""
    return [round(sum(part) / len(part), 4) for part in (losses[i : i + 50] for i in range(0, len(losses), 50))]


def publish(lines: Sequence[str], path: Path | None = None, quiet: bool = False) -> None:
    """Print a page of Markdown unless `quiet`, and write it to a file if one is given. Prose is wrapped."""
    page = "\n".join(part for line in "\n".join(lines).split("\n") for part in wrapped(line))
    if not quiet:
        print(page)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TextFile(path) as file:
            file.write(page + "\n")


def wrapped(line: str) -> list[str]:
    """A line of Markdown in lines of 120 letters, if it is prose."""
    if line.startswith(("|", "#", "!", " ", "```")):
        return [line]
    return textwrap.wrap(line, 120, break_long_words=False, break_on_hyphens=False) or [""]


def go_on(
    path: Path,
    minutes: float,
    following: Callable[[list[Record]], tuple[str, float, int] | None],
    measure: Callable[[str, float, int], Record],
) -> list[Record]:
    """Do the missing runs; none starts after this number of minutes. Returns all records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes:
        job = following(records_of(path))
        if job is None:
            break
        record = measure(*job)
        records = records_of(path)  # another process may have added to it
        with TextFile(path) as file:
            file.write(json.dumps([*records, record], indent=1) + "\n")
    return records_of(path)
