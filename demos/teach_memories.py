"""Compares memories that are taught ten things with five views each, up to 100,000 frames and forty things later.

    python demos/teach_memories.py out/teach/features out/held-out --videos VIDEO … --minutes 60  # the queue
    python demos/teach_memories.py out/teach/features out/held-out --only memory  # the rules that need no training

The first folder contains the features of demos/teach_train.py. The second receives features of things from photographs
and videos that were not used in training, 60 per chunk. All memories have the same keys, the frozen projection of
`teach`. The networks (LSTM, window, TTT …) are trained on the same streams of examples and queries; each consists of
one memory that reads the keys, and logits of 64 slots and of "unknown". Queries follow 1, 100, 10,000 and 100,000
frames of other things later.

Each network is trained and tested in up to three ways:

- NAME: every frame is learned, and the state after it is kept.
- NAME, told: only the state after a frame with a label is kept, as in the memory of `teach`. Other frames are read one
  by one from that state.
- NAME, told, few first: so, too, and the greatest number of things grows from 3 to 50 over the first two thirds of the
  training.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from runs import Record, best, descend, fifties, following, go_on, records_of
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import memory as catalogue
from tttstream import models
from tttstream import state as states
from tttstream.evaluation import things
from tttstream.evaluation.detection import auroc
from tttstream.io.outputs import TextFile
from tttstream.memory.ttt import TTTLayer
from tttstream.sources.photographs import HELD_OUT
from tttstream.train.things import Classes, collect

PLACES, FIRST, MORE, SHOTS, ASKS, STRANGERS = 64, 10, 40, 5, 8, 10
AGES = (1, 100, 10_000, 100_000)
TRIALS, ROWS, LENGTH, DIM, HEADS, PIECE = 8, 8, 128, 128, 2, 500
BLOCK, SHOWN = 32, 13  # views in a block, of which the first are examples
FEW, MANY = 3, 50  # things in a stream
END = "<!-- the tables end here -->"
TOLD, FEW_FIRST = ", told", ", few first"
NONE = -100  # in answers: no query
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "ttt_linear": ("ttt_linear", {"rotary": False, "mini_batch": 8}),
    "ttt_mlp": ("ttt_mlp", {"rotary": False, "mini_batch": 8}),
    "delta": ("delta", {"conv": 0}),
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "window": ("window", {"window": LENGTH}),
    "frozen": ("ttt_linear", {"rotary": False, "mini_batch": 8}),
}
NETWORKS = (
    *LEARNED,
    *(name + TOLD for name in LEARNED if name != "frozen"),
    *(name + TOLD + FEW_FIRST for name in ("lstm", "gru")),
)
RULES: dict[str, things.Rule] = {
    "nearest of all examples": things.nearest,
    "class means": things.class_means,
    "linear probe by SGD": things.linear_probe,
}


class Keys(NamedTuple):
    """keys [n, D]; of: the rows of each thing; empty: the rows of no thing."""

    keys: Tensor
    of: list[NDArray[np.int64]]
    empty: NDArray[np.int64]


@torch.no_grad()
def keys_of(model: Any, classes: Classes, projected: bool = True) -> Keys:
    """The keys of all windows, or their features before the projection."""
    features = model.standardised(classes.features)
    keys = F.normalize(model.project(features) if projected else features, dim=-1)
    return Keys(keys, [rows.numpy() for rows in classes.of], classes.empty.numpy())


class Stream(NamedTuple):
    """keys [B, T, D]; told [B, T]: the slot of a label, PLACES for none; answer [B, T]: the slot of the queried thing,
    PLACES for "unknown", NONE without a query."""

    keys: Tensor
    told: Tensor
    answer: Tensor


def streams(of: Keys, rng: np.random.Generator, most: float = MANY, blocks: bool = False) -> Stream:
    """Streams in which 3 to `most` things are taught at times and queried in between, with strangers among the queries.
    With `blocks`, the first SHOWN of every BLOCK views are examples and the others queries."""
    rows, told, answer = (np.full((ROWS, LENGTH), value) for value in (0, PLACES, NONE))
    for row in range(ROWS):
        count = round(math.exp(rng.uniform(math.log(FEW), math.log(most))))
        chosen, places = rng.permutation(len(of.of))[: count + 10], rng.permutation(PLACES)
        known: list[int] = []
        for t in range(LENGTH):
            draw = rng.random()
            if blocks:
                draw = 0.0 if t % BLOCK < SHOWN else 0.4 + 0.6 * draw
            if draw < 0.4 or not known:
                number = int(rng.integers(count))
                told[row, t] = places[number]
                known = known if number in known else [*known, number]
                rows[row, t] = rng.choice(of.of[chosen[number]][::2])
                continue
            answer[row, t] = PLACES
            if draw < 0.9:
                number = known[rng.integers(len(known))] if draw < 0.75 else int(rng.integers(len(chosen)))
                rows[row, t] = rng.choice(of.of[chosen[number]][1::2])
                answer[row, t] = places[number] if number in known else PLACES
            else:
                rows[row, t] = rng.choice(of.empty)
    return Stream(of.keys[torch.from_numpy(rows)], torch.from_numpy(told), torch.from_numpy(answer))


class Network(nn.Module):
    """Keys and labels in, one memory, logits [B, T, PLACES + 1]."""

    def __init__(self, name: str, width: int) -> None:
        super().__init__()
        self.held = TOLD in name
        kind, options = LEARNED[name.split(", ")[0]]
        self.key, self.label = nn.Linear(width, DIM), nn.Embedding(PLACES + 1, DIM)
        self.before, self.after = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.memory = catalogue.build(kind, dim=DIM, heads=HEADS, **options)
        self.head = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, PLACES + 1))
        if name == "frozen":  # it is trained so, too
            self.memory.forward = partial(self.memory.forward, learn=False)  # type: ignore[method-assign]

    def forward(self, keys: Tensor, told: Tensor, state: Any = None, **options: bool) -> tuple[Tensor, Any]:
        """keys [B, T, D], told [B, T] -> logits, state."""
        x = self.before(self.key(keys) * keys.shape[-1] ** 0.5 + self.label(told))
        y, state = self.memory(x, state, **options)
        return self.head(self.after(x + y)), state

    def ask(self, keys: Tensor, state: Any) -> Tensor:
        """The logits [B, n, PLACES + 1] of queries keys [B, n, D], each as if it came next after this state. A TTT
        layer reads them without learning, which is the same state for all."""
        told = torch.full(keys.shape[:2], PLACES, device=keys.device)
        if self.held and isinstance(self.memory, TTTLayer):
            return self(keys, told, state, learn=False)[0]
        again = state.map(lambda leaf: leaf.repeat_interleave(keys.shape[1], 0))
        return self(keys.flatten(0, 1)[:, None], told.flatten()[:, None], again)[0].view(*keys.shape[:2], -1)

    def told(self, stream: Stream) -> Tensor:
        """The logits of a stream in blocks, of which only examples change the state."""
        state, logits = None, []
        for keys, told in zip(stream.keys.split(BLOCK, 1), stream.told.split(BLOCK, 1), strict=True):
            examples, state = self(keys[:, :SHOWN], told[:, :SHOWN], state)
            logits += [examples, self.ask(keys[:, SHOWN:], state)]
        return torch.cat(logits, 1)


def train(of: Keys, name: str, rate: float, seed: int, steps: int) -> tuple[Network, list[float]]:
    """A trained network and its mean loss over every 50 steps."""
    torch.manual_seed(seed)
    network, losses = Network(name, of.keys.shape[1]), []
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng([seed, 7])
    for step in tqdm(range(steps), f"{name} {rate:g} seed {seed}", disable=None):
        grown = min(1.0, 1.5 * step / steps) if FEW_FIRST in name else 1.0
        stream = streams(of, rng, FEW + (MANY - FEW) * grown, network.held)
        logits = network.told(stream) if network.held else network(stream.keys, stream.told)[0]
        loss = F.cross_entropy(logits.flatten(0, 1), stream.answer.flatten(), ignore_index=NONE)
        losses.append(descend(network, optimizer, loss))
        schedule.step()
    return network.eval(), fifties(losses)


class Trial(NamedTuple):
    """Row numbers of the views in one trial.

    told: views that are taught [50, SHOTS], the first ten things first. asked: views of the questions [50, ASKS].
    strangers: views of things that are never taught [n]. others: views of other frames.
    """

    told: NDArray[np.int64]
    asked: NDArray[np.int64]
    strangers: NDArray[np.int64]
    others: NDArray[np.int64]


def trial(of: Keys, seed: int) -> Trial:
    """Ten things, forty more, ten that are never taught, and all others, which are shown in between."""
    rng = np.random.default_rng(seed)
    often = [rows for rows in of.of if len(rows) >= SHOTS + ASKS]
    order = [rng.permutation(often[number]) for number in rng.permutation(len(often))]
    taught, never = order[: FIRST + MORE], order[FIRST + MORE : FIRST + MORE + STRANGERS]
    strangers = np.concatenate([*(rows[:ASKS] for rows in never), rng.choice(of.empty, STRANGERS * ASKS // 2)])
    others = np.concatenate([*order[FIRST + MORE + STRANGERS :], of.empty])
    return Trial(
        np.stack([rows[:SHOTS] for rows in taught]), np.stack([rows[SHOTS : SHOTS + ASKS] for rows in taught]),
        strangers, rng.choice(others, AGES[-1]),
    )  # fmt: skip


def scores_of(known: Tensor, strangers: Tensor, count: int) -> tuple[float, float]:
    """Scores [FIRST * ASKS, PLACES] of views of the first ten, and of strangers [n, PLACES] -> the accuracy among the
    first `count` places, and the AUROC of the best score."""
    right = known[:, :count].argmax(-1) == torch.arange(FIRST).repeat_interleave(ASKS)
    best_known, best_strangers = (found[:, :count].amax(-1).double().numpy() for found in (known, strangers))
    return float(right.float().mean()), auroc(best_known, best_strangers)


class Learned:
    """The stream of a network with one state; a query does not change it. If the network holds its state, no frame
    without a label does."""

    def __init__(self, network: Network) -> None:
        self.network, self.state = network, None

    def see(self, keys: Tensor, told: Tensor) -> None:
        """keys [n, D] one after another, told [n]."""
        if self.network.held:
            keys, told = keys[told < PLACES], told[told < PLACES]
            if not len(keys):
                return
        for part, labels in zip(keys.split(PIECE), told.split(PIECE), strict=True):
            _, self.state = self.network(part[None], labels[None], self.state)

    def ask(self, keys: Tensor) -> Tensor:
        """Log-odds [n, PLACES] of each place against "unknown"; each key [n, D] is the next frame."""
        logits = self.network.ask(keys[None], self.state)[0]
        return logits[:, :PLACES] - logits[:, PLACES:]


class Bound:
    """The stream of the memory of `teach`."""

    def __init__(self, memory: Any) -> None:
        self.memory, self.state = memory, memory.init_state(1)

    def see(self, keys: Tensor, told: Tensor) -> None:
        """See Learned."""
        labels = F.one_hot(told, PLACES + 1)[:, :PLACES].to(keys.dtype)
        labels = F.pad(labels, (0, self.memory.labels - PLACES))
        for part in torch.cat([keys, labels], -1).split(PIECE):
            _, self.state = self.memory(part[None], self.state)

    def ask(self, keys: Tensor) -> Tensor:
        """See Learned."""
        return self.memory.evidence(self.state, keys[None])[0, :, :PLACES]


class Kept:
    """The stream of a rule that keeps all examples."""

    def __init__(self, rule: things.Rule) -> None:
        self.rule, self.state = rule, None
        self.keys, self.labels = torch.zeros(0), torch.zeros(0, dtype=torch.int64)

    def see(self, keys: Tensor, told: Tensor) -> None:
        """See Learned."""
        kept = told < PLACES
        self.keys = torch.cat([self.keys.view(-1, keys.shape[1]), keys[kept]])
        self.labels = torch.cat([self.labels, told[kept]])

    def ask(self, keys: Tensor) -> Tensor:
        """See Learned."""
        found = self.rule(self.keys, self.labels, keys, int(self.labels.max()) + 1)
        return F.pad(found, (0, PLACES - found.shape[1]), value=-1e9)


@torch.no_grad()
def follow(of: Keys, make: Any) -> dict[str, Any]:
    """Run all trials with one kind of memory, and return the mean results. make: a function that returns a new
    stream."""
    accuracy: dict[str, list[float]] = {}
    unknown: dict[str, list[float]] = {}
    same = True
    for seed in range(TRIALS):
        part, stream = trial(of, seed), make()
        rng = np.random.default_rng([seed, 1])

        def tell(first: int, last: int, part: Trial = part, rng: Any = rng, stream: Any = stream) -> None:
            order = rng.permutation((last - first) * SHOTS)
            labels = torch.arange(first, last).repeat_interleave(SHOTS)[order]
            stream.see(of.keys[part.told[first:last].ravel()[order]], labels)

        def ask(when: str, count: int, part: Trial = part, stream: Any = stream) -> None:
            known, strangers = (stream.ask(of.keys[rows]) for rows in (part.asked[:FIRST].ravel(), part.strangers))
            for into, value in zip((accuracy, unknown), scores_of(known, strangers, count), strict=True):
                into.setdefault(when, []).append(value)

        tell(0, FIRST)
        seen = 0
        for age in AGES:
            stream.see(of.keys[part.others[seen:age]], torch.full((age - seen,), PLACES))
            seen = age
            ask(str(age), FIRST)
        if stream.state is not None:
            before = stream.ask(of.keys[part.strangers])
            with tempfile.TemporaryDirectory() as folder:
                states.save(stream.state, Path(folder) / "state.safetensors")
                stream.state = states.load(Path(folder) / "state.safetensors", stream.state)
            same &= bool(stream.ask(of.keys[part.strangers]).equal(before))
        tell(FIRST, FIRST + MORE)
        ask("more, among ten", FIRST)
        ask("more, among fifty", FIRST + MORE)
    means = {
        "accuracy": {when: round(float(np.mean(values)), 4) for when, values in accuracy.items()},
        "unknown": {when: round(float(np.mean(values)), 4) for when, values in unknown.items()},
    }
    size = None if stream.state is None else stream.state.nbytes
    return {**means, "state_bytes": size, "same after a restart": same if size else None}


def line(records: list[Record], name: str, ages: Sequence[int]) -> str:
    """The line of one memory: the run of seed 0 with the least loss, or the mean over the seeds of its kind."""
    mine = [record for record in records if record["memory"] == name]
    chosen = best(mine)
    mine = [r for r in mine if (r["rate"], r.get("steps")) == (chosen["rate"], chosen.get("steps"))]
    whens = [*map(str, ages), "more, among ten", "more, among fifty"]
    differs = any(r["same after a restart"] is False for r in mine)
    cells = [
        f"{name}, differs after a restart" if differs else name,
        f"{chosen['state_bytes'] / 1e3:,.0f} kB" if chosen["state_bytes"] else "grows",
    ]
    cells += [f"{np.mean([r['accuracy'][when] for r in mine]):.3f}" for when in whens]
    cells += [f"{np.mean([r['unknown'][str(age)] for r in mine]):.3f}" for age in (ages[0], ages[-1])[: len(ages)]]
    cells.append(f"{np.mean([r['losses'][-1] for r in mine]):.2f}" if chosen["rate"] else "")
    return f"| {' | '.join(cells)} |"


def tables(records: list[Record]) -> list[str]:
    """One table of the memories that only examples change, and one of those that every frame changes."""
    names = sorted({record["memory"] for record in records if record["rate"]}, key=NETWORKS.index)
    rules = list(dict.fromkeys(record["memory"] for record in records if not record["rate"]))
    lines: list[str] = []
    for title, rows, ages in (
        ("Only examples change the state", [*rules, *(name for name in names if TOLD in name)], AGES[-1:]),
        ("Every frame changes the state", [name for name in names if TOLD not in name], AGES),
    ):
        head = ["memory", "state", *(f"after {age:,}" for age in ages), "40 more, of the ten", "of all fifty"]
        head += [f"unknown, AUROC, after {age:,}" for age in (ages[0], ages[-1])[: len(ages)]]
        lines += headed(title, [*head, "loss"]) + [line(records, name, ages) for name in rows]
    runs = {(r["memory"], r["steps"], r["seed"], r["rate"]): r["losses"][-1] for r in records if r["rate"]}
    rates = sorted({rate for *_, rate in runs})
    lines += headed("Losses of all runs", ["memory", "steps", "seed", *(f"rate {rate:g}" for rate in rates)])
    for kind in sorted({run[:3] for run in runs}, key=lambda run: (NETWORKS.index(run[0]), *run[1:])):
        found = (runs.get((*kind, rate)) for rate in rates)
        cells = [*map(str, kind), *("" if loss is None else f"{loss:.2f}" for loss in found)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines[1:]


def headed(title: str, head: Sequence[str]) -> list[str]:
    """A title and the head of a table."""
    return ["", f"## {title}", "", f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training", type=Path, help="folder of features of things for training")
    parser.add_argument("held_out", type=Path, help="folder of features of things that no training saw")
    parser.add_argument("--videos", nargs="*", default=[], help="whose frames the held-out things are made of")
    parser.add_argument("--chunks", type=int, default=2, help="of 60 held-out things")
    parser.add_argument("--model", default="teach")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further run after so many")
    parser.add_argument("--only", nargs="+", choices=("memory", *NETWORKS), default=["memory", *NETWORKS])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-3], help="of which the best counts")
    parser.add_argument("--seeds", type=int, default=1, help="runs at the best rate")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("docs/results/teach_classes.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = models.load(args.model)
    classes = Classes(list(collect(model, args.held_out, HELD_OUT, args.videos, args.chunks, windows=False)))
    held, plain = keys_of(model, classes), keys_of(model, classes, projected=False)
    common = {"date": time.strftime("%Y-%m-%d"), "held_out": len(held.of), "trials": TRIALS}
    if "memory" in args.only:
        found: list[Record] = []
        streams_of = {"memory of teach": (held, partial(Bound, model.memory))}
        streams_of |= {name: (held, partial(Kept, rule)) for name, rule in RULES.items()}
        streams_of |= {
            f"{name}, before the projection": (plain, partial(Kept, RULES[name])) for name in list(RULES)[:2]
        }
        for name, (of, make) in streams_of.items():
            found.append({"memory": name, "rate": 0, "seed": 0, "losses": [0], **follow(of, make), **common})
            print(line(found, name, AGES[-1:]), flush=True)
        with TextFile(args.out) as file:
            kept = [record for record in records_of(args.out) if record["rate"]]
            file.write(json.dumps([*found, *kept], indent=1) + "\n")
    names = [name for name in args.only if name in NETWORKS]
    if names:
        files = sorted(args.training.glob("*.safetensors"))
        training = keys_of(model, Classes((kept["features"], kept["numbers"]) for kept in map(load_file, files)))

        def measure(name: str, rate: float, seed: int) -> Record:
            began = time.perf_counter()
            network, losses = train(training, name, rate, seed, args.steps)
            found = follow(held, partial(Learned, network))
            record = {"memory": name, "rate": rate, "seed": seed, "steps": args.steps, "losses": losses, **found}
            return {**record, **common, "minutes": round((time.perf_counter() - began) / 60, 1)}

        def missing(records: list[Record]) -> tuple[str, float, int] | None:
            as_long = [record for record in records if record.get("steps") == args.steps]
            return following(as_long, names, args.rates, args.seeds)

        go_on(args.out, args.minutes, missing, measure)
    lines, page = tables(records_of(args.out)), args.out.with_suffix(".md")
    print("\n".join(lines))
    below = page.read_text(encoding="utf-8").partition(END)[2] if page.exists() else "\n"
    with TextFile(page) as file:
        file.write("\n".join([*lines, "", END]) + below)


if __name__ == "__main__":
    main()
