"""Compares surprise from `base` and from features of EfficientNet-Lite0 on spliced videos with planted things.

    python demos/novelty_features.py VIDEO … --frames 3000

The streams are those of `tttstream test --config data/spliced` (docs/results/novelty.md), in the size of `watch`. The
detectors on features of stride 16 are the inner loss of an untrained TTT layer with random weights, like the blocks of
`base` that give the surprise; the change since the frame before; and the distance from a running mean of each cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import TTTLayer, encoders, models, open_source
from tttstream.evaluation.spliced import Spliced, judge, table
from tttstream.io.outputs import TextFile
from tttstream.train.data.transforms import fitted
from tttstream.train.novelty import SHOWS
from tttstream.train.planting import plant

PIECE, SEGMENT, SHARE, RATE = 120, 32, 0.2, 0.05  # frames of a video, and between plantings; of segments; of the mean


class OnFeatures:
    """Detectors on the encoder's features, one stream."""

    def __init__(self, size: int) -> None:
        self.encoder = encoders.load(strides=(16,))
        side = -(-size // 16)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.project = nn.Linear(self.encoder.widths[0], 128)
            self.layer = TTTLayer(128, 4, causal="frame", grid=(side, side))
        self.state = self.layer.init_state(1)
        self.last: Tensor | None = None
        self.mean: Tensor | None = None

    def scores(self, frame: Tensor) -> dict[str, float]:
        """Of one frame uint8 [3, size, size]."""
        features = F.normalize(self.encoder(frame[None] / 255)[0].flatten(2).mT, dim=-1)
        tokens = F.layer_norm(self.project(features * features.shape[-1] ** 0.5), (128,))
        _, self.state, loss = self.layer(tokens, self.state, return_loss=True)
        last = features if self.last is None else self.last
        mean = features if self.mean is None else self.mean
        self.last, self.mean = features, mean + RATE * (features - mean)
        far = (1 - F.cosine_similarity(features, mean, dim=-1)).mean()
        change = (1 - F.cosine_similarity(features, last, dim=-1)).mean()
        return {
            "features, TTT": float(loss.before.mean()),
            "features, change": float(change),
            "features, mean": float(far),
        }


def pieces(videos: list[str], size: int, rng: np.random.Generator) -> list[list[Tensor]]:
    """The frames of each video [3, size, size]: at most four pieces from random positions."""
    fit, found = fitted(size), []
    for path in videos:
        with open_source(path) as source:
            count = source.frames or 4 * PIECE
            starts = sorted(int(start) for start in rng.integers(0, max(1, count - PIECE), 4))
            every = [torch.from_numpy(np.ascontiguousarray(f.image)).permute(2, 0, 1) for f in source if any(
                start <= f.index < start + PIECE for start in starts)]  # fmt: skip
        frames = [fit(frame) for frame in every]
        found += [frames[at : at + PIECE] for at in range(0, len(frames) - PIECE // 2, PIECE)]
    return found


def stream(parts: list[list[Tensor]], size: int, length: int, seed: int) -> Spliced:
    """One stream through the model `base` and the detectors on features."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    model, features, made = models.load("base", size=size), OnFeatures(size), Spliced()
    state, fresh = model.watched(model.init_state(1)), model.watched(model.init_state(1))
    order, frames, cuts = rng.permutation(len(parts)), [], set()
    for number in np.resize(order, length // (PIECE // 2)):
        cuts.add(len(frames))
        frames += parts[number]
    for start in tqdm(range(0, length - SEGMENT + 1, SEGMENT), f"stream {seed}", disable=None):
        planted = plant(torch.stack(frames[start : start + SEGMENT])[None], SHARE, generator)
        showing = planted.cover[0].mean((1, 2)) > SHOWS
        for t in range(SEGMENT):
            frame, at = planted.frames[0, t], start + t
            appears = bool(showing[t]) and not (t and bool(showing[t - 1]))
            event = "cut" if at in cuts and at else "thing" if appears else None
            losses, state = model.watch(frame[None, None], state)
            still, _ = model.watch(frame[None, None], fresh, learn=False)
            image = frame.permute(1, 2, 0).contiguous().numpy()
            made.add(image, float(losses.before.mean()), float(still.before.mean()), event, **features.scores(frame))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=3000, help="of each stream")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = pieces(args.videos, args.size, np.random.default_rng(0))
    with torch.inference_mode():
        text = table(judge([stream(parts, args.size, args.frames, seed) for seed in range(args.streams)]))
    print(text)
    if args.out is not None:
        with TextFile(args.out) as file:
            file.write(text)


if __name__ == "__main__":
    main()
