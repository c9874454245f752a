"""How long does a memory hold a card after training on short episodes? Supervised, so that it takes seconds.

    python agents/bench/hold.py                         # runs what is missing; docs/results/hold.json and .md
    python agents/bench/hold.py --minutes 0             # only the table

RepeatFirst (say the suit of the first card) and RepeatPrevious (of the card some steps ago) with the right answer as
label. Lanes of episodes are cut into segments of 128 steps; the state is carried from segment to segment. The test
plays one endless episode in 32 rows. Variants differ in the memory, in the positions that the policy sees, in the
lengths of the episodes of training, and in the margin of the inner loss.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from tttstream.io.outputs import TextFile
from tttstream.memory import TTTLayer
from tttstream_agents.auxiliary import learning_rates
from tttstream_agents.cards import SUITS
from tttstream_agents.policy import MemoryPolicy

ROOT = Path(__file__).resolve().parents[2]
ENDS = (52, 100, 300, 1000, 3000, 10_000)
LANES, ROWS, SEGMENT = 16, 32, 128
HEADS = {"ttt_linear": 2, "ttt_mlp": 2}


class Variant(NamedTuple):
    """back: the card to recall: 0 for the first one, else the number of steps since it was shown. period: of the
    positions, 0 for none. low, high: steps of an episode in training. updates: gradient steps. margin: of the inner
    loss of a TTT memory. keep: weight of the mean learning rate of the memory in the loss."""

    memory: str
    back: int = 0
    period: int = 1024
    low: int = 52
    high: int = 52
    updates: int = 150
    margin: float = 0.0
    keep: float = 0.0


VARIANTS = (
    *(Variant("ttt_linear", back=back, period=period) for back in (0, 16) for period in (1024, 0, 32)),
    Variant("ttt_linear", period=0, margin=0.3),
    *(Variant("ttt_linear", period=0, low=16, high=256, updates=200, keep=keep) for keep in (0.0, 0.1)),
    Variant("ttt_linear", period=0, low=16, high=1024, updates=300),
    *(Variant("ttt_linear", back=3, period=period) for period in (1024, 0)),
    *(Variant(name, period=0) for name in ("gru", "delta")),
)


class Lanes:
    """Endless streams of random cards in episodes of low to high steps (high 0: one episode)."""

    def __init__(self, rows: int, variant: Variant, endless: bool = False) -> None:
        self.rows, self.variant, self.endless = rows, variant, endless
        self.left, self.age, self.first = (torch.zeros(rows, dtype=torch.long) for _ in range(3))
        self.past = torch.zeros(variant.back + 1, rows, dtype=torch.long)

    def segment(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cards, episode starts and labels (-1 for none), each [steps, rows]."""
        low, high, back = self.variant.low, self.variant.high, self.variant.back
        cards = torch.randint(SUITS, (steps, self.rows))
        starts, labels = torch.zeros(steps, self.rows, dtype=torch.bool), torch.full((steps, self.rows), -1)
        for t in range(steps):
            starts[t] = start = self.left <= 0
            drawn = (low * torch.exp(torch.rand(self.rows) * math.log((high + 1) / low))).long().clamp(max=high)
            drawn = torch.full_like(drawn, 2**60) if self.endless else drawn
            self.left = torch.where(start, drawn, self.left) - 1
            self.first = torch.where(start, cards[t], self.first)
            self.age = torch.where(start, 0, self.age + 1)
            self.past = torch.cat([cards[t][None], self.past[:-1]])
            known = self.age >= max(back, 1)
            labels[t] = torch.where(known, self.past[back] if back else self.first, -1)
        return cards, starts, labels


