"""Recall, counting, copying and first-seen in one stream: the tasks that each memory solves, and up to which length.

    python demos/memories.py --minutes 60                     # continues the queue; records in docs/results
    python demos/memories.py --only delta additive ttt --rates 2e-3 --seeds 1 --match state

Each memory has its own network. Training uses new streams of 128 tokens, the test streams of 64 times that length.
There are four tasks. Recall: a token gives the value of a key or asks for it; some keys were last given long ago.
Count: a token marks an item or asks how often an item was marked. First-seen: a token shows a code and asks whether it
is new. Copy: a token gives a symbol and asks for the one two symbols before. All memories have the same number of
parameters, or with `--match state` the same number of bytes of state.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from runs import Record, add_queue, best, descend, fifties, following, go_on, publish
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import memory as catalogue
from tttstream_kernels import RMS, Muon

TELL, ASK, MARK, COUNT, SHOW, PUT = range(6)
SHARES = (0.25, 0.2, 0.15, 0.1, 0.15, 0.15)  # of the six kinds of token
KEYS, VALUES, ITEMS, CODE, LAG = 16, 8, 8, 32, 2
LENGTH, ROWS, HEADS, TIMES = 128, 16, 4, 64
PARAMETERS, BYTES = 20_000, 16_384  # of the memory alone, and of its state
AGES = (1, 64, 256, 1024)
TASKS = ("recall", "count", "first-seen", "copy")
# One token contains a whole item, so optional convolutions are left out.
MEMORIES: dict[str, dict[str, Any]] = {
    "additive": {"conv": 0},
    "delta": {"conv": 0},
    "kernel_delta": {"conv": 0},
    "gated_delta": {"conv": 0},
    "mesa": {"conv": 0},
    "mamba2": {"state": 16},
    "rwkv7": {"rank": 8},
    "ttt_linear": {"rotary": False},
    "ttt_mlp": {"rotary": False},
    "ttt": {"conv": 0},
    "mixed": {"options": {"ttt_mlp": {"rotary": False}, "delta": {"conv": 0}, "additive": {"conv": 0}}},
    "ttt_nested": {"conv": 0},
    "ttt_slots": {"conv": 0},
    "gru": {},
    "lstm": {},
    "window": {"window": 128},
    "attention": {},
}
# The linear TTT layer with other updates, mini-batches of 64 tokens, and other inner tasks: options, and the change of
# its update.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ttt_linear_muon": ({}, {"direction": Muon()}),
    "ttt_linear_rms": ({}, {"direction": RMS()}),
    "ttt_linear_momentum": ({}, {"momentum": 0.5, "forget": 0.01}),
    "ttt_linear_64": ({"mini_batch": 64}, {}),
    "ttt_linear_64_muon": ({"mini_batch": 64}, {"direction": Muon()}),
    "ttt_linear_next": ({"task": "next"}, {}),
    "ttt_linear_denoising": ({"task": "denoising"}, {}),
    "ttt_linear_masking": ({"task": "masking"}, {}),
}
NAMES = (*MEMORIES, *VARIANTS)


def make(name: str, dim: int) -> Any:
    """The memory of that name."""
    if name not in VARIANTS:
        return catalogue.build(name, dim=dim, heads=HEADS, **MEMORIES[name])
    options, change = VARIANTS[name]
    options = {**MEMORIES["ttt_linear"], **options}
    update = catalogue.TTTLayer(dim, HEADS, **options).update._replace(**change)
    return catalogue.TTTLayer(dim, HEADS, update=update, **options)


class Stream(NamedTuple):
    """Tokens [B, T] and their targets: kind, name (a key or an item), value, code [B, T, CODE], answer, age (of what is
    recalled; 0 elsewhere). The answer is a class, a count, or 1 for seen before; -1 if there is none."""

    kind: Tensor
    name: Tensor
    value: Tensor
    code: Tensor
    answer: Tensor
    age: Tensor


class Worlds:
    """Streams that continue from call to call, a row each."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rng, self.rows, self.time = np.random.default_rng(seed), rows, 0
        self.told = np.full((rows, KEYS), -1)
        self.when = np.zeros((rows, KEYS), int)
        self.marks = np.zeros((rows, ITEMS), int)
        self.puts: list[list[int]] = [[] for _ in range(rows)]
        self.seen: list[list[Any]] = [[] for _ in range(rows)]
        often = 1 / np.arange(1, KEYS + 1)
        self.often = np.stack([self.rng.permutation(often / often.sum()) for _ in range(rows)])

    def go(self, count: int) -> Stream:
        """The next tokens of every row."""
        rng, size = self.rng, (self.rows, count)
        kind = rng.choice(6, size, p=SHARES)
        names = rng.integers(0, ITEMS, size)
        value, answer, age = rng.integers(0, VALUES, size), np.full(size, -1), np.zeros(size, int)
        code = np.zeros((*size, CODE), np.float32)
        new = rng.random(size) < 0.5
        for row in range(self.rows):
            keys = rng.choice(KEYS, count, p=self.often[row])
            told, when, marks, puts, seen = (z[row] for z in (self.told, self.when, self.marks, self.puts, self.seen))
            for t in range(count):
                what = kind[row, t]
                if what in (TELL, ASK):
                    key = names[row, t] = keys[t] if what == TELL else rng.integers(KEYS)
                    if what == TELL:
                        told[key], when[key] = value[row, t], self.time + t
                    else:
                        answer[row, t], age[row, t] = told[key], self.time + t - when[key]
                elif what == MARK:
                    marks[names[row, t]] += 1
                elif what == COUNT:
                    answer[row, t] = marks[names[row, t]]
                elif what == SHOW:
                    again = bool(seen) and not new[row, t]
                    one = seen[rng.integers(len(seen))] if again else rng.normal(size=CODE).astype(np.float32)
                    code[row, t], answer[row, t] = one, again
                    if not again:
                        seen.append(one)
                else:
                    puts.append(int(value[row, t]))
                    answer[row, t] = puts[-1 - LAG] if len(puts) > LAG else -1
        self.time += count
        value[(kind != TELL) & (kind != PUT)] = VALUES
        names[(kind == SHOW) | (kind == PUT)] = 0
        return Stream(*(torch.from_numpy(z) for z in (kind, names, value, code, answer, age)))


