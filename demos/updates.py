"""Updates of the inner model compared: plain, momentum with decay (Titans), Muon, a diagonal preconditioner.

    python demos/updates.py --scenes 40 --out docs/results/updates.md

Untrained inner models learn scenes of 1,024 tokens that share nothing, with mini-batches of 16 and of 64 tokens. Every
update runs with eight rates, powers of two times the default one; the table shows the rate with the least sum of the
losses early in a scene and on the scene before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from lives import BACK, WIDTH, live, origin
from runs import publish

from tttstream import inner as catalogue
from tttstream_kernels import RMS, Muon, Update

CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "momentum 0.5": {"momentum": 0.5},
    "momentum 0.9": {"momentum": 0.9},
    "momentum 0.5, decay 0.001 (Titans)": {"momentum": 0.5, "forget": 0.001},
    "Muon": {"direction": Muon()},
    "Muon, 5 steps": {"direction": Muon(steps=5)},
    "RMS": {"direction": RMS()},
    "normalised": {"step": "normalised"},
}
FACTORS = [2.0**power for power in range(-2, 6)]


def row(name: str, tokens: int, label: str, scenes: int) -> str:
    """One update of one inner model, as a line of the table."""
    entry = catalogue.find(name)
    update: Update = entry.update(entry.base_lr, WIDTH, tokens, "token")._replace(**CHANGES[label])
    began = time.thread_time()
    life = live(name, "token", update, "share nothing", scenes, len(FACTORS), tokens, FACTORS)
    took = 1e6 * (time.thread_time() - began) / (scenes * 1024)
    early, late = life.early[1:].mean(0), life.late[1:].mean(0)
    best = int((early + life.recall[0]).argmin())
    cells = [early[best], late[best], *(asked[best] for asked in life.recall)]
    numbers = " | ".join(f"{float(cell):.2f}" for cell in cells)
    return f"| {name} | {tokens} | {label} | {FACTORS[best]:g} | {numbers} | {took:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="at least 40")
    parser.add_argument("--inner", nargs="+", choices=("linear", "mlp"), default=["linear"])
    parser.add_argument("--out", type=Path, default=Path("out/updates.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["early", "late", *(f"{back} back" for back in BACK)]
    lines = ["| model | K | update | rate | " + " | ".join(heads) + " | µs a token |"]
    lines += ["| --- | ---: | --- | ---: " + "| ---: " * (len(heads) + 1) + "|"]
    for name in args.inner:
        for tokens in (16, 64):
            for label in CHANGES:
                lines.append(row(name, tokens, label, args.scenes))
                print(lines[-1], flush=True)
    words = f"demos/updates.py --scenes {args.scenes} --inner {' '.join(args.inner)}"
    text = ["# Updates of the inner model", "", origin(words), ""]
    text += [
        "Inner loss of the tokens right after the first mini-batch of a scene (early), of its last 128 (late), and on"
        " earlier scenes, read without learning. Rate: the factor of the default rate with the least sum of early and 1"
        f" back, of {', '.join(f'{factor:g}' for factor in FACTORS)}. Time: CPU time of one token with all eight rates"
        " side by side in four streams.",
        "",
    ]
    publish([*text, *lines], args.out, quiet=True)


if __name__ == "__main__":
    main()
