"""Measures the CPU time of a frame in `tttstream watch` for several sets of options, in turn, under equal load.

python demos/watch_cost.py ../shared/videos/surveillance/car-detection.mp4 > table.md
"""

import argparse
import contextlib
import datetime
import io
import json
import os
import platform
import shlex
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from tttstream.cli.main import main as tttstream

CHOICES = ("--model small", "--model base", "--model base --embeddings", "--model base --no-overlay")


def watch(source: str, frames: int, size: int, words: list[str]) -> float:
    """Milliseconds of CPU time of a frame in one run: all threads, loading included."""
    sized = ["--max-frames", str(frames), "--size", str(size)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        began = time.process_time()
        code = tttstream(["watch", source, *sized, "--out", folder, *words])
        took = time.process_time() - began
        if code:
            raise SystemExit(code)
        said = json.loads((Path(folder) / "summary.json").read_text())
    return 1e3 * took / said["frames"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="what `tttstream watch` takes")
    parser.add_argument("--choices", nargs="*", default=CHOICES, help='options of a run, such as "--model small"')
    parser.add_argument("--frames", type=int, default=200, help="of each run")
    parser.add_argument("--size", type=int, default=128, help="side in pixels of every model's picture (default: 128)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each set of options; the shortest counts")
    args = parser.parse_args()
    found: dict[str, list[float]] = {choice: [] for choice in args.choices}
    watch(args.source, 20, args.size, [])  # costs of a first run only
    for choice in tqdm([*args.choices] * args.rounds, desc="runs"):
        found[choice].append(watch(args.source, args.frames, args.size, shlex.split(choice)))
    print(
        f"`python demos/watch_cost.py {args.source} --frames {args.frames} --size {args.size} --rounds {args.rounds}`, "
        f"{datetime.date.today()}, {os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}; least of "
        f"{args.rounds} runs.\n\n"
        "| `tttstream watch` with | CPU time of a frame, ms | frames a CPU second |\n"
        "| --- | ---: | ---: |"
    )
    for choice, runs in found.items():
        print(f"| {choice} | {min(runs):.1f} | {1e3 / min(runs):.0f} |")


if __name__ == "__main__":
    main()
