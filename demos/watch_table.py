"""Writes the results of `tttstream watch` over many sources as one table: frames, speed, latency, memory.

tttstream watch FOLDER --out out/videos
python demos/watch_table.py out/videos > table.md
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `tttstream watch --out` was given")
    folder = parser.parse_args().folder
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/summary.json"))]
    if not runs:
        parser.error(f"{folder} has no summary.json of a source below it: expected the --out of `tttstream watch`")
    model, size = runs[0]["model"], runs[0]["size"]
    machine = f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"
    print(
        "# `tttstream watch` over real videos\n\n"
        f"`tttstream watch ../shared/videos --model {model} --size {size} --out {folder}`, "
        f"`tttstream watch ../shared/videos/masks/davis/JPEGImages/480p/car-shadow --model {model} --size {size} --out "
        f"{folder}/car-shadow`, "
        f"then `python demos/watch_table.py {folder}`; "
        f"{datetime.date.today()}, {machine}, {model} model, {size} pixels, decoding and overlay "
        "included. Resident memory is the process's, which takes one source after another.\n\n"
        "| source | frames | skipped | truncated | events | fps | latency, ms: p50 / p95 / p99 | resident, MB |\n"
        "|---|---:|---:|---|---:|---:|---:|---:|"
    )
    for run in runs:
        latency, memory = run["latency_ms"], run["rss_mb"]
        print(
            f"| {'/'.join(Path(run['source']).parts[-2:])} | {run['frames']} | {run['skipped']} "
            f"| {'yes' if run['truncated'] else ''} | {run['events_total']} | {run['fps']:.0f} "
            f"| {latency['p50']:.1f} / {latency['p95']:.1f} / {latency['p99']:.1f} "
            f"| {memory['start']:.0f} → {memory['end']:.0f} |"
        )
    whole = folder / "summary.json"
    if whole.is_file():
        print()
        for failed in json.loads(whole.read_text()).get("unreadable", []):
            print(f"Skipped: {failed['reason']}\n")


if __name__ == "__main__":
    main()
