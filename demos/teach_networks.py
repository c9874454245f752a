"""The networks of demos/teach_memories.py: keys and labels in, one memory, logits of labels out; and their training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from runs import descend, fifties
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tttstream import memory as catalogue
from tttstream.memory.ttt import TTTLayer
from tttstream.train.things import Classes

PLACES = 64  # slots of labels
ROWS, LENGTH, DIM, HEADS, PIECE = 8, 128, 128, 2, 500
BLOCK, SHOWN = 32, 13  # views in a block, of which the first are examples
FEW, MANY = 3, 50  # things in a stream
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


class Keys(NamedTuple):
    """keys [n, D]; of: the rows of each thing; empty: the rows of no thing."""

    keys: Tensor
    of: list[NDArray[np.int64]]
    empty: NDArray[np.int64]


@torch.no_grad()
def keys_of(model: Any, classes: Classes, projected: bool = True) -> Keys:
    """The normalised keys of all windows. projected=False: the normalised features before the projection."""
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
    """Streams of views. Some views are labelled examples of 3 to `most` things, the others are queries. Some queries
    show things without an example. blocks: the first SHOWN of every BLOCK views are examples, the others queries."""
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
        if name == "frozen":  # in training too
            self.memory.forward = partial(self.memory.forward, learn=False)  # type: ignore[method-assign]

    def forward(self, keys: Tensor, told: Tensor, state: Any = None, **options: bool) -> tuple[Tensor, Any]:
        """keys [B, T, D], told [B, T] -> logits, state."""
        x = self.before(self.key(keys) * keys.shape[-1] ** 0.5 + self.label(told))
        y, state = self.memory(x, state, **options)
        return self.head(self.after(x + y)), state

    def ask(self, keys: Tensor, state: Any) -> Tensor:
        """The logits [B, n, PLACES + 1] of queries keys [B, n, D], each as if it came next after this state. A TTT
        layer reads all of them from this state, without learning."""
        told = torch.full(keys.shape[:2], PLACES, device=keys.device)
        if self.held and isinstance(self.memory, TTTLayer):
            return self(keys, told, state, learn=False)[0]
        again = state.map(lambda leaf: leaf.repeat_interleave(keys.shape[1], 0))
        return self(keys.flatten(0, 1)[:, None], told.flatten()[:, None], again)[0].view(*keys.shape[:2], -1)

    def told(self, stream: Stream) -> Tensor:
        """Compute the logits of a stream, block by block. Only examples change the state."""
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


class Learned:
    """Runs a network on one stream and keeps its state. Queries do not change the state. If the network is `held`, only
    labelled frames change it."""

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
