"""Runs `tttstream.live` on a video in a loop for a million frames: latency, memory and weights over time.

    python demos/endless.py VIDEO --frames 1000000 --work out/endless --out docs

After Ctrl-C or a crash the same command continues from the last snapshot. The video is scaled to 32 pixels once.
"""

import argparse
import json
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from shrink import shrink

from tttstream import models
from tttstream.live import Camera, Engine
from tttstream.models.frame import FrameModel, ModelConfig

EVERY = 5000  # frames between two lines
SMALL = ModelConfig(size=32, dim=64, depth=2, heads=2, surprise=1)
LABELS = {
    "p50_ms": "latency, ms", "p99_ms": "99th percentile, ms", "cpu_ms": "CPU time a frame, ms",
    "rss_mb": "resident memory, MB", "state_bytes": "state, bytes", "norm": "‖ΔW‖",
}  # fmt: skip


def measure(camera: Camera, total: int, file: Path) -> None:
    """Append a line of numbers each EVERY frames."""
    process, frames = psutil.Process(), camera.stream.frames
    spent, began = sum(process.cpu_times()[:2]), time.perf_counter()
    while camera.stream.frames < total and not camera.done:
        time.sleep(0.2)
        if (now := camera.stream.frames) - frames < EVERY:
            continue
        status, used, wall = camera.status(), sum(process.cpu_times()[:2]), time.perf_counter()
        deltas = [leaf.norm() for name, leaf in camera.stream.state.leaves() if name.endswith("delta")]
        row = {
            "frame": now, "p50_ms": status["latency_ms"]["p50"], "p99_ms": status["latency_ms"]["p99"],
            "cpu_ms": round(1e3 * (used - spent) / (now - frames), 4), "fps": round((now - frames) / (wall - began), 1),
            "rss_mb": round(process.memory_info().rss / 1e6, 2), "state_bytes": status["state_bytes"],
            "norm": round(float(torch.stack(deltas).norm()), 5), "surprise": status["surprise"],
        }  # fmt: skip
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        frames, spent, began = now, used, wall


def draw(file: Path, frames: int, out: Path, command: str) -> None:
    """Write a picture and a table of the numbers so far. Lines that are repeated after a resume count once."""
    rows = list({row["frame"]: row for row in map(json.loads, file.read_text().splitlines())}.values())
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    for axis, name, label in zip(figure.subplots(2, 3).flat, LABELS, LABELS.values(), strict=True):
        values = [row[name] for row in rows]
        axis.plot([row["frame"] / 1e3 for row in rows], values, linewidth=1.2, color="#2a6f97")
        axis.set(title=label, xlabel="thousand frames", ylim=(0, 1.25 * float(np.percentile(values, 99)) + 1e-9))
    (out / "results").mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "results" / "endless.png", dpi=120)
    lines = [f"| frames | {' | '.join(LABELS.values())} |", "| ---: " * (len(LABELS) + 1) + "|"]
    for part in np.array_split(np.array(rows), min(10, len(rows))):
        means = " | ".join(f"{np.median([row[name] for row in part]):.4g}" for name in LABELS)
        lines.append(f"| to {part[-1]['frame']:,} | {means} |")
    where = f"`{command}`, CPU, torch {torch.__version__}, one thread, {time.strftime('%Y-%m-%d')}."
    reading = "Medians of each tenth of the run. ‖ΔW‖: the distance of the inner weights from their initial values."
    head = f"# {frames:,} frames\n\n{where}\n\n![Numbers over the run](endless.png)\n\n{reading}\n"
    (out / "results" / "endless.md").write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", type=Path)
    options = {"--model": "small", "--frames": 1_000_000, "--work": Path("out/endless"), "--out": Path("out/endless")}
    for name, default in options.items():
        parser.add_argument(name, type=type(default), default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    small, lines = args.work / "small.mp4", args.work / "lines.jsonl"
    small.exists() or shrink(args.video, small, 32, 1 << 60)
    model = FrameModel(SMALL) if args.model == "small" else models.load(args.model, size=32)
    engine = Engine(
        model, allowed=[str(small)], looped=True, paced=False, policy="all", expect=False,
        snapshots=args.work / "state", every_s=20.0, resume=True,
    )  # fmt: skip
    with engine:
        camera = engine.add(0)
        with suppress(KeyboardInterrupt):
            measure(camera, args.frames, lines)
        print(f"{camera.stream.frames} frames, {camera.status()['state']} {camera.status()['reason']}")
    if lines.exists():
        draw(lines, camera.stream.frames, args.out, f"python demos/endless.py {args.video.name} --frames {args.frames}")


if __name__ == "__main__":
    main()
