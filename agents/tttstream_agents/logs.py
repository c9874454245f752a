"""The logs of a run: metrics.csv, TensorBoard if it is installed, and a progress bar or a line every ten seconds."""

from __future__ import annotations

import csv
import math
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tttstream.io.outputs import TextFile, saving
from tttstream_agents.errors import TrainingError

Row = dict[str, float]
NO_EPISODE = "no episode has ended yet"


def read_csv(path: Path) -> list[Row]:
    """The rows of a metrics.csv, without an incomplete last line. Raises TrainingError for another file."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from error
    try:
        whole = [row for row in rows if None not in row.values()]
        found = [{key: float(value) if value else math.nan for key, value in row.items()} for row in whole]
    except (TypeError, ValueError) as error:
        raise TrainingError(f"{path} is not the metrics.csv of an agent: {error}") from error
    if any("steps" not in row for row in found):
        raise TrainingError(f"{path} is not the metrics.csv of an agent: it has no steps")
    return found


class Logs:
    """Writes a row for each update. A resumed run removes the rows after its checkpoint, and appends to the others."""

    EVERY_S = 10.0

    def __init__(self, folder: Path, steps: int, done: int, quiet: bool = False, tensorboard: bool = True) -> None:
        self.path, self.steps, self.quiet = folder / "metrics.csv", steps, quiet
        kept = [row for row in read_csv(self.path) if row["steps"] <= done] if self.path.exists() else []
        if kept:
            with TextFile(self.path) as file:
                file.write(",".join(kept[0]) + "\n")
                for row in kept:
                    file.write(",".join(_text(number) for number in row.values()) + "\n")
        with saving(self.path):
            self._file = open(self.path, "a" if kept else "w", encoding="utf-8")  # noqa: SIM115
        self._names = list(kept[0]) if kept else []
        self._board: Any = None
        if tensorboard and find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1 if done else None)
        terminal = sys.stderr.isatty() and not quiet
        self._bar: Any = tqdm(total=steps, initial=done, unit=" steps", dynamic_ncols=True) if terminal else None
        self._next_line = time.monotonic() + self.EVERY_S

    def write(self, row: Row) -> None:
        """Log one update."""
        with saving(self.path):
            if not self._names:
                self._names = list(row)
                self._file.write(",".join(row) + "\n")
            self._file.write(",".join(_text(row.get(name, math.nan)) for name in self._names) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, number in row.items():
                if math.isfinite(number):
                    self._board.add_scalar(name, number, int(row["steps"]))
        ended = not math.isnan(row["return"])
        text = f"return {row['return']:.3f}, length {row['length']:.0f}" if ended else NO_EPISODE
        if not math.isnan(row["entropy"]):
            text += f", entropy {row['entropy']:.2f}"
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(int(row["steps"]) - self._bar.n)
        elif not self.quiet and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.EVERY_S
            print(
                f"{row['steps']:.0f}/{self.steps} steps, {row['fps']:.0f} a second, {text}", file=sys.stderr, flush=True
            )

    def close(self) -> None:
        """Close the files and the bar."""
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._bar is not None:
            self._bar.close()


def _text(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.9g}"
