"""Measures the frames per second of one core of each decoder in training, for whole streams and short windows."""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from tqdm import tqdm

from tttstream.train.data import Decoder, Decord, Index, MovingDigits, PyAV, VideoData, Videos, Walks, Window

DECODERS: dict[str, Decoder] = {
    "PyAV": PyAV(),
    "PyAV, short_side 160": PyAV(160),
    "decord": Decord(),
    "decord, short_side 160": Decord(160),
}
WINDOWS = {"whole videos": Window(), "windows of 16 frames": Window(16)}
SIZE, LENGTH = 128, 16


def pace(index: Index, frames: int, decoder: Decoder | None = None, window: Window | None = None) -> float:
    """Frames of 128 × 128 pixels for each second of processor time, in one process, all its threads counted."""
    options = {"size": SIZE, "length": LENGTH, "batch_size": 1, "workers": 0, "steps": frames // LENGTH}
    loader = VideoData(index, decoder=decoder, window=window, **options).loader("train")  # type: ignore[arg-type]
    batches = iter(loader)
    next(batches)
    begin = time.process_time()
    shown = sum(batch.frames.shape[1] for batch in batches)
    return shown / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", help="folders of videos, a row of the table each")
    parser.add_argument("--frames", type=int, default=320, help="frames of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each cell; the median is shown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(folder, name, what) for folder in args.folders for what in WINDOWS for name in DECODERS]
    generated: dict[str, Index] = {"walk": Walks(2), "moving digits, 64 pixels scaled": MovingDigits(50, size=64)}
    found: dict[tuple[str, ...], list[float]] = {}
    for _ in tqdm(range(args.rounds), "rounds", disable=None):  # a round visits every cell once
        for folder, name, what in cells:
            rate = pace(Videos(folder), args.frames, DECODERS[name], WINDOWS[what])
            found.setdefault((folder, name, what), []).append(rate)
        for name, index in generated.items():
            found.setdefault((name,), []).append(pace(index, args.frames))
    print("# Frames that reach training\n")
    shown = "python demos/decoding.py " + " ".join([f"--frames {args.frames} --rounds {args.rounds}", *args.folders])
    libraries = ", ".join(f"{name} {version(name)}" for name in ("av", "decord", "torchvision", "torch"))
    print(f"`{shown}`, {date.today()}, {processor()}, {libraries}.\n")
    print(
        f"Frames of {SIZE} × {SIZE} pixels per second of processor time (median of {args.rounds}; lowest, highest).\n"
    )
    print("| videos | what is shown |", " | ".join(DECODERS), "|")
    print("| --- | --- |", " | ".join("---:" for _ in DECODERS), "|")
    for folder in args.folders:
        for what in WINDOWS:
            rates = (found[folder, name, what] for name in DECODERS)
            print(f"| {Path(folder).name} | {what} |", " | ".join(map(cell, rates)), "|")
    print("\n| generated | |\n| --- | ---: |")
    for name in generated:
        print(f"| {name} | {cell(found[name,])} |")


def cell(rates: list[float]) -> str:
    """A median with its range."""
    return f"{statistics.median(rates):.0f} ({min(rates):.0f}, {max(rates):.0f})"


def processor() -> str:
    """The processor by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
