"""Trains memories inserted into a frozen EfficientNet-Lite0 to recall names of places in a stream.

A stream returns to places in photographs, each time slightly shifted. In some visits the picture has a coloured border,
the name of the place. In later visits the border is absent, and the network must predict the last colour of the place.
No single picture contains the answer; with four colours, guessing is right in 25%. The encoder keeps its ImageNet
weights; a memory after its last block and a linear read-out are trained on seven photographs of scikit-image and on
frames of given videos; the test uses three other photographs.

    python demos/insert.py --videos DIR --memories ttt_mlp ttt_linear gated_delta gru window none
    python demos/insert.py --videos DIR --memories ttt_linear --tokens mean sequence position
    python demos/insert.py --draw docs/insert.png
"""

import argparse
import json
import time
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import tttstream
from tttstream.sources.listing import expand
from tttstream.sources.photographs import HELD_OUT, NAMES, photograph

SIDE, COLOURS, VIEWS = 64, ((230, 30, 30), (30, 200, 30), (40, 60, 240), (240, 220, 30)), 4
AGES = ((1, 4), (4, 16), (16, 64), (64, 128))
OPTIONS = {
    "none": ("gru", {}),
    "window": ("window", {"window": 16}),
    "ttt_mlp": ("ttt_mlp", {"mini_batch": 4, "rotary": False}),
    "ttt_linear": ("ttt_linear", {"mini_batch": 4, "rotary": False}),
}
"""Memories with other options than the defaults, by name."""


def stills(folders: list[str]) -> list[np.ndarray]:
    """Up to twelve frames of each video in some folders, 50 frames apart."""
    paths = expand(folders) if folders else []
    return [frame.image for path in paths for frame in islice(tttstream.open_source(path), 0, 600, 50)]


def bank(photographs: list[np.ndarray], places: int, seed: int, encoder: nn.Module) -> Tensor:
    """Features of the frozen blocks for every picture: [places, views, 1 + colours, 320, 2, 2]."""
    import cv2

    rng = np.random.default_rng(seed)
    found = []
    for number in tqdm(range(places), "pictures", leave=False):
        whole = photographs[number % len(photographs)][:, :: rng.choice((1, -1))][..., rng.permutation(3)]
        side = int(min(rng.integers(70, 220), 0.8 * min(whole.shape[:2])))
        shift = side // 16
        top, left = (int(rng.integers(shift, size - side - shift)) for size in whole.shape[:2])
        gains = rng.uniform(0.6, 1.2, 3)  # changed colours, so that a few photographs give many places
        pictures = []
        for _ in range(VIEWS):
            down, right = rng.integers(-shift, shift + 1, 2)
            piece = whole[top + down : top + down + side, left + right : left + right + side]
            view = cv2.resize(piece, (SIDE, SIDE), interpolation=cv2.INTER_AREA) * gains * rng.uniform(0.9, 1.1)
            for colour in (None, *COLOURS):
                framed = view.clip(0, 255).copy()
                if colour is not None:
                    framed[:6] = framed[-6:] = framed[:, :6] = framed[:, -6:] = colour
                pictures.append(framed)
        with torch.no_grad():
            found.append(encoder(torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255)[0])
    return torch.stack(found).unflatten(1, (VIEWS, -1))


