"""Cuts 12 short clips of four classes for training, and test clips from other videos and from later parts of these.

    python demos/clips.py ../shared/videos out/clips
    tttstream fit --config trainer/fast --config model/encoded --config task/classification \\
        --config demos/clips.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from shrink import shrink

FRAMES = 48
DAVIS = "masks/davis/JPEGImages/480p/"
CLIPS: dict[str, dict[str, list[tuple[str, int]]]] = {
    "train": {
        "dog": [(DAVIS + "dog", 0), (DAVIS + "libby", 0), ("objects/dog.mp4", 0)],
        "car": [(DAVIS + "car-shadow", 0), (DAVIS + "drift-straight", 0), ("surveillance/car-detection.mp4", 0)],
        "person": [("people/bedroom.mp4", 0), ("people/carphone.mp4", 0), ("people/juggle.mp4", 0)],
        "table": [("objects/cups.mp4", 0), ("objects/coffee.mp4", 0), ("objects/blocks.mp4", 0)],
    },
    "test": {
        "dog": [(DAVIS + "dog", 48), ("objects/dog.mp4", 240)],
        "car": [("surveillance/car-detection.mp4", 300)],
        "person": [("people/bedroom.mp4", 150), ("people/carphone.mp4", 72), ("people/juggle.mp4", 190)],
        "table": [("objects/cups.mp4", 240), ("objects/coffee.mp4", 230), ("objects/blocks.mp4", 240)],
    },
    "other": {
        "person": [("people/cutie_example.mp4", 0), ("surveillance/one-by-one-person-detection.mp4", 0)],
        "table": [("surveillance/bottle-detection.mp4", 0), ("scenes/flipping_a_pancake.mkv", 0)],
    },
}
"""The video and the first frame of each clip. The test clips include later parts of the training videos."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("out", type=Path, help="gets train/CLASS, test/CLASS and other/CLASS")
    args = parser.parse_args()
    for part, classes in CLIPS.items():
        for name, clips in classes.items():
            for number, (video, first) in enumerate(clips):
                frames = shrink(args.videos / video, args.out / part / name / f"{number}.mp4", 240, FRAMES, first)
                print(f"{part} {name} {number}: {frames} frames of {video}", flush=True)


if __name__ == "__main__":
    main()
