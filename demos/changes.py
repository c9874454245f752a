"""Measures how well the map detects things that were exchanged, vanished, appeared or moved while out of view.

    python demos/changes.py --frames 6000 --seeds 3

The source is `places`, whose worlds show photographs that were not used to train the shipped map. The map is compared
with the difference to the frame before, OpenCV's MOG2, and a dictionary that stores the last view of every place and
grows with the world. The score of a change is the highest of the second in which it comes into view; each second
without a change has its own score. Seconds in which a changed spot is only partly in view are left out. --noise and
--drift add noise to every pose and to the step of every frame (deviations in sides of a view), --late delays the poses
(frames). --robots makes the table of all of these.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from runs import publish
from tqdm import tqdm

from tttstream import MapStream, models
from tttstream.evaluation.detection import Baselines, auroc
from tttstream.frames import Frame
from tttstream.sources.base import Event
from tttstream.sources.places import THING, Places

SECOND = 30
LAG = 45  # frames after which the dictionary stores a view, because consecutive views are nearly equal
SCORES = ("map", "dictionary", "frame_difference", "mog2")
KINDS = ("exchanged", "vanished", "appeared", "moved")
ROBOTS = (  # noise, drift, frames late
    (0.0, 0.0, 0), (0.005, 0.0, 0), (0.02, 0.0, 0), (0.05, 0.0, 0), (0.0, 0.0005, 0), (0.0, 0.002, 0),
    (0.0, 0.0, 1), (0.0, 0.0, 3), (0.0, 0.0, 5),
)  # fmt: skip
CELL = 0.125  # sides of a view: the dictionary keeps one view for each such cell of the world


class Dictionary:
    """Stores the last view of every cell, and compares a frame with the nearest view that is old enough."""

    def __init__(self) -> None:
        self._views: dict[tuple[int, ...], tuple[int, NDArray[np.float64], NDArray[np.float32]]] = {}
        self._waiting: list[tuple[int, NDArray[np.float64], NDArray[np.float32]]] = []

    def score(self, frame: Frame, pose: NDArray[np.float64]) -> float:
        """The mean squared difference where the two views overlap; 0 without a stored view."""
        image = cv2.resize(frame.image, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        self._waiting.append((frame.index, pose, image))
        while self._waiting[0][0] <= frame.index - LAG:
            view = self._waiting.pop(0)
            self._views[self._cell(view[1])] = view
        x, y, world = self._cell(pose)
        near = [self._views.get((x + i, y + j, world)) for i in range(-4, 5) for j in range(-4, 5)]
        found = min((v for v in near if v is not None), key=lambda v: np.abs(v[1] - pose).sum(), default=None)
        if found is None:
            return 0.0
        here, there = (matrix(p) for p in (pose, found[1]))
        to = np.linalg.inv(there) @ here
        pixels = np.array([[64, 0, 31.5], [0, 64, 31.5], [0, 0, 1]])
        warp = pixels @ to @ np.linalg.inv(pixels)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpPerspective(np.dstack([found[2], np.ones((64, 64), np.float32)]), warp, (64, 64), flags=flags)
        inside = seen[..., 3] > 0.999
        return float(np.square(seen[..., :3] - image)[inside].mean()) if inside.any() else 0.0

    @staticmethod
    def _cell(pose: NDArray[np.float64]) -> tuple[int, ...]:
        return round(pose[0] / CELL), round(pose[1] / CELL), int(pose[4])

    @property
    def nbytes(self) -> int:
        """Bytes of the stored views."""
        return sum(view[2].nbytes // 4 for view in self._views.values())  # as bytes, not as floats


def matrix(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps a position in the view to one in the world."""
    c, s = math.exp(pose[2]) * math.cos(pose[3]), math.exp(pose[2]) * math.sin(pose[3])
    return np.array([[c, -s, pose[0]], [s, c, pose[1]], [0, 0, 1.0]])


class Run(NamedTuple):
    """The scores of every frame of one source [frames, scores], its poses, its changes, and the bytes that the map and
    the dictionary kept."""

    scores: NDArray[np.float64]
    poses: NDArray[np.float64]
    events: list[Event]
    kept: tuple[int, int]


Case = tuple[float, float, int]
"""Noise, drift, frames late."""


