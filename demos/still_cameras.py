"""Compares the surprise of `base` and of `features`, and simple detectors, on three still cameras.

    python demos/still_cameras.py ../shared/videos/surveillance

EVENTS lists when somebody or something comes, goes or passes, as read from the frames by eye. An event is found if an
alarm lies between its two times (MARGIN seconds more on both sides); an alarm outside of all events is false. For each
detector the threshold is lowered until there are as many false alarms as the column says.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from novelty_features import OnFeatures
from tqdm import tqdm

from tttstream import models, open_source
from tttstream.evaluation.detection import Baselines, Scores
from tttstream.evaluation.spliced import RELEASE, THRESHOLD, normalised
from tttstream.train.data.transforms import fitted

EVENTS: dict[str, list[tuple[float, float]]] = {  # seconds
    "one-by-one-person-detection": [
        (6.0, 8.5), (18.0, 20.8), (22.8, 25.0), (43.0, 45.8), (50.8, 53.5), (68.0, 71.0), (74.7, 77.5), (84.5, 88.0),
        (92.6, 95.0), (117.5, 121.0), (123.6, 126.0), (134.5, 137.0),
    ],
    "bottle-detection": [
        (5.8, 7.4), (10.9, 13.9), (15.8, 18.3), (21.8, 24.8), (27.2, 29.3), (30.8, 32.4), (34.3, 37.2),
    ],
    "car-detection": [(4.4, 8.8), (14.4, 19.3), (25.3, 28.0)],
}  # fmt: skip
MARGIN = 0.5  # seconds
FALSE = (0, 1, 3, 6)  # false alarms in all three videos


class Camera(NamedTuple):
    """scores: of each detector, in deviations. times: seconds of the frames. events: their first and last seconds."""

    scores: dict[str, Scores]
    times: Scores
    events: list[tuple[float, float]]


def watched(path: Path, size: int, fps: float) -> Camera:
    """The scores of one video by all detectors."""
    model, features, baselines, fit = models.load("base", size=size), OnFeatures(size), Baselines(), fitted(size)
    state, times, rows = model.watched(model.init_state(1)), [], []
    with open_source(str(path)) as source, torch.inference_mode():
        for frame in tqdm(source, path.stem, source.frames, disable=None):
            if frame.time_s < len(times) / fps - 1e-6:
                continue
            pixels = fit(torch.from_numpy(np.ascontiguousarray(frame.image)).permute(2, 0, 1))
            losses, state = model.watch(pixels[None, None], state)
            difference, mog2 = baselines.scores(pixels.permute(1, 2, 0).contiguous().numpy())
            found = {"base": float(losses.before.mean()), "frame difference": difference, "MOG2": mog2}
            rows.append({**found, **features.scores(pixels)})
            times.append(frame.time_s)
    return Camera(
        {name: normalised([row[name] for row in rows]) for name in rows[0]}, np.array(times), EVENTS[path.stem]
    )


def counted(cameras: list[Camera], name: str, threshold: float) -> tuple[int, int]:
    """(events that are found, false alarms) of a detector; an alarm lasts until half of the threshold."""
    hits = false = 0
    for camera in cameras:
        up, found = False, set()
        for score, time in zip(camera.scores[name], camera.times, strict=True):
            if not up and score > threshold:
                here = [a for a, b in camera.events if a - MARGIN <= time <= b + MARGIN]
                found |= set(here[:1])
                false += not here
            up = score > (threshold * RELEASE / THRESHOLD if up else threshold)
        hits += len(found)
    return hits, false


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the three videos")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--fps", type=float, default=5.0, help="look at so many frames a second at most")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cameras = [watched(args.folder / f"{name}.mp4", args.size, args.fps) for name in EVENTS]
    total = sum(len(camera.events) for camera in cameras)
    seconds = sum(camera.times[-1] - sum(b - a + 2 * MARGIN for a, b in camera.events) for camera in cameras)
    print(f"{total} events; {seconds / 60:.1f} minutes without one")
    print(f"| detector | at {THRESHOLD}: found | false |" + "".join(f" found with {n} false |" for n in FALSE))
    print("| --- | ---: | ---: |" + " ---: |" * len(FALSE))
    for name in cameras[0].scores:
        sweep = [counted(cameras, name, threshold) for threshold in np.geomspace(0.5, 60, 200)]
        best = [max((hits for hits, false in sweep if false <= most), default=0) for most in FALSE]
        row = [*counted(cameras, name, THRESHOLD), *best]
        print(f"| {name} | " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
