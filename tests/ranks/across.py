"""Run as `python across.py FILE`: every memory over two and four processes and in one, and how far they differ.

FILE is JSON: by number of processes, case and scene, the largest difference of outputs, states and gradients over the
largest value, from one call over the whole stream ("whole"), and whether all is bit for bit what calls of the same
parts give ("parts").
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from tttstream.memory.base import Memory as Base
from tttstream.ranks import Line, Relay
from tttstream.ranks.scan import scans
from tttstream.state import pack
from tttstream.testing import Case, cases

ROWS, UNITS = 3, 13
PARTS = {2: [6, 7], 4: [3, 1, 5, 4]}
EVEN = {2: [6, 7], 4: [3, 3, 4, 3]}  # as long as a convolution looks back
RESETS = {(0, 0), (1, 4), (2, 12), (1, 9)}
LENGTHS = [13, 2, 8]
SCENES = {2: ("plain", "scan"), 4: ("ragged", "pieces", "scan-resets")}
APART = ("pieces", "scan", "scan-resets")  # not the arithmetic of one process


class Stack(nn.Module):
    """Two layers of memories of one kind, of two parameter sets."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.layers = nn.ModuleList(case.memory(seed=seed) for seed in (0, 1))
        self.norm = nn.LayerNorm(case.dim, dtype=torch.float64)

    def forward(self, x: Tensor, states: Any = (None, None), reset: Any = None, lengths: Any = None) -> Any:
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            y, state = layer(self.norm(x), state, reset, lengths)
            x, after = x + y, [*after, state]
        return x, tuple(after)


def scenes(case: Case, size: int) -> list[str]:
    """The scenes that suit a memory: one whose state grows takes its rows all at once."""
    memory = case.memory()
    fits = {"pieces": memory.bounded, "scan": scans(memory), "scan-resets": scans(memory)}
    return [name for name in SCENES[size] if fits.get(name, True)]


def scene(case: Case, name: str) -> tuple[Tensor, Any, Any]:
    """x, reset and lengths."""
    reset = case.resets(ROWS, UNITS, RESETS) if name in ("ragged", "pieces", "scan-resets") else None
    lengths = torch.tensor(LENGTHS) * case.unit if name == "ragged" else None
    return case.stream(ROWS, UNITS, seed=7), reset, lengths


def older(case: Case, model: Stack) -> Any:
    """States that have seen a little of other streams, with a gradient of their own."""
    with torch.no_grad():
        lengths = torch.tensor([0, 3, 2]) * case.unit
        _, states = model(case.stream(ROWS, 3, seed=5), lengths=lengths)
    return tuple(state.map(lambda leaf: leaf.clone().requires_grad_()) for state in states)


def loss(y: Tensor, start: int) -> Tensor:
    """A number that every output matters for, each with its own weight."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(ROWS, 400, y.shape[-1], generator=generator, dtype=y.dtype)
    return (y * weights[:, start : start + y.shape[1]]).sum()


def part(case: Case, name: str, begin: int, end: int) -> tuple[Tensor, Any, Any]:
    """What one rank gets of a scene."""
    x, reset, lengths = scene(case, name)
    begin, end = begin * case.unit, end * case.unit
    lengths = None if lengths is None else (lengths - begin).clamp(0, end - begin)
    return x[:, begin:end].clone().requires_grad_(), None if reset is None else reset[:, begin:end], lengths


def states_of(states: Any) -> Tensor:
    return torch.cat([pack(state) for state in states], 1).detach()


def gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def rank(number: int, size: int, folder: str) -> None:
    """One process of a line."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=size)
    line = Line()
    found: dict[str, Any] = {}
    for case in cases():
        for name in scenes(case, size):
            borders = [0, *accumulate((EVEN if name.startswith("scan") else PARTS)[size])]
            model = Stack(case)
            before = older(case, model) if number == 0 else (None, None)
            x, reset, lengths = part(case, name, *borders[number : number + 2])
            with Relay(model, line, pieces=2 if name == "pieces" else 1, scan=name.startswith("scan")):
                y, states = model(x, before, reset, lengths)
            loss(y, borders[number] * case.unit).backward()
            old = [gradient(leaf) for state in before for leaf in state.tensors()] if number == 0 else []
            found[f"{case}/{name}"] = (
                y.detach(),
                states_of(states),
                x.grad,
                [gradient(p) for p in model.parameters()],
                old,
            )
            assert not any("forward" in vars(memory) for memory in model.modules() if isinstance(memory, Base))
    torch.save(found, f"{folder}/{number}.pt")
    dist.barrier()
    dist.destroy_process_group()


def alone(case: Case, name: str, parts: list[int]) -> Any:
    """The same in one process, as one call or as calls of parts; gradients of parameters by part."""
    borders = [0, *accumulate(parts)]
    models = [Stack(case) for _ in parts]
    states = before = older(case, models[0])
    ys, xs, total = [], [], torch.zeros((), dtype=torch.float64)
    for model, (begin, end) in zip(models, pairwise(borders), strict=True):
        x, reset, lengths = part(case, name, begin, end)
        y, states = model(x, states, reset, lengths)
        total = total + loss(y, begin * case.unit)
        ys, xs = [*ys, y.detach()], [*xs, x]
    total.backward()
    old = [gradient(leaf) for state in before for leaf in state.tensors()]
    return (
        ys,
        states_of(states),
        [x.grad for x in xs],
        [[gradient(p) for p in model.parameters()] for model in models],
        old,
    )


def apart(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest difference over the largest value, or a hundredth where all are smaller."""
    assert [a.shape for a in left] == [b.shape for b in right]
    pairs = [(a, b) for a, b in zip(left, right, strict=True) if b.numel()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=0.01)) for a, b in pairs)


def compared(case: Case, name: str, found: list[Any]) -> dict[str, Any]:
    """What the ranks found against one process."""
    ys, states, xs, ps, olds = zip(*found, strict=True)
    y, state, x, p, old = alone(case, name, [UNITS])
    summed = [torch.stack(each).sum(0) for each in zip(*ps, strict=True)]
    whole = {
        "y": apart([torch.cat(ys, 1)], y),
        "state": apart([states[-1]], [state]),
        "x": apart([torch.cat(xs, 1)], x),
        "parameters": apart(summed, p[0]),
        "start": apart(olds[0], old),
    }
    if name in APART:
        return {"whole": whole}
    y, state, x, p, _ = alone(case, name, PARTS[len(found)])
    pairs = [(ys, y), (xs, x), ([states[-1]], [state]), *zip(ps, p, strict=True)]
    same = [torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True)]
    return {"whole": whole, "parts": all(same)}


def run(size: int) -> dict[str, Any]:
    """Start the processes of a line, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=rank, args=(number, size, folder)) for number in range(size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert not any(process.exitcode for process in processes), [process.exitcode for process in processes]
        ranks = [torch.load(f"{folder}/{number}.pt") for number in range(size)]
    return {
        f"{case}/{name}": compared(case, name, [rank[f"{case}/{name}"] for rank in ranks])
        for case in cases()
        for name in scenes(case, size)
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps({size: run(size) for size in SCENES}))
