"""Computes the efficiency of up to 64 ranks that share a stream: measured times of one part, a simulation, a formula.

python demos/longer.py --out docs/longer.png

Prints the tables of docs/longer.md. All parts of the stream have one length, so the length of the stream is
proportional to the number of ranks. Messages are not measured: each takes --latency plus its bytes over --bandwidth.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from tttstream import memory as memories
from tttstream.memory import Memory
from tttstream.memory.matrix import MatrixMemory
from tttstream.models.backbone import Block

DIM, HEADS, TOKENS = 192, 3, 16
RANKS = (1, 2, 4, 8, 16, 32, 64)
WAYS = {
    "ttt_linear": False, "ttt_mlp": False, "gated_delta": False, "gated_delta, scan": True, "mesa": False,
    "mesa, scan": True,
}  # fmt: skip


class Times(NamedTuple):
    """Milliseconds of a piece of rows in one layer, [repeats] each: the memory's call, which waits for the rank before,
    and the rest of the layer, forward and backward; and bytes of a message."""

    memory: np.ndarray
    rest: np.ndarray
    memory_back: np.ndarray
    rest_back: np.ndarray
    nbytes: int

    def each(self) -> tuple[float, float, float, float]:
        """Medians."""
        return tuple(float(np.median(part)) for part in self[:4])  # type: ignore[return-value]

    @property
    def whole(self) -> float:
        """Forward and backward of a layer."""
        return sum(self.each())


def clock(call: Callable[[], Tensor], repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds of forward and of backward, in processor time of this process."""
    took = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        loss = call().sum()
        middle = time.process_time()
        loss.backward()
        took.append((1e3 * (middle - begin), 1e3 * (time.process_time() - middle)))
    forward, backward = np.array(took[1:]).T
    return forward, backward


class Absent(nn.Module):
    """Replaces a memory, and returns the tokens unchanged."""

    def forward(self, x: Tensor, state: Any, reset: Any) -> tuple[Tensor, Any]:
        """See the class."""
        return x, state


def affine(transition: Tensor, addition: Tensor, state: Tensor) -> Tensor:
    """A stand-in for the ranks before: it uses every message of a rank to the others."""
    moved = transition * state if transition.shape[-1] == 1 else transition @ state
    return addition + moved


def measured(name: str, scan: bool, rows: int, frames: int, repeats: int) -> Times:
    """Times of a layer for rows × frames."""
    torch.manual_seed(0)
    name = name.split(",")[0]
    options = {"causal": "frame", "grid": (4, 4)} if name.startswith("ttt") else {}
    memory: Any = memories.build(name, dim=DIM, heads=HEADS, **options)
    block = Block(DIM, HEADS, cast(Memory, Absent()), 0, 4)
    x = torch.randn(rows, frames, TOKENS, DIM, requires_grad=True)
    flat = torch.randn(rows, frames * TOKENS, DIM, requires_grad=True)
    if scan:
        assert isinstance(memory, MatrixMemory)
        memory.run = partial(memory.run, before=affine)  # type: ignore[method-assign]
    alone, alone_back = clock(lambda: memory(flat)[0], repeats)
    rest, rest_back = clock(lambda: block(x, None, None, True)[0], repeats)
    return Times(alone, rest, alone_back, rest_back, memory.init_state(rows).nbytes)


def simulated(times: Times, ranks: int, tasks: int, hop: float, rng: np.random.Generator, scan: bool) -> float:
    """Milliseconds of a step over this number of ranks, with times drawn from measured ones. hop: of a message, ms."""
    memory, rest, back, rest_back = (rng.choice(part, (ranks, tasks)) for part in times[:4])
    rounds = 0 if ranks == 1 else math.ceil(math.log2(max(1, ranks - 1))) + 1
    ends = np.zeros(ranks)
    for wait, work, order in ((rest, memory, range(ranks)), (rest_back, back, range(ranks - 1, -1, -1))):
        for task in range(tasks):
            ends = ends + wait[:, task]
            if scan:  # all ranks wait for each other
                ends = np.full(ranks, (ends + work[:, task]).max() + rounds * hop)
                continue
            came = 0.0
            for rank in order:
                came = ends[rank] = max(ends[rank], came) + work[rank, task]
                came += hop
    return float(ends.max())


def on_paper(times: Times, ranks: int, tasks: int, hop: float, scan: bool) -> float:
    """The formulas of docs/longer.md, in milliseconds."""
    memory, _, back, _ = times.each()
    if scan:
        rounds = 0 if ranks == 1 else math.ceil(math.log2(max(1, ranks - 1))) + 1
        return tasks * (times.whole + 2 * rounds * hop)
    return tasks * times.whole + (ranks - 1) * (memory + back + 2 * hop)


def draw(axes: Any, colour: str, name: str, pieces: int, shares: list[float], papers: list[float]) -> None:
    """The lines of one row of the table: squares for several pieces, dots for the formula."""
    label, marker = f"{name}, {pieces} piece{'s' * (pieces > 1)}", "s" if pieces > 1 else "o"
    axes.plot(RANKS, shares, marker=marker, color=colour, linestyle="--" if pieces > 1 else "-", label=label)
    axes.plot(RANKS, papers, linestyle=":", color=colour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--rows", type=int, default=8, help="of a batch")
    parser.add_argument("--frames", type=int, default=16, help="of a rank's part, of 16 tokens each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05, help="of a message, milliseconds")
    parser.add_argument("--bandwidth", type=float, default=10.0, help="of a message, gigabytes a second")
    parser.add_argument("--out", type=Path, help="a picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pieces = [count for count in (1, 2, 4, 8) if args.rows % count == 0]
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    print("| memory | pieces | memory's call, ms | rest of a layer, ms |", *(f"{ranks} |" for ranks in RANKS))
    print("| --- | --- | --- | --- |", *("--- |" for _ in RANKS))
    for colour, (name, scan) in enumerate(WAYS.items()):
        plain = measured(name, False, args.rows, args.frames, args.repeats)
        for count in pieces:
            made = partial(measured, name, scan, args.rows // count, args.frames, args.repeats)
            times = plain if count == 1 and not scan else made()
            tasks, hop = args.layers * count, args.latency + times.nbytes / args.bandwidth / 1e6
            shares, papers = [], []
            for ranks in RANKS:
                rng = np.random.default_rng(ranks)
                took = np.mean([simulated(times, ranks, tasks, hop, rng, scan) for _ in range(5)])
                shares.append(args.layers * plain.whole / took)
                papers.append(args.layers * plain.whole / on_paper(times, ranks, tasks, hop, scan))
            memory, rest, back, rest_back = times.each()
            said = [f"{share:.2f} ({paper:.2f}) |" for share, paper in zip(shares, papers, strict=True)]
            print(f"| {name} | {count} | {memory:.1f} + {back:.1f} | {rest:.1f} + {rest_back:.1f} |", *said, flush=True)
            if count in (pieces[0], pieces[-1]):
                draw(axes, f"C{colour}", name, count, shares, papers)
    axes.set(xscale="log", xticks=RANKS, xticklabels=RANKS, ylim=(0, 1.1), xlabel="ranks in time", ylabel="efficiency")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    if args.out is not None:
        figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
