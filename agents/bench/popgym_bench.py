"""Runs a resumable queue of environments x memories x seeds at equal parameters, and writes its table and curves.

    python agents/bench/popgym_bench.py --minutes 60                 # continues the queue
    python agents/bench/popgym_bench.py --minutes 60 --jobs 8        # several runs in parallel, one thread each
    python agents/bench/popgym_bench.py --minutes 0                  # only writes the tables and curves
    python agents/bench/popgym_bench.py --sweep --minutes 60         # first: one learning rate for all memories
    python agents/bench/popgym_bench.py --name short --steps 150000  # another table, of shorter runs
    python agents/bench/popgym_bench.py --name places_ppo --steps 100000 --seeds 5 --envs Revisit-4x4-predict \
        --memories ttt_linear gru lstm ttt_mlp

A run is stored in OUT/ENV/MEMORY-seedN. A run that was killed continues from its last checkpoint, with the same losses.
Finished runs are written to docs/results/NAME.json, which is under version control, so the table can grow over days and
on several machines. The queue runs the first seed of all memories before the second, so the table is complete early.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from records import Record, draw, load, save, table, thinned

from tttstream.errors import TTTStreamError
from tttstream.io.outputs import TextFile
from tttstream_agents.checkpoint import CHECKPOINT
from tttstream_agents.config import Config, build, read
from tttstream_agents.envs import make
from tttstream_agents.logs import read_csv
from tttstream_agents.policy import MemoryPolicy
from tttstream_agents.train import train

ROOT = Path(__file__).resolve().parents[2]


class Task(NamedTuple):
    """env, env_args: the id and the arguments of an environment. options: of the training, besides the preset's.
    wrappers: of the environment. places, poses: the description of places and the wrappers for it, for the memory
    "places", which is a memory of places and no other."""

    env: str
    env_args: dict[str, Any] = {}  # noqa: RUF012
    options: dict[str, Any] = {}  # noqa: RUF012
    places: dict[str, Any] = {}  # noqa: RUF012
    wrappers: list[Any] = []  # noqa: RUF012
    poses: list[Any] = []  # noqa: RUF012

    def wrapped(self, memory: str) -> list[Any]:
        """The wrappers for a memory."""
        return [*self.wrappers, *(self.poses if memory == "places" else [])]


PLACES = "tttstream/Revisit-v0", {"side": 4, "steps": 128, "scale": 1 / 128}
BOARD = {"at": "pose", "ask": "grid", "width": 4, "features": 64}


def board(*sides: int) -> list[Any]:
    """Wrappers for a game on a board in which the action is a cell and the observation shows what is there."""
    return [{"PoseObservation": {"keys": "action", "period": 2 * max(sides), "waves": max(sides), "grid": list(sides)}}]


READS = {"at": "here", "ask": "asked"}
ENVS: dict[str, Task] = {
    **{
        name: Task(name) for name in (
            "popgym-RepeatFirstEasy-v0",
            "popgym-RepeatPreviousEasy-v0",
            "popgym-AutoencodeEasy-v0",
            "popgym-CountRecallEasy-v0",
            "popgym-PositionOnlyCartPoleEasy-v0",
            "MiniGrid-MemoryS7-v0",
            "popgym-NoisyPositionOnlyCartPoleEasy-v0",
            "popgym-VelocityOnlyCartpoleEasy-v0",
            "popgym-ConcentrationEasy-v0",
        )
    },
    "popgym-MineSweeperEasy-v0": Task("popgym-MineSweeperEasy-v0", places=BOARD, poses=board(4, 4)),
    "popgym-BattleshipEasy-v0": Task(
        "popgym-BattleshipEasy-v0", places={**BOARD, "features": 256}, poses=board(8, 8)
    ),
    "Revisit-4x4": Task(*PLACES, {}, READS),
    "Revisit-4x4-predict": Task(*PLACES, {"predict_coef": 1.0}, READS),
    "Revisit-4x4-pixels": Task(PLACES[0], {**PLACES[1], "pictures": 40}, {"cnn": "strided"}, READS),
    "Revisit-8x8": Task(PLACES[0], {"side": 8, "steps": 512, "scale": 1 / 512}, {}, {**READS, "features": 512}),
    "MiniGrid-MemoryS7-view3": Task(
        "MiniGrid-MemoryS7-v0", {"agent_view_size": 3}, wrappers=[{"SomeActions": {"keep": [0, 1, 2]}}]
    ),
}  # fmt: skip
"""By name. Revisit-4x4: 0.88 is perfect, -0.44 is chance."""
MEMORIES = ("places", "ttt", "ttt_linear", "ttt_mlp", "kernel_delta", "gru", "lstm", "window", "framestack", "mlp")
HEADS = {"ttt": 4, "ttt_linear": 2, "ttt_mlp": 2, "window": 2}
DIM = 64  # of ttt_linear; the other widths are chosen so that the number of parameters is nearest to that of ttt_linear
RATES = (3e-4, 1e-3, 3e-3)
SWEEP_ENV = "popgym-RepeatPreviousEasy-v0"
SWEEP_STEPS = 200_000


def config(env: str, memory: str, seed: int, steps: int, lr: float) -> Config:
    """The options of a run: only the width depends on the memory. env: a name in `ENVS`."""
    task = ENVS[env]
    values = {
        **read("popgym"), **task.options, "env": task.env, "env_args": task.env_args, "seed": seed, "steps": steps,
        "lr": lr, "memory": "mlp" if memory == "places" else memory,
        "places": task.places if memory == "places" else {},
        "wrappers": task.wrapped(memory),
        "dim": sizes(env)[memory][0], "heads": HEADS.get(memory, 1), "stop_return": 0.97, "checkpoint_every": 10,
    }  # fmt: skip
    return build(values, "the queue")


@functools.cache
def sizes(env: str) -> dict[str, tuple[int, int]]:
    """For each memory (width, parameters of the policy); the parameters are as near as possible to ttt_linear."""
    task = ENVS[env]

    def count(memory: str, dim: int) -> int:
        placed = memory == "places"
        played = make(task.env, env_args=task.env_args, wrappers=task.wrapped(memory))
        policy = MemoryPolicy(
            played.observation_space, played.action_space, "mlp" if placed else memory, dim=dim,
            heads=HEADS.get(memory, 1), places=task.places if placed else None,
        )  # fmt: skip
        played.close()
        return sum(p.numel() for p in policy.parameters())

    target = count("ttt_linear", DIM)
    found = {}
    for memory in suited(env, MEMORIES):
        counts = {dim: count(memory, dim) for dim in range(DIM // 2, DIM * 2, 4)}
        dim = min(counts, key=lambda one: abs(counts[one] - target))
        found[memory] = dim, counts[dim]
    return found


def suited(env: str, memories: Sequence[str]) -> list[str]:
    """The memories that can run in an environment. "places" runs only if observations describe places."""
    return [memory for memory in memories if memory != "places" or ENVS[env].places]


@dataclass(frozen=True)
class Job:
    """One run of the queue."""

    env: str
    memory: str
    folder: Path
    config: Config

    @property
    def key(self) -> tuple[str, str, int, float, int]:
        """The key of the record of this run."""
        config = self.config
        return self.env, self.memory, config.seed, config.lr, config.steps

    def record(self, device: str) -> Record | None:
        """The results of the run, None if it is not finished."""
        path = self.folder / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"finished": False}
        rows = read_csv(self.folder / "metrics.csv") if summary["finished"] else []
        if not rows or not (rows[-1]["steps"] >= self.config.steps or rows[-1]["return"] >= self.config.stop_return):
            return None
        env, memory, seed, lr, limit = self.key
        width, parameters = sizes(env)[memory]
        return Record(
            env, memory, seed, lr, limit, width, parameters, int(rows[-1]["steps"]), round(rows[-1]["return"], 4),
            thinned([row["steps"] for row in rows], [row["return"] for row in rows]), device,
            datetime.date.today().isoformat(), torch.__version__,
        )  # fmt: skip


def work(job: Job, until: float) -> tuple[Job, str, bool]:
    """Continue a run until it ends or the time is over. Returns it with a message, "" if there was no time left, and
    whether the user has stopped it."""
    torch.set_num_threads(1)  # several runs share the cores
    minutes = max(0.0, until - time.time()) / 60
    if not minutes:
        return job, "", False
    try:
        resume = (job.folder / CHECKPOINT).exists()
        summary = train(job.config, job.folder, resume=resume, minutes=minutes, quiet=True, tensorboard=False)
    except TTTStreamError as error:
        return job, f"{job.folder.name} failed: {error}", False
    run = f"{job.env} {job.memory} seed {job.config.seed} lr {job.config.lr:g}"
    text = f"{run}: {summary['steps']} steps, return {summary['return']:.2f}"
    return job, text, not summary["finished"] and time.time() < until


def best_rate(sweep: list[Record]) -> float:
    """The rate with the highest mean return over all memories."""
    ends: dict[float, list[float]] = {}
    for record in sweep:
        ends.setdefault(record.lr, []).append(record.end)
    return max(ends, key=lambda lr: float(np.mean(ends[lr])))


def report(records: list[Record], sweep: list[Record], jobs: list[Job], words: str, page: Path) -> None:
    """Write the table and draw the curves of the finished runs. page: the Markdown file; the picture is beside it."""
    keys = {job.key for job in jobs}
    done = [record for record in records if record.key in keys]
    begun = {record.env for record in done}
    envs = [env for env in dict.fromkeys(job.env for job in jobs) if env in begun or not begun]
    names = list(dict.fromkeys(job.memory for job in jobs))
    config = jobs[0].config
    devices = sorted({record.device for record in [*done, *sweep]})
    dates = sorted(record.date for record in [*done, *sweep])
    counts = sizes(envs[0])
    parameters = ", ".join(f"{name} {counts[name][1]:,} (width {counts[name][0]})" for name in names if name in counts)
    lines = [
        f"# Memories in {'POPGym and MiniGrid' if page.stem == 'popgym' else ', '.join(envs)}",
        "",
        f"PPO, {config.steps:,} environment steps for each run (fewer if the mean return of the last 100 episodes "
        f"reached {config.stop_return:g}), equal parameters (below), learning rate {config.lr:g} for all. Cells: "
        "interquartile mean of the final return over seeds [95% bootstrap interval], mean number of steps (number of "
        "seeds). Unfinished runs are left out, so a cell may be empty and a row absent; one seed has no interval. TTT "
        "memories have a convolution over 4 tokens, framestack has 4 observations. Command, repeated until the queue "
        f"is empty: `python agents/bench/popgym_bench.py --minutes 60{words}`. Environments NAME-predict: with "
        f"`--predict-coef 1`, whose network is not counted below. In Revisit-4x4, 0.88 is perfect and -0.44 is chance. "
        f"{', '.join(devices)}; "
        f"{' to '.join(dict.fromkeys(dates[:1] + dates[-1:]))}.",
        "",
        *table(done, envs, names),
        "",
        f"Parameters, in the first environment: {parameters}.",
        "",
        f"![learning curves]({page.stem}.png)",
        "",
    ]
    if sweep:
        lines += [
            "## The learning rate",
            "",
            f"{SWEEP_ENV}, seed 0, {sweep[0].limit:,} steps, with `--sweep`. All memories use the rate with the best "
            "mean over the memories; the other options of PPO are those of the preset `popgym`.",
            "",
            *table(sweep, [str(rate) for rate in RATES], names, row="lr"),
            "",
        ]
    page.parent.mkdir(parents=True, exist_ok=True)
    with TextFile(page) as file:
        file.write("\n".join(lines))
    draw(done, envs, names, config.steps, page.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the queue and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--memories", nargs="+", default=list(MEMORIES), choices=list(MEMORIES))
    parser.add_argument("--sweep", action="store_true", help="compare learning rates, on one environment and one seed")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "popgym")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--name", default="popgym", help="name of the records and the page in --docs")
    parser.add_argument("--device-name", default=f"a core of an {platform.machine()} CPU", help="device of the runs")
    args = parser.parse_args(argv)

    def queue(folder: Path, envs: Sequence[str], seeds: int, rates: Sequence[float], steps: int) -> list[Job]:
        return [
            Job(env, memory, folder / env / f"{memory}-seed{seed}-lr{rate:g}", config(env, memory, seed, steps, rate))
            for seed in range(seeds) for rate in rates for env in envs for memory in suited(env, args.memories)
        ]  # fmt: skip

    path = args.docs / f"{args.name}.json"
    records = {record.key: record for record in load(path)}
    sweep = queue(args.out / "sweep", [SWEEP_ENV], 1, RATES, min(args.steps, SWEEP_STEPS))

    def swept() -> list[Record]:
        return [records[job.key] for job in sweep if job.key in records]

    def jobs() -> list[Job]:
        rate = best_rate(swept()) if sweep and len(swept()) == len(sweep) else 1e-3
        return queue(args.out, args.envs, args.seeds, [rate], args.steps)

    given = vars(args)
    words = "".join(
        f" --{name} {' '.join(map(str, value)) if isinstance(value := given[name], list) else value}"
        for name in ("name", "steps", "seeds", "envs", "memories") if given[name] != parser.get_default(name)
    )  # fmt: skip

    def write() -> None:
        report(list(records.values()), swept(), jobs(), words, path.with_suffix(".md"))

    until = time.time() + 60 * args.minutes
    left = [job for job in (sweep if args.sweep else jobs()) if job.key not in records] if args.minutes > 0 else []
    print(f"{len(left)} runs to go", file=sys.stderr)
    ends: Iterator[tuple[Job, str, bool]]
    with contextlib.ExitStack() as stack:
        if args.jobs > 1:
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1))
            ends = pool.imap_unordered(functools.partial(work, until=until), left)
        else:
            ends = (work(job, until) for job in left)
        for job, text, stopped in ends:
            record = job.record(args.device_name)
            if record is not None:
                records[record.key] = record
                save(records.values(), path)
                write()
            if text:
                print(text, file=sys.stderr, flush=True)
            if stopped:
                break
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
