"""Measures the quality by position in the stream, far beyond the training length, with a resumable queue.

python demos/position.py --out out/position --docs docs

Every run (memory × seed) is `tttstream fit`, then `tttstream predict` on walks of 64 times the training length.
Finished runs are not repeated, so the table grows over days. Each set of options has its own folder in --out.
`--reset 16` also tests the same weights with the memory reset after each 16 frames. The text below the picture in
position.md is kept.
"""

import argparse
import datetime
import json
import math
import os
import platform
from pathlib import Path

import matplotlib
import torch
from runs import publish
from tqdm import tqdm

from tttstream.cli.main import main as tttstream
from tttstream.errors import TTTStreamError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MEMORIES = ("ttt_linear", "ttt_mlp", "ttt_conv", "gru", "window", "frozen")
TIMES = (1, 4, 16, 64)


def pieces(name: str, args: argparse.Namespace) -> list[str]:
    """The configuration for a memory; all others are equal except for the memory."""
    memory = "ttt_linear" if name == "frozen" else name
    words = [f"--config={piece}" for piece in ("trainer/cpu", "model/tiny", f"model/{memory}", "data/walk")]
    words += [
        f"--model.motion={args.motion}",
        "--config=task/prediction",
        f"--task.init_args.learn={str(name != 'frozen').lower()}",
    ]
    words += [f"--data.init_args.length={args.length}", "--data.init_args.workers=0", "--data.init_args.batch_size=2"]
    words += [f"--data.train.size={args.size}", f"--data.val.size={args.size}", f"--data.test.size={args.size}"]
    return [*words, "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=4"]


def fit(folder: Path, name: str, seed: int, args: argparse.Namespace) -> Path:
    """Train one run, or continue with it; its last checkpoint."""
    path = folder / "last.ckpt"
    words = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}", f"--trainer.max_steps={args.steps}"]
    keep = "lightning.pytorch.callbacks.ModelCheckpoint"
    saved = {
        "dirpath": str(folder),
        "filename": "last",
        "every_n_train_steps": math.gcd(args.steps, 50),
        "enable_version_counter": False,
    }
    words += ["--trainer.callbacks=" + json.dumps([{"class_path": keep, "init_args": saved}])]
    done = path.is_file() and torch.load(path)["global_step"] >= args.steps
    if not done:
        resume = [f"--ckpt_path={path}"] if path.is_file() else []
        run(["fit", *pieces(name, args), *words, *resume, f"--trainer.default_root_dir={folder}"])
    return path


