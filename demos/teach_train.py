"""Train the model of `tttstream teach`: keys from the features of a frozen encoder, and the rule that reads its memory.

    python demos/teach_train.py out/teach --videos VIDEO … --chunks 10

The first run draws the views and keeps their features in OUT/features (45 s a chunk on a core), so that a stopped run
can continue; the training of the memory itself takes minutes. OUT is the model's folder afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from tttstream.models.teach import TeachConfig, TeachModel
from tttstream.sources.photographs import HELD_OUT, NAMES
from tttstream.train.things import Classes, collect, episode, evidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--videos", nargs="*", default=[], help="whose frames and windows are used besides photographs")
    parser.add_argument("--chunks", type=int, default=10, help="of 60 generated things")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model = TeachModel(TeachConfig())
    names = [name for name in NAMES if name not in HELD_OUT]
    classes = Classes(list(collect(model, args.out / "features", names, args.videos, args.chunks)))
    model.mean.copy_(classes.features.mean(0))
    model.deviation.copy_(classes.features.std(0))
    print(f"{len(classes.of)} things, {len(classes.features)} windows")
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.steps, pct_start=0.1)
    rng, losses = np.random.default_rng(args.seed), []
    for _ in (bar := tqdm(range(args.steps))):
        loss = torch.stack([one(model, classes, rng) for _ in range(4)]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix_str(f"loss {np.mean(losses[-100:]):.3f}", refresh=False)
    print(f"loss of the last 100 steps: {np.mean(losses[-100:]):.4f}")
    model.save(args.out)


def one(model: TeachModel, classes: Classes, rng: np.random.Generator) -> torch.Tensor:
    """The loss of one stream: 5 to 50 things are taught at times, and every view is queried before its label."""
    part = episode(classes, rng, int(rng.integers(5, 51)))
    found = evidence(model, classes, part)
    return F.cross_entropy(torch.cat([found, torch.zeros_like(found[:, :1])], 1), part.answers)


if __name__ == "__main__":
    main()
