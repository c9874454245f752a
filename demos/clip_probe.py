"""A linear probe on clips, beside a trained classifier: how far do mean features of the same encoder go?

    python demos/clips.py ../shared/videos out/clips
    python demos/clip_probe.py out/clips

The features of a frame are the mean over the picture of the last map of EfficientNet-Lite0, the input of
`--config model/encoded --config task/classification`, on the central square of 160 pixels. The probe is a logistic
regression with weight decay on the frames of the clips in train/. It is asked about the frames of test/ and other/; the
class of a clip is that of the mean of its log probabilities.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms

from tttstream import open_source
from tttstream.encoders.vision import build

STEPS, DECAY = 300, 1e-2


def features(folder: Path, size: int, names: list[str]) -> list[tuple[Tensor, int]]:
    """The features [frames, C] of each clip in the folders of classes, and its label."""
    encoder, _ = build("efficientnet_lite0", size, "default")
    found = []
    with torch.inference_mode():
        for path in sorted(folder.glob("*/*.mp4")):
            with open_source(str(path)) as source:
                pixels = [torch.from_numpy(frame.image.copy()).permute(2, 0, 1) for frame in source]
            pictures = transforms.center_crop(
                transforms.resize(torch.stack(pixels), [size], antialias=True), [size] * 2
            )
            means = [encoder.last(part / 255).mean((2, 3)) for part in pictures.split(8)]
            found.append((torch.cat(means), names.index(path.parent.name)))
    return found


def fit(shown: list[tuple[Tensor, int]], classes: int, seed: int) -> Callable[[Tensor], Tensor]:
    """The trained probe: features [n, C] to log probabilities [n, classes]."""
    torch.manual_seed(seed)
    x = torch.cat([clip for clip, _ in shown]).clone()
    y = torch.cat([torch.full((len(clip),), label) for clip, label in shown])
    mean, spread = x.mean(0), x.std(0) + 1e-3
    probe = nn.Linear(x.shape[1], classes)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=DECAY)
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(probe((x - mean) / spread), y).backward()
        optimiser.step()
    return lambda clip: probe((clip - mean) / spread).log_softmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="the folder that demos/clips.py wrote")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3, help="probes with other first weights")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(path.name for path in (args.clips / "train").iterdir())
    parts = {part: features(args.clips / part, args.size, names) for part in ("train", "test", "other")}
    print(f"{len(parts['train'])} clips, classes {', '.join(names)}: {time.process_time():.0f} s of processor time")
    for seed in range(args.seeds):
        probe = fit(parts["train"], len(names), seed)
        for part, clips in parts.items():
            logs = [(probe(clip), label) for clip, label in clips]
            frames = float(np.mean([float((one.argmax(1) == label).float().mean()) for one, label in logs]))
            right = sum(int(one.mean(0).argmax()) == label for one, label in logs)
            print(f"seed {seed}, {part}: {right} of {len(clips)} clips, {frames:.3f} of the frames", flush=True)


if __name__ == "__main__":
    main()