def streams(
    bank: Tensor, rows: int, frames: int, places: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [rows, frames, C, h, w], the right colours (-1 where one is shown), frames since it was shown."""
    which, colour, age = (np.zeros((rows, frames), np.int64) for _ in range(3))
    here = np.stack([rng.choice(len(bank), places, replace=False) for _ in range(rows)])
    answer = np.full((rows, frames), -1)
    for row in range(rows):
        name, since = np.full(places, -1), np.zeros(places, np.int64)
        for t in range(frames):
            place = int(rng.integers(places))
            which[row, t] = here[row, place]
            if name[place] < 0 or rng.random() < 0.1:
                name[place], since[place] = rng.integers(len(COLOURS)), t
                colour[row, t] = 1 + name[place]
            else:
                answer[row, t], age[row, t] = name[place], t - since[place]
    return bank[which, rng.integers(VIEWS, size=which.shape), colour], torch.tensor(answer), torch.tensor(age)


def train(args: argparse.Namespace, memory: str, tokens: str, pictures: tuple[Tensor, Tensor]) -> dict[str, object]:
    """Train the memory and the read-out; the share of right answers by age on places of other photographs."""
    torch.manual_seed(args.seed)
    network = nn.Sequential()  # the frozen blocks ran before: `pictures` are their maps
    for name, part in (("blocks", nn.Identity()), ("mean", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten())):
        network.add_module(name, part)
    kind, more = OPTIONS.get(memory, (memory, {}))
    if tokens == "sequence" and kind.startswith("ttt"):
        more = {}  # whole frames
    example = pictures[0][:, 0].flatten(0, 1)
    model = tttstream.insert(network, "blocks", kind, dim=64, heads=2, tokens=tokens, example=example, **more)
    if memory == "none":
        model.memories.requires_grad_(False)  # their gates stay closed: the unchanged network
    head = nn.Sequential(nn.LayerNorm(example.shape[1]), nn.Linear(example.shape[1], len(COLOURS)))
    learned = [weight for weight in (*model.memories.parameters(), *head.parameters()) if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.1)
    rng, start = np.random.default_rng(args.seed), time.process_time()
    for _ in (bar := tqdm(range(args.steps), f"{memory} {tokens}", mininterval=5)):
        frames, answer, _ = streams(pictures[0], 32, 24, int(rng.integers(2, 9)), rng)
        loss = F.cross_entropy(head(model(frames)[0]).flatten(0, 1), answer.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    spent = time.process_time() - start
    found: dict[str, object] = {"memory": memory, "tokens": tokens, "seed": args.seed, "steps": args.steps}
    for part, shown in zip(("train", "test"), pictures, strict=True):
        rng, right = np.random.default_rng(12345), []
        with torch.no_grad():
            for _ in range(8):
                frames, answer, age = streams(shown, 16, args.test_frames, 8, rng)
                right += [(head(model(frames)[0]).argmax(-1) == answer)[answer >= 0], age[answer >= 0]]
        hits, ages = torch.cat(right[::2]).double(), torch.cat(right[1::2])
        by_age = [float(hits[(ages >= low) & (ages < high)].mean()) for low, high in AGES]
        found |= {part: float(hits.mean()), f"{part}_by_age": by_age, f"{part}_answers": len(hits)}
    weights, size = sum(weight.numel() for weight in model.memories.parameters()), model.init_state(1).nbytes
    return {**found, "weights": weights, "state_bytes": size, "cpu_s": round(spent)}


def draw(out: Path, picture: Path) -> None:
    """The share of right answers by age, one line for each memory, the mean over seeds."""
    import matplotlib.pyplot as plt

    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for part, title, panel in zip(
        ("train", "test"), ("places of training", "places of other photographs"), axes, strict=True
    ):
        for memory in dict.fromkeys(run["memory"] for run in runs if run["tokens"] == "mean"):
            lines = [run[f"{part}_by_age"] for run in runs if run["memory"] == memory and run["tokens"] == "mean"]
            panel.plot([100 * value for value in np.mean(lines, 0)], marker="o", label=memory)
        panel.axhline(100 / len(COLOURS), color="grey", linewidth=1, linestyle=":")
        panel.set_xticks(range(len(AGES)), [f"{low}–{high - 1}" for low, high in AGES])
        panel.set(title=title, xlabel="frames since the name was shown", ylim=(0, 100))
    axes[0].set_ylabel("right answers, %")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", nargs="+", default=["ttt_mlp", "gru", "window", "none"])
    parser.add_argument("--tokens", nargs="+", default=["mean"], help="mean, sequence, position")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--places", type=int, default=1500, help="in the pictures of training; a fifth more to test")
    parser.add_argument("--videos", nargs="*", default=[], metavar="DIR", help="more pictures to learn on")
    parser.add_argument("--test-frames", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("out/insert"))
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw what stands in --out, and train nothing")
    args = parser.parse_args()
    if args.draw is not None:
        return draw(args.out, args.draw)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    of = zlib.crc32("\n".join(args.videos).encode())
    kept = args.out / f"pictures-{args.places}-{of:08x}.pt"  # the frozen part of the network takes longest
    if not kept.is_file():
        encoder = tttstream.encoders.load("efficientnet_lite0", strides=(32,))
        learned = [photograph(name) for name in NAMES if name not in HELD_OUT]
        learned = stills(args.videos) + learned * 4
        tested = [photograph(name) for name in HELD_OUT]
        torch.save((bank(learned, args.places, 0, encoder), bank(tested, args.places // 5, 1, encoder)), kept)
    pictures = torch.load(kept)
    for memory in args.memories:
        for tokens in args.tokens:
            found = train(args, memory, tokens, pictures)
            with open(args.out / "runs.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