def measure(variant: Variant, seed: int) -> dict[str, Any]:
    """Train one variant. The result has the accuracy in each interval between two successive ENDS."""
    torch.manual_seed(seed)
    space, began = spaces.Discrete(SUITS), time.process_time()
    policy = MemoryPolicy(
        space, space, variant.memory, dim=64, heads=HEADS.get(variant.memory, 4), previous_action=False,
        positions=variant.period > 0, period=variant.period or 1024,
    )  # fmt: skip
    if variant.margin:
        layer = cast(TTTLayer, policy.memories[0])
        layer._update = layer._update._replace(margin=variant.margin)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=variant.updates + 1, pct_start=0.1)

    def said(cards: Tensor, starts: Tensor, state: Any) -> tuple[Tensor, Any]:
        parts = policy.encoder.tensors(cards, 2, check=False)
        x, state = policy.remember(policy.encoder(parts), state, starts)
        return policy.actor(x), state

    lanes, state, loss = Lanes(LANES, variant), policy.initial_state(LANES), torch.zeros(())
    for _ in range(variant.updates):
        cards, starts, labels = lanes.segment(SEGMENT)
        with learning_rates(policy.memories if variant.keep else []) as rates:
            outputs, state = said(cards, starts, state)
        loss, state = F.cross_entropy(outputs[labels >= 0], labels[labels >= 0]), state.detach()
        optimizer.zero_grad()
        (loss + variant.keep * sum(rate.mean() for rate in rates)).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    lanes, state, right = Lanes(ROWS, variant, endless=True), policy.initial_state(ROWS), []
    with torch.no_grad():
        for _ in range(0, ENDS[-1], 500):
            cards, starts, labels = lanes.segment(500)
            outputs, state = said(cards, starts, state)
            right.append(((outputs.argmax(-1) == labels) | (labels < 0)).float().mean(1))
    whole, found = torch.cat(right), []
    for begin, end in zip((0, *ENDS), ENDS, strict=False):
        found.append(round(float(whole[begin:end].mean()), 3))
    return {
        "variant": variant._asdict(), "seed": seed, "loss": round(float(loss.detach()), 3), "accuracy": found,
        "cpu_s": round(time.process_time() - began, 1), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def report(records: list[dict[str, Any]], page: Path) -> None:
    """Write the table."""
    spans = [f"{begin:,} to {end:,}" for begin, end in zip((1, *ENDS), ENDS, strict=False)]
    lines = [
        "# How long a memory holds a card",
        "",
        "RepeatFirst (the suit of the first card) and RepeatPrevious (of the card some steps ago), with the right "
        "answer as label. Training: 16 lanes of episodes, segments of 128 steps with carried state, Adam 3e-3 in one "
        "cycle, width 64. Test: an endless episode in 32 rows. Cells: accuracy (chance is 0.25) in those steps. "
        "Positions: longest period of the steps since the start of the episode, as sines and cosines; no: not seen. "
        "Keep: weight of the mean learning rate in the loss (`--keep-coef`). "
        "Loss: cross-entropy of the last update. The previous action is not seen. One seed. Command: "
        "`python agents/bench/hold.py`; "
        f"{sum(r['cpu_s'] for r in records):.0f} CPU seconds, one thread of a busy machine, "
        f"{max((r['date'] for r in records), default='')}.",
        "",
        f"| card | memory | margin | keep | positions | episodes | updates | loss | {' | '.join(spans)} |",
        f"|---|---|---|---|---|---|---|---|{'---|' * len(spans)}",
    ]
    for one in records:
        v = Variant(**one["variant"])
        length = f"{v.low}" if v.low == v.high else f"{v.low} to {v.high}"
        card = f"{v.back} ago" if v.back else "first"
        head = [card, v.memory, f"{v.margin:g}", f"{v.keep:g}", v.period or "no", length, v.updates]
        cells = [f"{value:.2f}" for value in one["accuracy"]]
        lines.append(f"| {' | '.join(map(str, [*head, one['loss'], *cells]))} |")
    with TextFile(page) as file:
        file.write("\n".join([*lines, ""]))


def main() -> int:
    """Run the missing variants, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="start no further variant after this time")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path, until = args.docs / "hold.json", time.monotonic() + 60 * args.minutes
    args.docs.mkdir(parents=True, exist_ok=True)
    records = json.loads(path.read_text()) if path.exists() else []
    for record in records:
        record["variant"] = Variant(**record["variant"])._asdict()  # with the fields that were added later
    for variant in VARIANTS:
        if time.monotonic() < until and not any(one["variant"] == variant._asdict() for one in records):
            records.append(measure(variant, 0))
            print(records[-1], file=sys.stderr, flush=True)
            with TextFile(path) as file:
                file.write("[\n" + ",\n".join(json.dumps(one) for one in records) + "\n]\n")
    order = [variant._asdict() for variant in VARIANTS]
    known = sorted((one for one in records if one["variant"] in order), key=lambda one: order.index(one["variant"]))
    report(known, path.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
