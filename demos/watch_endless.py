"""A long `tttstream watch`: latency, CPU time and memory over the run.

    python demos/watch_endless.py places --words "--model map" --frames 100000 --out docs/results/watch_map

The process is measured from outside. `frames.jsonl` gives the latency of each frame. For a source that plants events,
the table has the AUROC of the surprise too, as in the summary of `tttstream watch`. A second call with the same folder
draws a finished run again.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure
from tqdm import tqdm

from tttstream.evaluation.detection import auroc, windows

EVERY = 2.0  # seconds between two samples of the process
LABELS = {"p50": "latency, ms", "p99": "99th percentile, ms", "cpu": "CPU time a frame, ms", "rss": "memory, MB"}
WINDOW = 30  # frames of a piece without events that counts as one negative


def last_index(file: Path) -> int:
    """The index of the last whole line of a growing JSON Lines file, -1 before the first."""
    if not file.exists():
        return -1
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - 4096))
        lines = stream.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["index"]) if lines else -1


def watch(source: str, words: list[str], frames: int, work: Path) -> None:
    """Run the command and write samples (frame, CPU seconds, resident MB) to work/process.jsonl."""
    command = [sys.executable, "-m", "tttstream", "watch", source, *words, "--no-overlay"]
    command += ["--max-frames", str(frames), "--out", str(work)]
    work.mkdir(parents=True, exist_ok=True)
    with (
        (work / "output.txt").open("w") as output,
        (work / "process.jsonl").open("w") as samples,
        tqdm(total=frames, unit="frames") as bar,
    ):
        child = subprocess.Popen(command, stdout=output, stderr=output)
        process = psutil.Process(child.pid)
        while child.poll() is None:
            frame = last_index(work / ".frames.jsonl.part")  # its name until the run ends
            with suppress(psutil.NoSuchProcess):  # it may have just ended
                spent, rss = sum(process.cpu_times()[:2]), process.memory_info().rss
                samples.write(json.dumps({"frame": frame, "cpu_s": spent, "rss_mb": rss / 1e6}) + "\n")
                samples.flush()
            bar.update(frame + 1 - bar.n)
            time.sleep(EVERY)
    if child.returncode:
        raise SystemExit(f"tttstream watch ended with {child.returncode}: see {work / 'output.txt'}")


def rows(work: Path, parts: int = 10) -> list[dict[str, float]]:
    """Medians of each tenth of the run, and the AUROC of its surprise where events were planted."""
    frames = [json.loads(line) for line in (work / "frames.jsonl").open()]
    latency = np.array([frame["latency_ms"] for frame in frames])
    surprise = np.array([-np.inf if frame["surprise"] is None else frame["surprise"] for frame in frames])
    planted = json.loads((work / "summary.json").read_text()).get("planted", [])
    free = np.ones(len(frames), bool)
    for event in planted:
        free[event["start"] : event["stop"] + WINDOW] = False
    samples = [json.loads(line) for line in (work / "process.jsonl").open()]
    frame, spent, rss = (np.array([sample[key] for sample in samples]) for key in ("frame", "cpu_s", "rss_mb"))
    found = []
    for part in np.array_split(np.arange(len(latency)), parts):
        inside = (frame >= part[0]) & (frame <= part[-1])
        if inside.sum() < 2:
            raise SystemExit("the run is too short: a tenth of it has fewer than two samples; take more --frames")
        p50, p99 = np.percentile(latency[part], [50, 99])
        cpu = 1e3 * np.ptp(spent[inside]) / np.ptp(frame[inside])
        row = {"frame": part[-1] + 1, "p50": p50, "p99": p99, "cpu": cpu, "rss": np.median(rss[inside])}
        chances = np.array([piece.max() for piece in windows(surprise[part], free[part], WINDOW)])
        starts = sorted({event["start"] for event in planted if part[0] <= event["start"] <= part[-1]})
        if starts:
            row["auroc"] = auroc(np.array([surprise[start : start + WINDOW].max() for start in starts]), chances)
        found.append(row)
    return found


def draw(found: list[dict[str, float]], state: float, command: str, out: Path) -> None:
    """Write OUT.png and OUT.md."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    for axis, (name, label) in zip(figure.subplots(2, 2).flat, LABELS.items(), strict=True):
        axis.plot([row["frame"] / 1e3 for row in found], [row[name] for row in found], marker="o", color="#2a6f97")
        axis.set(title=label, xlabel="thousand frames", ylim=(0, 1.25 * max(row[name] for row in found)))
    figure.savefig(out.with_suffix(".png"), dpi=110)
    lines = [
        f"# {found[-1]['frame']:,} frames of one stream",
        "",
        f"`{command}`, {time.strftime('%Y-%m-%d')}, on a CPU.",
    ]
    lines += [f"The state has {state / 1e3:,.0f} kB at the end. Each row is a tenth of the run.", ""]
    labels = {**LABELS, "auroc": "AUROC of the surprise"} if "auroc" in found[0] else LABELS
    lines += [f"![Latency, CPU time and memory]({out.name}.png)", "", f"| frames | {' | '.join(labels.values())} |"]
    lines += ["| ---: " * (len(labels) + 1) + "|"]
    for row in found:
        numbers = [f"{row[name]:.2f}" if name == "auroc" else f"{row[name]:.1f}" for name in labels]
        lines.append(f"| to {row['frame']:,} | " + " | ".join(numbers) + " |")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="what `tttstream watch` takes")
    parser.add_argument("--words", default="", help='more options of `tttstream watch`, such as "--model map"')
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--work", type=Path, default=Path("out/long"), help="a folder for the results of the run")
    parser.add_argument("--out", type=Path, default=Path("out/watch_endless"), help="writes OUT.md and OUT.png")
    args = parser.parse_args()
    if not (args.work / "summary.json").exists():
        watch(args.source, shlex.split(args.words), args.frames, args.work)
    state = json.loads((args.work / "summary.json").read_text())["state_bytes"]
    words = f" --words {shlex.quote(args.words)}" if args.words else ""
    draw(rows(args.work), state, f"python demos/watch_endless.py {args.source}{words} --frames {args.frames}", args.out)


if __name__ == "__main__":
    main()