class Network(nn.Module):
    """Tokens, one memory, answers. The count has a linear layer, so that it can grow; the rest has a small network."""

    def __init__(self, name: str, dim: int) -> None:
        super().__init__()
        self.kind, self.name = nn.Embedding(6, dim), nn.Embedding(KEYS + ITEMS, dim)
        self.value, self.code = nn.Embedding(VALUES + 1, dim), nn.Linear(CODE, dim)
        self.before, self.after = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.memory = make(name, dim)
        self.think = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, VALUES + 1))
        self.count = nn.Linear(dim, 1)

    def forward(self, stream: Stream, state: Any = None) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Logits of classes [B, T, VALUES], logits of "seen before" [B, T], counts [B, T], the state."""
        name = stream.name + KEYS * ((stream.kind == MARK) | (stream.kind == COUNT))
        x = self.before(self.kind(stream.kind) + self.name(name) + self.value(stream.value) + self.code(stream.code))
        y, state = self.memory(x, state)
        said = self.think(self.after(x + y))
        return said[..., :-1], said[..., -1], self.count(y)[..., 0], state


def asked(stream: Stream, task: str) -> Tensor:
    """The tokens [B, T] that need an answer of this task."""
    kind = {"recall": ASK, "count": COUNT, "first-seen": SHOW, "copy": PUT}[task]
    return (stream.kind == kind) & (stream.answer >= 0)


def width(name: str, match: str) -> int:
    """The width whose memory is nearest to PARAMETERS, or to BYTES of state (to PARAMETERS where the state grows)."""

    def off(dim: int) -> float:
        memory = make(name, dim)
        if match == "state" and memory.bounded:
            return abs(math.log(memory.init_state(1).nbytes / BYTES))
        return abs(math.log(sum(p.numel() for p in memory.parameters()) / PARAMETERS))

    return min(range(16, 257, 8), key=off)


class Part(NamedTuple):
    """A part of a training: its steps, and the number and length in tokens of the new streams in each."""

    steps: int
    rows: int = ROWS
    length: int = LENGTH


def train(name: str, dim: int, rate: float, seed: int, parts: Sequence[Part]) -> tuple[Network, list[float]]:
    """A trained network and its mean loss over every 50 steps."""
    torch.manual_seed(seed)
    sizes = [part for part in parts for _ in range(part.steps)]
    steps = len(sizes)
    network = Network(name, dim)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    losses = []
    for step in tqdm(range(steps), f"{name} {rate:g} seed {seed}", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 30) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        stream = Worlds(sizes[step].rows, 1_000_000 * (seed + 1) + step).go(sizes[step].length)
        classes, seen, counts, _ = network(stream)
        at = {task: asked(stream, task) for task in TASKS}
        loss = (
            F.cross_entropy(classes[at["recall"]], stream.answer[at["recall"]])
            + F.cross_entropy(classes[at["copy"]], stream.answer[at["copy"]])
            + F.binary_cross_entropy_with_logits(seen[at["first-seen"]], stream.answer[at["first-seen"]].float())
            + F.smooth_l1_loss(counts[at["count"]], stream.answer[at["count"]].float())
        )
        losses.append(descend(network, optimizer, loss))
    return network.eval(), fifties(losses)


@torch.no_grad()
def follow(network: Network, seed: int) -> dict[str, Any]:
    """Errors by position, octave by octave from LENGTH tokens to TIMES as many, and of recall by age.

    recall and copy: the share of wrong answers; first-seen: the mean of the shares of wrong answers among new and among
    old; count: the mean distance over that of the median count of that octave."""
    worlds, state, parts = Worlds(4, 77 + seed), None, []
    took = 0.0
    for _ in range(TIMES):
        stream = worlds.go(LENGTH)
        began = time.thread_time()
        classes, seen, counts, state = network(stream, state)
        took += time.thread_time() - began
        wrong = (classes.argmax(-1) != stream.answer).float()
        doubt = ((seen > 0) != (stream.answer > 0)).float()
        parts.append((stream, wrong, doubt, (counts - stream.answer).abs()))
    whole = Stream(*(torch.cat(z, 1) for z in zip(*(part[0] for part in parts), strict=True)))
    wrong, doubt, far = (torch.cat([part[i] for part in parts], 1) for i in (1, 2, 3))
    place = torch.arange(whole.kind.shape[1])[None]
    by_position: dict[str, dict[str, float]] = {task: {} for task in TASKS}
    ends = [LENGTH * 2**k for k in range(int(math.log2(TIMES)) + 1)]
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        here = (place >= begin) & (place < end)
        for task in TASKS:
            at = asked(whole, task) & here
            if task == "first-seen":
                value = 0.5 * sum(float(doubt[at & (whole.answer == kind)].mean()) for kind in (0, 1))
            elif task == "count":
                counts = whole.answer[at].float()
                value = float(far[at].mean() / (counts - counts.median()).abs().mean())
            else:
                value = float(wrong[at].mean())
            by_position[task][str(end)] = round(value, 4)
    old, age = asked(whole, "recall") & (place >= LENGTH), whole.age
    bins = zip(AGES, (*AGES[1:], 1 << 60), strict=True)
    groups = {str(low): wrong[old & (age >= low) & (age < high)] for low, high in bins}
    by_age = {low: round(float(group.mean()), 4) if len(group) else None for low, group in groups.items()}
    return {"position": by_position, "age": by_age, "ms_per_token": round(1e3 * took / whole.kind.numel(), 4)}


def measure(name: str, match: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """Train one network and measure it."""
    began, dim = time.perf_counter(), width(name, match)
    network, losses = train(name, dim, rate, seed, [Part(steps)])
    memory: Any = network.memory
    return {
        "memory": name, "match": match, "rate": rate, "seed": seed, "steps": steps, "dim": dim, "losses": losses,
        "parameters": sum(p.numel() for p in memory.parameters()), "torch": torch.__version__,
        "state_bytes": memory.init_state(1).nbytes if memory.bounded else None, "date": time.strftime("%Y-%m-%d"),
        **follow(network, seed), "minutes": round((time.perf_counter() - began) / 60, 1),
    }  # fmt: skip


def chosen(records: list[dict[str, Any]], name: str, match: str) -> list[dict[str, Any]]:
    """The runs of a memory at the rate with the least training loss of seed 0."""
    mine = [r for r in records if r["memory"] == name and r["match"] == match]
    if not mine:
        return []
    first = best(mine)
    return [r for r in mine if r["rate"] == first["rate"] and r["steps"] == first["steps"]]


def report(records: list[dict[str, Any]], out: Path) -> None:
    """Write the tables, and draw the errors by position of the runs at the best rate of each memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    assert __doc__ is not None
    lines = ["# What memories can do", "", __doc__.split("\n\n")[2].replace("\n", " "), ""]
    lines += [
        f"Errors. Recall and copy: share of wrong answers (chance {1 - 1 / VALUES:.2f}). First-seen: mean of the shares"
        " of wrong answers among new and old codes (chance 0.5). Count: mean distance over that of the median (1: no"
        " better than the median).",
        "",
    ]
    for match, title in (("parameters", "Equal parameters"), ("state", "Equal bytes of state")):
        runs = {name: chosen(records, name, match) for name in NAMES}
        if not any(runs.values()):
            continue
        ends = [str(LENGTH * 2**k) for k in range(int(math.log2(TIMES)) + 1)]
        head = ["memory", "rates", "seeds", "rate", "width", "parameters", "state", "ms a token"]
        head += [f"{task} ≤ {end}" for task in TASKS for end in (ends[0], ends[-1])]
        head += [f"recall, told ≥ {age} ago" for age in AGES]
        lines += [f"## {title}", "", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
        figure, axes = plt.subplots(1, len(TASKS), figsize=(16, 4), layout="constrained")
        for place, (name, mine) in enumerate((name, mine) for name, mine in runs.items() if mine):
            first = mine[0]
            tried = len({r["rate"] for r in records if r["memory"] == name and r["match"] == match})
            state = f"{first['state_bytes'] / 1e3:.1f} kB" if first["state_bytes"] else "grows"
            took = np.mean([r["ms_per_token"] for r in mine])
            cells = [
                name,
                tried,
                len(mine),
                f"{first['rate']:g}",
                first["dim"],
                first["parameters"],
                state,
                f"{took:.3f}",
            ]
            cells += [f"{np.mean([r['position'][t][e] for r in mine]):.3f}" for t in TASKS for e in (ends[0], ends[-1])]
            ages = [[r["age"][str(age)] for r in mine if r["age"][str(age)] is not None] for age in AGES]
            cells += [f"{np.mean(values):.3f}" if values else "" for values in ages]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
            for axis, task in zip(axes, TASKS, strict=True) if name in MEMORIES else ():
                values = [np.mean([r["position"][task][end] for r in mine]) for end in ends]
                axis.plot(
                    [int(e) for e in ends], values, label=name, color=f"C{place % 10}", ls=("-", "--", ":")[place // 10]
                )
        for axis, task in zip(axes, TASKS, strict=True):
            axis.set(
                xscale="log",
                xlabel="tokens since the stream began",
                title=task,
                ylim=(0, 1.5 if task == "count" else 1),
            )
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
        picture = out.with_name(f"{out.stem}_{match}.png")
        figure.savefig(picture, dpi=100)
        plt.close(figure)
        lines += ["", f"![{title}]({picture.name})", ""]
    steps, dates = sorted({r["steps"] for r in records}), sorted({r["date"] for r in records})
    lines += [
        f"Training: {', '.join(map(str, steps))} steps of {ROWS} × {LENGTH} tokens; one CPU thread; {dates[-1]}.",
        "",
    ]
    lines += ["Made by `python demos/memories.py`, which resumes with the missing runs."]
    publish(lines, out.with_suffix(".md"), quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_queue(parser, NAMES, [6e-3, 3e-3, 12e-3], 500, "docs/results/memories.json")
    parser.add_argument("--match", choices=("parameters", "state"), default="parameters")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def missing(records: list[Record]) -> tuple[str, float, int] | None:
        kept = [r for r in records if r["steps"] == args.steps and r["match"] == args.match]
        return following(kept, args.only, args.rates, args.seeds)

    def run(name: str, rate: float, seed: int) -> Record:
        return measure(name, args.match, rate, seed, args.steps)

    records = go_on(args.out, args.minutes, missing, run)
    if records:
        report(records, args.out)


if __name__ == "__main__":
    main()
