"""Measure in pixels how well a map recalls parts of a world that are out of sight.

    python demos/recall.py --frames 5000 --seeds 3

Measured on `places`, whose worlds show photographs that were not used to train the shipped map. Every few frames the
map is asked for the pose of an earlier frame of this world. The answer is compared with the view of an ideal camera
there now. The error is the squared error of the pixels over that of the mean colour of the view, by the number of
frames since a part of the view was last visible. The rows are also the present frame, the mean of all frames, and the
map with its memory frozen.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from runs import publish
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import MapStream, models
from tttstream.evaluation.detection import auroc
from tttstream.sources.places import EXTENT, Places

AGES = ((1, 64), (64, 256), (256, 1024), (1024, 1 << 30))
ROWS = ("map", "frozen", "present frame", "mean frame")


def reduced(picture: NDArray[np.generic]) -> NDArray[np.float64]:
    """A picture [S, S, 3] in 0..255 as 64 × 64 in 0..1."""
    pixels = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
    small = F.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)[0]
    return np.asarray(small.permute(1, 2, 0).numpy(), np.float64) / 255


def sights(asked: NDArray[np.float64], poses: list[NDArray[np.float64]]) -> NDArray[np.intp]:
    """The frames, by their poses [5], that showed any of 4 × 4 points of the view from another pose."""
    steps = (np.arange(4) + 0.5) / 4 - 0.5
    right, down = (part.ravel() for part in np.meshgrid(steps, steps))
    c, s = math.exp(asked[2]) * math.cos(asked[3]), math.exp(asked[2]) * math.sin(asked[3])
    x, y, log_zoom, roll, world = np.array(poses).T[..., None]
    x, y = asked[0] + c * right - s * down - x, asked[1] + s * right + c * down - y
    c, s = np.cos(roll) / np.exp(log_zoom), np.sin(roll) / np.exp(log_zoom)
    seen = (np.abs(c * x + s * y) < 0.5) & (np.abs(c * y - s * x) < 0.5) & (world == asked[4])
    return np.flatnonzero(seen.any(1))


def ask(args: argparse.Namespace, seed: int) -> tuple[list[tuple[int, list[float]]], list[float], list[float]]:
    """(age, errors in the order of ROWS) of every question, and how familiar visited and unvisited poses are."""
    rng, source = np.random.default_rng(seed), Places(size=128, seed=seed)
    stream, frozen = (MapStream(models.load(args.model), device="cpu") for _ in range(2))
    frozen.learn = False
    poses: list[NDArray[np.float64]] = []
    mean, found, visited, unvisited = np.zeros((64, 64, 3)), [], [], []
    for index in tqdm(range(args.frames), f"seed {seed}", disable=None):
        frame = source.frame(index)
        stream.push(frame)
        pose = np.array(frame.pose)
        present = reduced(frame.image)
        if poses and poses[-1][4] != pose[4]:
            poses.clear()
        poses.append(pose)
        mean += (present - mean) / (index + 1)
        if index % args.every or len(poses) < 100:
            continue
        asked = poses[int(rng.integers(len(poses)))]
        age = len(poses) - 1 - int(sights(asked, poses)[-1])
        truth = reduced(source.look(asked, index))
        base = np.square(truth - truth.mean((0, 1))).mean()
        answers = [stream.imagine(asked), frozen.imagine(asked)]
        told = [reduced(answer.picture) for answer in answers]
        found.append((age, [float(np.square(p - truth).mean() / base) for p in (*told, present, mean)]))
        visited.append(float(answers[0].familiar.mean()))
        other = np.array([*rng.uniform(0.5, EXTENT - 0.5, 2), 0, 0, pose[4]])
        if not len(sights(other, poses)):
            unvisited.append(float(stream.imagine(other).familiar.mean()))
        elsewhere = np.array([*asked[:4], pose[4] + 1 + rng.integers(50)])
        unvisited.append(float(stream.imagine(elsewhere).familiar.mean()))
    return found, visited, unvisited


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="map")
    parser.add_argument("--frames", type=int, default=5000)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = [ask(args, seed) for seed in range(args.seeds)]
    found = [item for part in parts for item in part[0]]
    head = [f"age {low} to {high}" if high < 1 << 30 else f"over {low}" for low, high in AGES]
    counts = [sum(low <= age < high for age, _ in found) for low, high in AGES]
    lines = ["| error | " + " | ".join(f"{h} ({n})" for h, n in zip(head, counts, strict=True)) + " |"]
    lines.append("| --- " * (1 + len(AGES)) + "|")
    for column, name in enumerate(ROWS):
        cells = []
        for low, high in AGES:
            values = [errors[column] for age, errors in found if low <= age < high]
            cells.append(f"{np.median(values):.2f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    known = auroc(np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]))
    lines += ["", f"Medians over {len(found)} questions, {args.seeds} seeds of {args.frames} frames."]
    lines += [f"Visited against unvisited poses, by `familiar`: AUROC {known:.3f}.", time.strftime("%Y-%m-%d")]
    publish(lines, args.out)


if __name__ == "__main__":
    main()
