"""Streams of many scenes for inner models, for demos/youth.py and demos/youth_front.py."""

import datetime
import platform
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tttstream import inner as catalogue
from tttstream.testing import scene, task
from tttstream_kernels import Update, read, ttt

WIDTH, ROWS, TOKENS, GRID, BACK = 32, 4, 1024, (8, 8), (1, 3, 7, 31)
WORLDS = ("share nothing", "share projections")
UNIT = {"token": 16, "frame": 64}


class Life(NamedTuple):
    """Loss early and late in each scene [scenes, heads]; loss on earlier scenes, measured again [BACK, heads]."""

    early: Tensor
    late: Tensor
    recall: Tensor


def scene_of(world: str, number: int, tokens: int, part: int = 0) -> tuple[Tensor, ...]:
    """Keys and values [ROWS, tokens, 1, WIDTH] of a scene."""
    if world == "share nothing":
        return task(number, width=WIDTH, rows=ROWS, tokens=tokens, part=part)
    x = scene("subspace", number, dim=2 * WIDTH, rows=ROWS, tokens=tokens, part=part)
    fixed = torch.randn(2 * WIDTH, 2 * WIDTH, generator=torch.Generator().manual_seed(0)) / (2 * WIDTH) ** 0.5
    return (x @ fixed)[:, :, None].chunk(2, dim=-1)


def default(name: str, mode: str) -> Update:
    """The default update of a TTTLayer with heads of this width at the end of a mini-batch."""
    entry = catalogue.find(name)
    return entry.update(entry.base_lr, WIDTH, UNIT[mode], mode)


def live(
    name: str,
    mode: str,
    update: Update,
    world: str,
    scenes: int,
    heads: int = 1,
    unit: int | None = None,
    factors: Sequence[float] | None = None,
) -> Life:
    """One stream of scenes; several heads see the same stream, each with its own values in the update, and its own
    factor of the rate if there are `factors`. unit: tokens of a mini-batch, `UNIT` unless given."""
    torch.manual_seed(0)
    entry, unit = catalogue.find(name), unit or UNIT[mode]
    inner = entry.make(GRID)
    start = entry.init(inner, 1, WIDTH).expand(heads, -1)
    weights = start, torch.ones(heads, WIDTH), torch.zeros(heads, WIDTH)
    rate = torch.full((ROWS, TOKENS, heads), entry.base_lr / WIDTH) * torch.tensor(factors or [1.0] * heads)
    first = slice(unit, unit + max(64, 2 * unit))  # after one mini-batch, so that there was something to learn from
    state, early, late, recall = None, [], [], []
    with torch.no_grad():
        for number in tqdm(range(scenes), desc=f"{name}, {mode} mode, scenes that {world}", disable=None):
            k, v = (x.expand(-1, -1, heads, -1) for x in scene_of(world, number, TOKENS))
            _, state, loss = ttt(
                inner, k, k, v, rate, *weights, mini_batch=unit, causal=mode, state=state, update=update,
                return_loss=True,
            )  # fmt: skip
            early.append(loss.before[:, first].mean((0, 1)))
            late.append(loss.before[:, -128:].mean((0, 1)))
            if number % 10 == 9 and number > max(scenes // 2, *BACK):
                asked = []
                for back in BACK:
                    k, v = (x.expand(-1, -1, heads, -1) for x in scene_of(world, number - back, 128, part=1))
                    asked.append(read(inner, k, k, v, *weights, state=state, mini_batch=unit)[1].before.mean((0, 1)))
                recall.append(torch.stack(asked))
    return Life(torch.stack(early), torch.stack(late), torch.stack(recall).mean(0))


def origin(arguments: str) -> str:
    """The lines above a table: command, device, date and data."""
    return (
        f"Command `python {arguments}`, {datetime.date.today()}, one thread of a {platform.machine()} CPU, torch "
        f"{torch.__version__}. A scene has {TOKENS} tokens, with keys in a new four-dimensional subspace. Heads are "
        f"{WIDTH} wide; the figures are means of {ROWS} streams. If scenes share nothing, each has a new map from keys "
        f"to values, and the loss at chance is {WIDTH}. If scenes share projections, keys and values are fixed maps of "
        f"the tokens."
    )
