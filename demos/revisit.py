"""Endless revisit: how well do memories recall the view at a place after tens of thousands of tokens?

    python demos/revisit.py --minutes 60                       # continues the queue; records in docs/results
    python demos/revisit.py --only ttt_mlp --seeds 1 --rates 3e-4 --steps 300

A walk on a torus of side × side cells. Each cell shows a tile of a photograph (code: 32 whitened principal components).
There is one token for each view: its code, its place, and the next place. The memory predicts the code of the next
view. The tables give the error divided by that of the mean code, on photographs that are not in the training data, by
the number of tokens since the place was last seen. A place is given as random signs of its cell (given keys), or as
random Fourier features, of which the network makes keys (learned keys).
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from runs import Record, add_queue, best, descend, fifties, following, go_on, publish
from tile_walks import CODES, Walks, tiles
from torch import Tensor
from tqdm import tqdm

from tttstream import inner
from tttstream.models.map.place_memory import PlaceMemory
from tttstream_kernels import Update

FEATURES, SCALE = 128, 0.8  # random Fourier features, their length in cells
MOST = 64  # places a side that have given keys


class Layout(NamedTuple):
    """A network for one kind of keys. features: the number of features of a place, from which it learns keys; None if
    the keys are given. where, what: widths of the parts of a token. window: tokens with as many bytes as the state of
    ttt_mlp."""

    features: int | None
    where: int
    what: int
    heads: int
    window: int

    @property
    def dim(self) -> int:
        """Width of the tokens."""
        return 2 * self.where + self.what


LAYOUTS = {"given": Layout(None, 56, 56, 2, 672), "learned": Layout(FEATURES, 88, 64, 4, 485)}
LARGEST = 16  # side of the worlds in training, from SMALLEST on
SMALLEST = 5
# Recipes of training: in each step the chance that a stream is reset and the chance that it enters another world; and
# the number of steps for which each of the eight rows leaves half of its world, 0 for never
RECIPES = {
    "short lives": (0.2, 0.2, (0,) * 8),
    "long lives": (0.02, 0.2, (0,) * 8),
    "long lives, long ages": (0.02, 0.05, (0, 0, 0, 64, 256, 1024, 2048, 4096)),
}
RECIPE = "long lives"  # of new runs: the one that ages least
SIDES = (6, 12, 16, 24)
SPANS = (64, 1024, 4096, 16384)  # steps for which half of the world is left, a row each
OLD = {4352: 4, 16640: 8}  # and a measurement of long ages alone: how many rows leave half of the world for so long
LONG = 34304  # tokens of it
AGES = (1, 8, 64, 256, 1024, 4096, 16384)
EXCHANGED = 2048  # tokens between two worlds in the test of youth
LONGER = inner.bounded(4.5, 4.5, 1e-5, restore=True)
"""The default update of ttt_mlp with 1.5 times the norm of the last layer: it learns and forgets more slowly."""
MEMORIES: dict[str, tuple[str, dict[str, Any]]] = {
    "ttt_mlp": ("ttt_mlp", {"rotary": False, "mini_batch": 8}),
    "ttt_mlp_longer": ("ttt_mlp", {"rotary": False, "mini_batch": 8, "update": LONGER}),
    "frozen": ("ttt_mlp", {"rotary": False, "mini_batch": 8}),
    "ttt_mlp_plain": ("ttt_mlp", {"rotary": False, "mini_batch": 8, "update": lambda *_: Update()}),
    "ttt_linear": ("ttt_linear", {"rotary": False, "mini_batch": 8}),
    "ttt": ("ttt", {"conv": 0}),
    "additive": ("additive", {"conv": 0}),
    "delta": ("delta", {"conv": 0}),
    "kernel_delta": ("kernel_delta", {"conv": 0, "features": 1344, "sharp": 3.0}),  # as many bytes as ttt_mlp
    "gated_delta": ("gated_delta", {"conv": 0}),
    "mesa": ("mesa", {"conv": 0}),
    "mamba2": ("mamba2", {}),
    "rwkv7": ("rwkv7", {}),
    "ttt_nested": ("ttt_nested", {"conv": 0}),
    "ttt_slots": ("ttt_slots", {"conv": 0}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "window": ("window", {}),
    "attention": ("attention", {}),
}


def signs(places: Tensor) -> Tensor:
    """The given keys [..., where] of places [..., 2] in cells below MOST: random signs."""
    draw = torch.Generator().manual_seed(9)
    table = torch.randint(2, (MOST, MOST, LAYOUTS["given"].where), generator=draw) * 2.0 - 1.0
    return table[places[..., 0].long(), places[..., 1].long()]


def features(places: Tensor) -> Tensor:
    """Random Fourier features [..., FEATURES] of places [..., 2] in cells."""
    draw = torch.Generator().manual_seed(5)
    waves = torch.randn(2, FEATURES, generator=draw) / SCALE
    phases = torch.rand(FEATURES, generator=draw) * 2 * math.pi
    return (places @ waves + phases).cos()


class Network(PlaceMemory):
    """A PlaceMemory that is called with places [B, T, 2] in cells instead of keys or features."""

    def __init__(self, layout: Layout, memory: str, options: dict[str, Any]) -> None:
        super().__init__(
            CODES, layout.features, where=layout.where, what=layout.what, memory=memory, heads=layout.heads,
            options=options,
        )  # fmt: skip
        self.encode = signs if layout.features is None else features

    def forward(
        self, what: Tensor, where: Tensor, ask: Tensor, state: Any = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """As `PlaceMemory.forward`."""
        return super().forward(what, self.encode(where), self.encode(ask), state, reset)

    def read(self, ask: Tensor, state: Any) -> Tensor:
        """As `PlaceMemory.read`."""
        return super().read(self.encode(ask), state)


def build(name: str, keys: str = "given") -> Network:
    """The network around a memory; the same for all but the memory."""
    memory, options = MEMORIES[name]
    layout, options = LAYOUTS[keys], dict(options)
    if "update" in options:
        options["update"] = options["update"](0.1, layout.dim // layout.heads, options["mini_batch"], "token")
    if memory == "window":
        options["window"] = layout.window
    network = Network(layout, memory, options)
    if name == "frozen":  # it is trained so, too
        network.memory.forward = partial(network.memory.forward, learn=False)  # type: ignore[method-assign]
    return network


def train(
    name: str, rate: float, seed: int, steps: int, pool: Tensor, recipe: str = RECIPE, keys: str = "given"
) -> tuple[Network, list[float]]:
    """A trained network, and the mean loss of every 50 steps. Streams continue from step to step, their state cut from
    the graph; now and then a stream's world is exchanged, or a stream begins again."""
    torch.manual_seed(seed)
    network, rng = build(name, keys), np.random.default_rng(1000 + seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0, betas=(0.9, 0.98))
    anew, another, leaving = RECIPES[recipe]
    walks = Walks(pool, [LARGEST] * 8, seed, list(leaving))
    bounded, state, losses = network.memory.bounded, None, []
    for step in tqdm(range(steps), f"{name} {rate:g} seed {seed}", disable=None):
        begins = (rng.random(8) < (anew if bounded else 1.0)) | (step == 0)
        for row in np.flatnonzero(begins | (rng.random(8) < another)):
            walks.exchange(int(row), int(rng.integers(SMALLEST, LARGEST + 1)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / 30) * (0.475 * (1 + math.cos(math.pi * step / steps)) + 0.05)
        what, where, ask, target, age = walks.walk(512)
        reset = torch.zeros(what.shape[:2], dtype=torch.bool)
        reset[:, 0] = torch.from_numpy(begins)
        answer, after = network(what, where, ask, state if bounded else None, reset)
        state = after.detach() if bounded else None
        loss = (answer[..., :CODES] - target).square().mean(-1)[age > 0].mean()
        losses.append(descend(network, optimizer, loss))
    return network.eval(), fifties(losses)


@torch.no_grad()
def follow(network: Network, walks: Walks, tokens: int, every: int = 512, reset: bool = False) -> dict[str, Any]:
    """Errors over that of the mean code by age and by position in the stream. reset: begin again at every call."""
    state, errors, means, ages, took = None, [], [], [], 0.0
    for _ in range(0, tokens, every):
        what, where, ask, target, age = walks.walk(every)
        began = time.perf_counter()
        answer, state = network(what, where, ask, None if reset else state)
        took += time.perf_counter() - began
        errors.append((answer[..., :CODES] - target).square().mean(-1).numpy())
        means.append((target - target.mean((0, 1))).square().mean(-1).numpy())
        ages.append(age.numpy())
    error, mean, age = (np.concatenate(part, 1) for part in (errors, means, ages))
    old = age > 0
    old[:, : tokens // 8] = False

    def ratio(mask: NDArray[np.bool_]) -> float | None:
        return round(float(error[mask].mean() / mean[mask].mean()), 4) if mask.any() else None

    bins = list(zip(AGES, (*AGES[1:], 1 << 60), strict=True))
    by_age = {
        str(low): (ratio(old & (age >= low) & (age < high)), int((old & (age >= low) & (age < high)).sum()))
        for low, high in bins
    }
    octaves = [512 * 2**k for k in range(int(math.log2(tokens // 512)) + 1)]
    place = np.arange(tokens)[None]
    by_position = {str(end): ratio((age > 0) & (place >= end // 2) & (place < end)) for end in octaves}
    return {"age": by_age, "position": by_position, "ms_per_token": round(1e3 * took / error.size, 4)}


@torch.no_grad()
def youth(network: Network, pool: Tensor, worlds: int) -> list[float]:
    """The error in each world of a stream that passes through many worlds of 100 places."""
    walks, state, found = Walks(pool, [10] * 4, 77), None, []
    for _ in tqdm(range(worlds), "youth", disable=None):
        for row in range(4):
            walks.exchange(row)
        part, mean = [], []
        for _ in range(EXCHANGED // 512):
            what, where, ask, target, age = walks.walk(512)
            answer, state = network(what, where, ask, state)
            part.append((answer[..., :CODES] - target).square().mean(-1)[age > 0])
            mean.append((target - target.mean((0, 1))).square().mean(-1)[age > 0])
        found.append(round(float(torch.cat(part).mean() / torch.cat(mean).mean()), 4))
    return found


def measure(
    name: str, rate: float, seed: int, steps: int, tokens: int, recipe: str, keys: str, keep: Path | None
) -> dict[str, Any]:
    """Train one network, keep its weights in a folder where one is given, and measure it."""
    pool, held, _ = tiles()
    began = time.perf_counter()
    network, losses = train(name, rate, seed, steps, pool, recipe, keys)
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), keep / f"{name}-{rate:g}-{seed}.pt")
    state: Any = network.init_state(1)
    record: dict[str, Any] = {
        "memory": name, "keys": keys, "recipe": recipe, "rate": rate, "seed": seed, "steps": steps, "tokens": tokens,
        "losses": losses,
        "parameters": sum(p.numel() for p in network.parameters()), "torch": torch.__version__,
        "state_bytes": state.nbytes if network.memory.bounded else None, "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.perf_counter() - began) / 60, 1), "places": {},
    }  # fmt: skip
    length = tokens if network.memory.bounded else 2048
    for side in SIDES:
        walks = Walks(held, [side] * len(SPANS), 50 + side, list(SPANS))
        record["places"][str(side * side)] = follow(network, walks, length)
    if network.memory.bounded:
        spans = [span for span, rows in OLD.items() for _ in range(rows)]
        record["old"] = {
            str(side * side): follow(network, Walks(held, [side] * len(spans), 150 + side, spans), LONG)["age"]
            for side in SIDES
        }
    if network.memory.bounded:
        walks = Walks(held, [12] * len(SPANS), 62, list(SPANS))
        record["reset_every_512"] = follow(network, walks, length, reset=True)
        record["youth"] = youth(network, held, 64)
    return record


def at_age(runs: list[dict[str, Any]], places: str, age: int) -> tuple[float | None, int]:
    """The mean error of the runs at an age (None without visits), and the largest number of visits in a run. Long ages
    are measured in streams that leave half of their world."""
    key, long = str(age), age >= min(OLD) // 2
    found = [r["old"][places][key] if long and "old" in r else r["places"][places]["age"][key] for r in runs]
    values = [value for value, _ in found if value is not None]
    return (float(np.mean(values)) if values else None), max(count for _, count in found)


def report(records: list[dict[str, Any]], out: Path) -> None:
    """Write the table, and draw the errors by age and world by world, of the runs at the best rate of each memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = ["# Endless revisit", "", __doc__.split("\n\n")[2].replace("\n", " "), ""]
    lines += ["Means over seeds at the rate with the least training loss; (n): under 500 visits in every seed.", ""]
    head = ["memory", "seeds", "rate", "parameters", "state", "ms a token", "places", *(f"age ≥ {age}" for age in AGES)]
    lines += ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    left.set_prop_cycle(color=plt.get_cmap("tab20").colors[::2] + plt.get_cmap("Dark2").colors)
    for name, keys, recipe in itertools.product(MEMORIES, LAYOUTS, RECIPES):
        same = {"memory": name, "keys": keys, "recipe": recipe}
        mine = [r for r in records if r.items() >= same.items()]
        if not mine:
            continue
        title = f"{name}, {keys} keys, {recipe}"
        rate = best(mine)["rate"]
        runs = [r for r in mine if r["rate"] == rate]
        state = f"{runs[0]['state_bytes'] / 1e3:.0f} kB" if runs[0]["state_bytes"] else "grows"
        for places in runs[0]["places"]:
            cells = []
            for age in AGES:
                value, visits = at_age(runs, places, age)
                mark = "" if visits >= 500 else f" ({visits})"
                cells.append("" if value is None else f"{value:.3f}{mark}")
            took = np.mean([r["places"][places]["ms_per_token"] for r in runs])
            about = [title, len(runs), f"{rate:g}", runs[0]["parameters"], state, f"{took:.3f}", places]
            lines.append("| " + " | ".join(map(str, [*about, *cells])) + " |")
        if "reset_every_512" in runs[0]:
            again = [[r["reset_every_512"]["age"][str(age)][0] for r in runs] for age in AGES]
            cells = ["" if None in values else f"{np.mean(values):.3f}" for values in again]
            lines.append(
                "| " + " | ".join([f"{title}, reset every 512 tokens", *["", "", "", "", ""], "144", *cells]) + " |"
            )
        curve = [(age, value) for age in AGES if (value := at_age(runs, "144", age)[0]) is not None]
        style, label = "-" if keys == "given" else ":", f"{name}, {keys}, {recipe}"
        left.plot(*zip(*curve, strict=True), style, marker="o", markersize=3, label=label)
        if "youth" in runs[0]:
            worlds = np.mean([r["youth"] for r in runs], 0)
            right.plot(np.arange(1, len(worlds) + 1), worlds, style, color=left.lines[-1].get_color())
            first, last = worlds[:8].mean(), worlds[-8:].mean()
            note = f"{title}, a new world every {EXCHANGED} tokens, {len(worlds)} times: error {first:.3f} in the first"
            lines.insert(4, f"{note} eight worlds, {last:.3f} in the last eight.\n")
    left.set(
        xscale="log",
        xlabel="tokens since the place was last seen",
        ylabel="error (1: the mean code)",
        ylim=(-0.03, 1.4),
    )
    left.set_title("144 places")
    right.set(xlabel="world", ylim=(-0.02, None))
    right.set_title(f"another world every {EXCHANGED} tokens")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(out.with_suffix(".png"), dpi=110)
    plt.close(figure)
    steps, tokens, date = (sorted({r[key] for r in records})[-1] for key in ("steps", "tokens", "date"))
    lines += [
        "",
        f"Training: {steps} steps of 8 × 512 tokens; streams of {tokens} tokens; one thread of a CPU; {date}.",
    ]
    lines += [
        "",
        "Recipes of training: the chance in each step that a stream is reset, the chance that it enters another world,",
    ]
    lines[-1] += " and the number of steps for which each row leaves half of its world: "
    lines[-1] += "; ".join(f"{name}: {what[0]}, {what[1]}, {what[2]}" for name, what in RECIPES.items()) + "."
    lines += ["", "Made by `python demos/revisit.py`, which resumes with the missing runs."]
    publish(lines, out.with_suffix(".md"), quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_queue(parser, tuple(MEMORIES), [3e-4, 2e-3, 1e-3], 900, "docs/results/revisit.json")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--keys", choices=tuple(LAYOUTS), default="given", help="of places")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default=RECIPE, help="of training")
    parser.add_argument("--keep", type=Path, help="a folder for the trained weights")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def missing(records: list[Record]) -> tuple[str, float, int] | None:
        same = {"keys": args.keys, "recipe": args.recipe, "steps": args.steps, "tokens": args.tokens}
        return following([r for r in records if r.items() >= same.items()], args.only, args.rates, args.seeds)

    def run(name: str, rate: float, seed: int) -> Record:
        return measure(name, rate, seed, args.steps, args.tokens, args.recipe, args.keys, args.keep)

    records = go_on(args.out, args.minutes, missing, run)
    if records:
        report(records, args.out)


if __name__ == "__main__":
    main()