def follow(args: argparse.Namespace, seed: int, cases: Sequence[Case]) -> list[Run]:
    """Watch one source with one stream for each case."""
    source, baselines = Places(size=128, seed=seed), Baselines()
    frames = [source.frame(index) for index in tqdm(range(args.frames), f"frames of seed {seed}", disable=None)]
    true = np.array([frame.pose for frame in frames])
    blind = [baselines.scores(frame.image) for frame in frames]
    events = [event for event in source.events(args.frames) if event.kind in (*KINDS, "scene")]
    runs = []
    for noise, drifts, late in cases:
        rng = np.random.default_rng(seed)
        stream, dictionary = MapStream(models.load(args.model), device="cpu"), Dictionary()
        given = true.copy()
        errors = rng.normal(size=(len(true), 2, 2))
        given[:, :2] += drifts * errors[:, 0].cumsum(0) + noise * errors[:, 1]
        found = []
        for index, frame in enumerate(tqdm(frames, f"seed {seed}", disable=None)):
            told = Frame(frame.image, index, frame.time_s, given[max(0, index - late)])
            result = stream.push(told)
            found.append((result.surprise, dictionary.score(told, np.asarray(told.pose)), *blind[index]))
        runs.append(Run(np.array(found), true, events, (stream.state_bytes, dictionary.nbytes)))
    return runs


def windows(run: Run, column: int) -> tuple[dict[str, list[float]], list[float]]:
    """The highest score of the first second of every change, by kind, and of every second without one."""
    scores, events = run.scores[:, column], run.events
    free = np.ones(len(scores), bool)
    free[: 2 * SECOND] = False
    changed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for event in events:
        free[max(0, event.start - SECOND) : event.stop + SECOND] = False
        if event.kind in KINDS:  # before it counts as seen, it may be partly in view
            assert event.where is not None
            assert event.since is not None
            away = np.abs(run.poses[:, :2] - event.where[:2]).max(1) - (np.exp(run.poses[:, 2]) + THING) / 2 * 1.15
            frames = np.arange(len(scores))
            free &= ~((away < 0) & (frames >= event.since) & (frames < event.start))
        if event.kind in KINDS and event.start + SECOND <= len(scores):
            changed[event.kind].append(float(scores[event.start - SECOND // 3 : event.start + 2 * SECOND // 3].max()))
    quiet, at = [], 0
    while at + SECOND <= len(scores):
        if free[at : at + SECOND].all():
            quiet.append(float(scores[at : at + SECOND].max()))
            at += SECOND
        else:
            at += 1
    return changed, quiet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="map")
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--drift", type=float, default=0.0)
    parser.add_argument("--late", type=int, default=0)
    parser.add_argument("--robots", action="store_true", help="the table of noise, drift and delay")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    cases = ROBOTS if args.robots else ((args.noise, args.drift, args.late),)
    head = ["noise", "drift", "late", "score", "AUROC", "found at one false alarm a minute", *KINDS]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    watched = [follow(args, seed, cases) for seed in range(args.seeds)]
    for number, case in enumerate(cases):
        runs = [each[number] for each in watched]
        for column, name in enumerate(SCORES):
            if args.robots and name not in ("map", "dictionary") and case != ROBOTS[0]:
                continue  # these scores do not use the pose
            parts = [windows(run, column) for run in runs]
            quiet = np.array([value for _, part in parts for value in part])
            every = {kind: np.array([v for changed, _ in parts for v in changed[kind]]) for kind in KINDS}
            both = np.concatenate(list(every.values()))
            limit = np.quantile(quiet, 1 - 1 / 60)
            cells = [*case, name, f"{auroc(both, quiet):.3f}", f"{(both > limit).mean():.2f}"]
            cells += [f"{auroc(every[kind], quiet):.2f} ({len(every[kind])})" for kind in KINDS]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    kept = np.array([run.kept for run in runs]).max(0)
    lines += [
        "",
        f"{len(both)} changes, {len(quiet)} quiet seconds, {args.seeds} seeds of {args.frames} frames.",
        f"Kept: map {kept[0] / 1e6:.1f} MB, always; dictionary {kept[1] / 1e6:.1f} MB, growing.",
        time.strftime("%Y-%m-%d"),
    ]
    publish(lines, args.out)


if __name__ == "__main__":
    main()
