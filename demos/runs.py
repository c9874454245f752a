"""A queue of training runs that can be stopped and resumed, with its records in one JSON file; for demos that compare
memories."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tttstream.io.outputs import TextFile

Record = dict[str, Any]
"""Of a run: memory, rate, seed, losses, and what was measured."""


def records_of(path: Path) -> list[Record]:
    """The records of a file, none where there is no file."""
    found: list[Record] = json.loads(path.read_text()) if path.exists() else []
    return found


def best(records: Sequence[Record]) -> Record:
    """The run of seed 0 with the least training loss at its end."""
    return min((r for r in records if r["seed"] == 0), key=lambda r: float(r["losses"][-1]))


def following(
    kept: Sequence[Record], names: Sequence[str], rates: Sequence[float], seeds: int
) -> tuple[str, float, int] | None:
    """The next run, None after the last: every memory at every rate with seed 0, then the other seeds at the best rate
    of each."""
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


def go_on(
    path: Path,
    minutes: float,
    following: Callable[[list[Record]], tuple[str, float, int] | None],
    measure: Callable[[str, float, int], Record],
) -> list[Record]:
    """Do the runs that are missing, and begin none after so many minutes. Returns all records."""
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
