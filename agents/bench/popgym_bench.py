"""The results queue: environments x memories x seeds at equal parameters, stoppable and resumable; table and curves.

    python agents/bench/popgym_bench.py --minutes 60                 # goes on with the queue, wherever it stands
    python agents/bench/popgym_bench.py --minutes 60 --jobs 8        # several runs side by side, one thread each
    python agents/bench/popgym_bench.py --minutes 0                  # only draws tables and picture from what there is
    python agents/bench/popgym_bench.py --sweep --minutes 60         # first: the learning rate, for every memory alike

A run lives in OUT/ENV/MEMORY-seedN; what is killed goes on from its last checkpoint, with the same losses. All first
seeds come before all second ones, so that the table is whole early and grows narrower intervals over days.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import TTTStreamError
from tttstream.outputs import TextFile
from tttstream_agents.config import Config, build, read
from tttstream_agents.logs import read_csv

ROOT = Path(__file__).resolve().parents[2]
ENVS = (
    "popgym-RepeatFirstEasy-v0",
    "popgym-RepeatPreviousEasy-v0",
    "popgym-AutoencodeEasy-v0",
    "popgym-CountRecallEasy-v0",
    "popgym-PositionOnlyCartPoleEasy-v0",
    "MiniGrid-MemoryS7-v0",
)
MEMORIES = ("ttt_linear", "ttt_mlp", "gru", "lstm", "window", "framestack", "mlp")
HEADS = {"ttt_linear": 2, "ttt_mlp": 2, "window": 2}
DIM = 64  # of ttt_linear; the others get the width that brings their policies nearest to it in parameters
SWEEP = (3e-4, 1e-3, 3e-3)
SWEEP_ENV = "popgym-RepeatPreviousEasy-v0"
COLOURS = {
    "ttt_linear": "#d6336c", "ttt_mlp": "#f08c00", "gru": "#1c7ed6", "lstm": "#1098ad", "window": "#5f3dc4",
    "framestack": "#2b8a3e", "mlp": "#868e96",
}  # fmt: skip


def config(env: str, memory: str, seed: int, steps: int, lr: float) -> Config:
    """The same for every memory, its width apart."""
    values = {
        **read("popgym"), "env": env, "memory": memory, "seed": seed, "steps": steps, "lr": lr,
        "dim": sizes(env)[memory][0], "heads": HEADS.get(memory, 1), "stop_return": 0.97, "checkpoint_every": 10,
    }  # fmt: skip
    return build(values, "the queue")


@functools.cache
def sizes(env: str) -> dict[str, tuple[int, int]]:
    """(width, parameters of the whole policy) of each memory, all as near to ttt_linear's as whole widths allow."""
    from tttstream_agents.envs import make
    from tttstream_agents.policy import MemoryPolicy

    played = make(env)

    def count(memory: str, dim: int) -> int:
        policy = MemoryPolicy(
            played.observation_space, played.action_space, memory, dim=dim, heads=HEADS.get(memory, 1)
        )  # fmt: skip
        return sum(p.numel() for p in policy.parameters())

    target = count("ttt_linear", DIM)
    found = {}
    for memory in MEMORIES:
        counts = {dim: count(memory, dim) for dim in range(DIM // 2, DIM * 2, 4)}
        dim = min(counts, key=lambda one: abs(counts[one] - target))
        found[memory] = dim, counts[dim]
    played.close()
    return found


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    folder: Path
    config: Config

    @property
    def done(self) -> bool:
        """Whether it ran to its end."""
        path = self.folder / "summary.json"
        if not path.exists():
            return False
        summary = json.loads(path.read_text(encoding="utf-8"))
        return summary["finished"] and bool(
            summary["steps"] >= self.config.steps or summary["return"] >= self.config.stop_return
        )


def work(job: Job, until: float) -> str:
    """Go on with one run until its end or the time's; says how it went, nothing where there was no time left."""
    import torch

    from tttstream_agents.train import CHECKPOINT, train

    torch.set_num_threads(1)  # one a run; several run side by side
    minutes = max(0.0, until - time.time()) / 60
    if not minutes:
        return ""
    try:
        resume = (job.folder / CHECKPOINT).exists()
        summary = train(job.config, job.folder, resume=resume, minutes=minutes, quiet=True, tensorboard=False)
    except TTTStreamError as error:
        return f"{job.folder.name} failed: {error}"
    run = f"{job.config.env} {job.config.memory} seed {job.config.seed} lr {job.config.lr:g}"
    return f"{run}: {summary['steps']} steps, return {summary['return']:.2f}"


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


def final(job: Job) -> tuple[float, float] | None:
    """(return, steps) at the end of a finished run."""
    rows = read_csv(job.folder / "metrics.csv") if job.done else []
    return (rows[-1]["return"], rows[-1]["steps"]) if rows else None


def report(jobs: list[Job], steps: int, docs: Path, device: str) -> None:
    """Write the table and draw the curves of what there is."""
    envs = list(dict.fromkeys(job.config.env for job in jobs))
    names = list(dict.fromkeys(job.config.memory for job in jobs))
    lines = [
        "# Memories in POPGym and MiniGrid",
        "",
        f"PPO, {steps:,} environment steps a run (less where the mean return of the last 100 episodes reached 0.97), "
        f"equal parameters (below), one learning rate for all, {device}. Cells: interquartile mean of the final return "
        "over seeds [95% bootstrap interval], mean steps played (seeds done); unfinished runs are left out. "
        "One seed has no interval. TTT memories have a convolution over 4 tokens, framestack sees 4 observations. "
        f"Command, as often as wanted: `python agents/bench/popgym_bench.py --minutes 60 --steps {steps} "
        f"--envs {' '.join(envs)} --memories {' '.join(names)}`.",
        "",
        f"| environment | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for env in envs:
        cells = []
        for name in names:
            ends = [final(job) for job in jobs if (job.config.env, job.config.memory) == (env, name)]
            done = [end for end in ends if end is not None]
            if not done:
                cells.append("")
                continue
            mean, low, high = interquartile([end[0] for end in done])
            thousands = np.mean([end[1] for end in done]) / 1000
            interval = f" [{low:.2f}, {high:.2f}]" if len(done) > 1 else ""
            cells.append(f"{mean:.2f}{interval}, {thousands:.0f}k ({len(done)})")
        lines.append(f"| {env} | {' | '.join(cells)} |")
    counts = sizes(envs[0])
    parameters = ", ".join(f"{name} {counts[name][1]:,} (width {counts[name][0]})" for name in names)
    lines += ["", f"Parameters, in the first environment: {parameters}.", ""]
    lines += ["![learning curves](popgym.png)", ""]
    docs.mkdir(parents=True, exist_ok=True)
    file = TextFile(docs / "popgym.md")
    with file:
        file.write("\n".join(lines))
    draw(jobs, envs, names, steps, docs / "popgym.png")


def draw(jobs: list[Job], envs: list[str], names: list[str], steps: int, path: Path) -> None:
    """Return over steps: the mean of the seeds, and the band from lowest to highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(envs))
    rows = -(-len(envs) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
    grid = np.linspace(0, steps, 201)
    for place, env in enumerate(envs):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(env.removesuffix("-v0").removeprefix("popgym-"), fontsize=10)
        for name in names:
            curves = []
            for job in jobs:
                path_of = job.folder / "metrics.csv"
                if (job.config.env, job.config.memory) == (env, name) and path_of.exists():
                    rows_of = [row for row in read_csv(path_of) if np.isfinite(row["return"])]
                    if len(rows_of) > 1:
                        x, y = ([row[key] for row in rows_of] for key in ("steps", "return"))
                        right = y[-1] if job.done else np.nan
                        curves.append(np.interp(grid, x, y, left=np.nan, right=right))
            if curves:
                stack = np.stack(curves)
                seen = np.isfinite(stack).any(0)
                mean, low, high = (f(stack[:, seen], axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
                axes.plot(grid[seen], mean, color=COLOURS[name], linewidth=1.6, label=name)
                axes.fill_between(grid[seen], low, high, color=COLOURS[name], alpha=0.15, linewidth=0)
        axes.set_xlim(0, steps)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:.0f}k")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if place == 0:
            axes.set_ylabel("mean return of the last 100 episodes", fontsize=8)
            if axes.lines:
                axes.legend(fontsize=7, frameon=False)
    part = path.with_name(f".{path.name}")
    with open(part, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
    part.replace(path)


def best_rate(sweep: list[Job]) -> float | None:
    """The rate with the highest mean return over all memories of a whole sweep."""
    found: dict[float, list[float]] = {}
    for job in sweep:
        value = final(job)
        if value is None:
            return None
        found.setdefault(job.config.lr, []).append(value[0])
    return max(found, key=lambda lr: float(np.mean(found[lr])))


def main(argv: Sequence[str] | None = None) -> int:
    """See the file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=list(ENVS))
    parser.add_argument("--memories", nargs="+", default=list(MEMORIES), choices=list(MEMORIES))
    parser.add_argument("--sweep", action="store_true", help="the learning rate, on one environment and one seed")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "popgym")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--device-name", default="two CPU cores", help="what the table says it was measured on")
    args = parser.parse_args(argv)

    sweep = [
        Job(args.out / "sweep" / f"{memory}-lr{lr:g}", config(SWEEP_ENV, memory, 0, args.steps, lr))
        for lr in SWEEP
        for memory in args.memories
    ]
    rate = best_rate(sweep) if all(job.done for job in sweep) else None
    jobs = [
        Job(args.out / env / f"{memory}-seed{seed}", config(env, memory, seed, args.steps, rate or 1e-3))
        for seed in range(args.seeds)
        for env in args.envs
        for memory in args.memories
    ]
    until = time.time() + 60 * args.minutes
    queue = [job for job in (sweep if args.sweep else jobs) if not job.done] if args.minutes > 0 else []
    print(f"{len(queue)} runs to go", file=sys.stderr)
    ends: Iterator[str]
    with contextlib.ExitStack() as stack:
        if args.jobs > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1))
            ends = pool.imap_unordered(functools.partial(work, until=until), queue)
        else:
            ends = (work(job, until) for job in queue)
        for text in filter(None, ends):
            print(text, file=sys.stderr, flush=True)
            report(jobs, args.steps, args.docs, args.device_name)
    report(jobs, args.steps, args.docs, args.device_name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
