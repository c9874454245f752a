"""Compares the surprise of `base` and of `features` on spliced videos with planted things, or on `walk`.

    python demos/novelty_features.py VIDEO … --frames 3000
    python demos/novelty_features.py --frames 3000         the source `walk`

The streams of videos are those of `tttstream test --config data/spliced` (docs/results/novelty.md), in the size of
`watch`. The detectors on features of stride 16 are the model `features`; the change since the frame before; and the
distance from a running mean of each cell.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import models, open_source
from tttstream.evaluation.spliced import Spliced, at_rates, judge, table
from tttstream.io.outputs import TextFile
from tttstream.train.data.transforms import fitted
from tttstream.train.novelty import SHOWS
from tttstream.train.planting import plant

PIECE, SEGMENT, SHARE, RATE = 120, 32, 0.2, 0.05  # frames of a video, and between plantings; of segments; of the mean
RATES = (0.5, 1, 2, 4, 8)  # false alarms a minute


class OnFeatures:
    """Detectors on the encoder's features, one stream."""

    def __init__(self, size: int) -> None:
        self.model = models.load("features", size=size)
        self.state = self.model.init_state(1)
        self.last: Tensor | None = None
        self.mean: Tensor | None = None

    def scores(self, frame: Tensor) -> dict[str, float]:
        """Of one frame uint8 [3, size, size]."""
        features = self.model.features(frame[None, None])[0]
        losses, self.state = self.model.watch(frame[None, None], self.state)
        last = features if self.last is None else self.last
        mean = features if self.mean is None else self.mean
        self.last, self.mean = features, mean + RATE * (features - mean)
        far = (1 - F.cosine_similarity(features, mean, dim=-1)).mean()
        change = (1 - F.cosine_similarity(features, last, dim=-1)).mean()
        return {
            "features": float(losses.before.mean()),
            "features, change": float(change),
            "features, mean": float(far),
        }


Shown = Iterator[tuple[Tensor, str | None]]
"""Frames uint8 [3, size, size], each with the kind of event that begins with it."""


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


def spliced(parts: list[list[Tensor]], length: int, seed: int) -> Shown:
    """Pieces of videos one after another, with planted things."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    order, frames, cuts = rng.permutation(len(parts)), [], set()
    for number in np.resize(order, length // (PIECE // 2)):
        cuts.add(len(frames))
        frames += parts[number]
    for start in range(0, length - SEGMENT + 1, SEGMENT):
        planted = plant(torch.stack(frames[start : start + SEGMENT])[None], SHARE, generator)
        showing = planted.cover[0].mean((1, 2)) > SHOWS
        for t in range(SEGMENT):
            at = start + t
            appears = bool(showing[t]) and not (t and bool(showing[t - 1]))
            yield planted.frames[0, t], "cut" if at in cuts and at else "thing" if appears else None


def walked(size: int, length: int, seed: int) -> Shown:
    """The generated source `walk`."""
    with open_source("walk", seed=seed, size=size) as source:
        events = {event.start: event.kind for event in source.events(length) or []}
        for frame in islice(source, length):
            yield torch.from_numpy(np.ascontiguousarray(frame.image)).permute(2, 0, 1), events.get(frame.index)


def watched(shown: Shown, size: int, length: int) -> Spliced:
    """One stream through the model `base` and the detectors on features."""
    model, features, made = models.load("base", size=size), OnFeatures(size), Spliced()
    state, fresh = model.watched(model.init_state(1)), model.watched(model.init_state(1))
    for frame, event in tqdm(shown, total=length, disable=None):
        losses, state = model.watch(frame[None, None], state)
        still, _ = model.watch(frame[None, None], fresh, learn=False)
        image = frame.permute(1, 2, 0).contiguous().numpy()
        made.add(image, float(losses.before.mean()), float(still.before.mean()), event, **features.scores(frame))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", help="without any, the source is `walk`")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=3000, help="of each stream")
    parser.add_argument("--streams", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = pieces(args.videos, args.size, np.random.default_rng(0))
    streams = []
    with torch.inference_mode():
        for seed in range(args.streams):
            shown = spliced(parts, args.frames, seed) if parts else walked(args.size, args.frames, seed)
            streams.append(watched(shown, args.size, args.frames))
    lines = ["| detector | event |" + "".join(f" found with {rate:g} false alarms/min |" for rate in RATES)]
    lines.append("| --- | --- |" + " ---: |" * len(RATES))
    kinds = ("all", *sorted({kind for stream in streams for _, kind in stream.counted()}))
    found = {kind: at_rates(streams, RATES, kind) for kind in kinds}
    for name, kind in product(found["all"], kinds):
        shares = " | ".join(f"{share:.2f}" for share in found[kind][name])
        lines.append(f"| {name.replace('_', ' ')} | {kind} | {shares} |")
    text = table(judge(streams)) + "\n" + "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        with TextFile(args.out) as file:
            file.write(text)


if __name__ == "__main__":
    main()