def test(folder: Path, name: str, path: Path, reset: int, args: argparse.Namespace) -> dict[str, float]:
    """MSE over that of repeating the last frame, in the frames up to each multiple of the training length.

    A reset also removes the frame before, which the estimate of motion needs. So that the ablation measures the memory
    alone, no score counts the frames predicted from the first of a segment, where resets are.
    """
    frames = args.length * TIMES[-1]
    words = [f"--data.test.frames={frames}", "--data.test.count=2", f"--ckpt_path={path}"]
    words += [f"--task.init_args.reset_every={reset}"]
    run(["predict", *pieces(name, args), *words, f"--trainer.default_root_dir={folder}"])
    rows = [json.loads(line) for line in max(folder.rglob("predictions.jsonl"), key=os.path.getmtime).open()]
    scores = {}
    for times in TIMES:
        span = range(times * args.length // 2, times * args.length)
        late = [row for row in rows if "mse" in row and row["frame"] in span and row["frame"] % args.length != 1]
        scores[str(times)] = sum(row["mse"] for row in late) / max(1e-12, sum(row["copy_mse"] for row in late))
    return scores


def run(words: list[str]) -> None:
    """One command of the program; an error ends the queue."""
    code = tttstream(words)
    if code:
        raise SystemExit(code)


def write(results: dict[str, dict[str, float]], args: argparse.Namespace) -> None:
    """Write the table and the picture of all finished runs."""
    machine = f"{os.cpu_count()} {platform.machine()} cores, torch {torch.__version__}"
    resets = f" --reset {' '.join(map(str, args.reset))}" if args.reset else ""
    lines = ["# Quality against the position in the stream", ""]
    lines += [
        f"`python demos/position.py --steps {args.steps} --length {args.length} --size {args.size} --motion "
        f"{args.motion}{resets}`, {datetime.date.today()}, {machine}. Tiny models (model/tiny) that estimate motion of "
        f"up to {args.motion} pixels, trained for {args.steps} steps on walks in segments of {args.length} frames.",
        "",
        "The cells are the error of the next frame over that of repeating the last one, mean over seeds ± half their "
        "range; below 1 is better than repeating. A column has the second half of the frames up to a multiple of the "
        "training length. Predictions from the first frame of a segment are left out: a reset there also removes the "
        "frame before, which the estimate of motion needs.",
        "",
        "| memory | " + " | ".join(f"{times} ×" for times in TIMES) + " | seeds |",
        "| --- |" + " ---: |" * (len(TIMES) + 1),
    ]
    names = list(dict.fromkeys(key.rpartition("/")[0] for key in sorted(results, key=_place)))
    figure, axes = plt.subplots(figsize=(8, 4))
    level = [_mean([each[str(times)] for key, each in results.items() if "reset" not in key]) for times in TIMES]
    for name in names:
        runs = [value for key, value in results.items() if key.rpartition("/")[0] == name]
        scores = [[each[str(times)] for each in runs] for times in TIMES]
        spreads = [(max(each) - min(each)) / 2 for each in scores]
        cells = [f"{_mean(each):.3f} ± {spread:.3f}" for each, spread in zip(scores, spreads, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(runs)} |")
        beside = [100 * (_mean(each) / usual - 1) for each, usual in zip(scores, level, strict=True)]
        colour = f"C{MEMORIES.index(name.partition(',')[0])}"
        axes.plot(TIMES, beside, "o--" if "reset" in name else "o-", color=colour, label=name)
    axes.set(xscale="log", xlabel="position / training length", ylabel="error beside the memories' mean, %")
    axes.set_xticks(TIMES, [f"{times} ×" for times in TIMES])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    (args.docs / "results").mkdir(parents=True, exist_ok=True)
    path, picture = args.docs / "results" / "position.md", "![](../position.png)\n"
    words = path.read_text().partition(picture)[2] if path.is_file() else ""
    publish(["\n".join([*lines, "", picture]) + words.rstrip("\n")], path, quiet=True)
    figure.savefig(args.docs / "position.png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _place(key: str) -> tuple[bool, int]:
    """The position of a result in the table: without resets first, memory by memory."""
    name = key.rpartition("/")[0]
    return "reset" in name, MEMORIES.index(name.partition(",")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("out/position"), help="folder for runs and results.json, by settings"
    )
    parser.add_argument("--docs", type=Path, default=Path("out/position"), help="gets results/position.md")
    parser.add_argument("--memories", nargs="*", default=MEMORIES, choices=MEMORIES)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--reset", nargs="*", type=int, default=[], help="also test with a reset after this number of frames"
    )
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--length", type=int, default=16, help="frames of a training segment")
    parser.add_argument("--size", type=int, default=32, help="side of the walk's pictures")
    parser.add_argument(
        "--motion", type=int, default=2, help="largest motion in pixels that the model estimates, 0 for none"
    )
    args = parser.parse_args()
    if any(every < 1 or every % args.length for every in args.reset):
        parser.error(f"--reset {args.reset}: expected multiples of --length, {args.length}")
    out = args.out / f"steps{args.steps}-length{args.length}-size{args.size}-motion{args.motion}"
    path = out / "results.json"
    results: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.is_file() else {}
    queue = [(n, s, r) for s in args.seeds for n in args.memories for r in (0, *args.reset)]
    for name, seed, reset in tqdm(queue, desc="runs"):
        key = f"{name}{f', reset every {reset}' if reset else ''}/{seed}"
        if key in results:
            continue
        folder = out / f"{name}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        results[key] = test(folder, name, fit(folder, name, seed, args), reset, args)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(results, indent=2))
        part.replace(path)
        write(results, args)
    if results:
        write(results, args)


if __name__ == "__main__":
    try:
        main()
    except TTTStreamError as error:
        raise SystemExit(f"position: error: {error}") from error
