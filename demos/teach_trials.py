"""The trials of demos/teach_memories.py: ten things are taught, then searched at several ages and after forty more."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from teach_networks import PIECE, PLACES, Keys
from torch import Tensor
from torch.nn import functional as F

from tttstream import state as states
from tttstream.evaluation import things
from tttstream.evaluation.detection import auroc

FIRST, MORE, SHOTS, ASKS, STRANGERS = 10, 40, 5, 8, 10
AGES = (1, 100, 10_000, 100_000)
TRIALS = 8


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
    """A trial of ten things and forty more. Ten others are never taught. All other things are shown in between."""
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
    """Compute the accuracy on views of the first ten things, and the AUROC of their best scores against the best scores
    of things that were never taught. known: scores [FIRST * ASKS, PLACES] of these views. strangers: scores [n, PLACES]
    of views of things that were never taught. Only the first `count` places are compared."""
    right = known[:, :count].argmax(-1) == torch.arange(FIRST).repeat_interleave(ASKS)
    best_known, best_strangers = (found[:, :count].amax(-1).double().numpy() for found in (known, strangers))
    return float(right.float().mean()), auroc(best_known, best_strangers)


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
