"""Results of the queue of runs: records under version control, their table and their curves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tttstream.io.outputs import TextFile

POINTS = 60  # of a learning curve that are kept
COLOURS = {
    "places": "#c92a2a", "ttt": "#000000", "ttt_linear": "#d6336c", "ttt_mlp": "#f08c00", "gru": "#1c7ed6",
    "lstm": "#1098ad",
    "window": "#5f3dc4", "kernel_delta": "#e8590c", "framestack": "#2b8a3e", "mlp": "#868e96",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished run: what it was (`key`), how it ended, and its mean return of the last 100 episodes over steps."""

    env: str
    memory: str
    seed: int
    lr: float
    limit: int
    width: int
    parameters: int
    steps: int
    end: float
    curve: list[tuple[int, float]]
    device: str
    date: str
    torch: str

    @property
    def key(self) -> tuple[str, str, int, float, int]:
        """The key that identifies a run."""
        return self.env, self.memory, self.seed, self.lr, self.limit


def thinned(steps: Sequence[float], returns: Sequence[float]) -> list[tuple[int, float]]:
    """POINTS of a curve at most, first and last among them; steps before the first finished episode are left out."""
    rows = [(int(step), round(value, 4)) for step, value in zip(steps, returns, strict=True) if np.isfinite(value)]
    picks = np.unique(np.linspace(0, len(rows) - 1, POINTS).round().astype(int)) if rows else []
    return [rows[pick] for pick in picks]


def load(path: Path) -> list[Record]:
    """The records of a file, none where there is no file."""
    if not path.exists():
        return []
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Record(**{**row, "curve": [(int(step), value) for step, value in row["curve"]]}) for row in rows]


def save(records: Iterable[Record], path: Path) -> None:
    """Write the records, one a line, in the order of their keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(dataclasses.asdict(record)) for record in sorted(records, key=lambda record: record.key)]
    with TextFile(path) as file:
        file.write("[\n" + ",\n".join(rows) + "\n]\n")


def interquartile(values: Sequence[float], draws: int = 2000) -> tuple[float, float, float]:
    """Interquartile mean and its 95% bootstrap interval (percentiles of resampled seeds)."""
    array = np.asarray(values, dtype=np.float64)

    def iqm(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = np.sort(rows, axis=-1)
        cut = ordered.shape[-1] // 4
        return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)

    picks = np.random.default_rng(0).integers(len(array), size=(draws, len(array)))
    low, high = np.percentile(iqm(array[picks]), (2.5, 97.5))
    return float(iqm(array)), float(low), float(high)


def table(records: Sequence[Record], rows: Sequence[str], names: Sequence[str], row: str = "env") -> list[str]:
    """Lines of Markdown: `rows` are values of the field `row`, columns are memories, cells are ends over seeds."""
    lines = [f"| {row.replace('env', 'environment')} | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for value in rows:
        cells = []
        for name in names:
            done = [record for record in records if record.memory == name and str(getattr(record, row)) == value]
            if not done:
                cells.append("")
                continue
            mean, low, high = interquartile([record.end for record in done])
            thousands = np.mean([record.steps for record in done]) / 1000
            interval = f" [{low:.2f}, {high:.2f}]" if len(done) > 1 else ""
            cells.append(f"{mean:.2f}{interval}, {thousands:.0f}k ({len(done)})")
        lines.append(f"| {value} | {' | '.join(cells)} |")
    return lines


def draw(records: Sequence[Record], envs: Sequence[str], names: Sequence[str], steps: int, path: Path) -> None:
    """Return over steps: the mean of the seeds, and the band from lowest to highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(envs))
    figure = Figure(figsize=(4.2 * columns, 3.1 * -(-len(envs) // columns)), layout="constrained")
    grid, labels = np.linspace(0, steps, 201), dict[str, Any]()
    for place, env in enumerate(envs):
        axes = figure.add_subplot(-(-len(envs) // columns), columns, place + 1)
        axes.set_title(env.removesuffix("-v0").removeprefix("popgym-"), fontsize=10)
        for name in names:
            curves = [record.curve for record in records if (record.env, record.memory) == (env, name)]
            stack = np.array([np.interp(grid, *zip(*curve, strict=True), left=np.nan) for curve in curves if curve])
            if stack.size:
                seen = np.isfinite(stack).any(0)
                mean, low, high = (f(stack[:, seen], axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
                axes.plot(grid[seen], mean, color=COLOURS[name], linewidth=1.6, label=name)
                axes.fill_between(grid[seen], low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xlim(0, steps)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if place % columns == 0:
            axes.set_ylabel("mean return of the last 100 episodes", fontsize=8)
        labels |= {str(line.get_label()): line for line in axes.lines}
    if labels:
        shown = [name for name in names if name in labels]
        lines = [labels[name] for name in shown]
        figure.legend(lines, shown, loc="outside lower center", ncols=len(shown), fontsize=8, frameon=False)
    part = path.with_name(f".{path.name}")
    with open(part, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    part.replace(path)
