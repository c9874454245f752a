"""A supervised probe: can a memory hold what a task needs? It is trained to name the right action at each step.

Letters: T steps of a sequence, S sequences, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from tqdm import tqdm

from tttstream_agents.answers import Data, collect
from tttstream_agents.encoder import Encoder, choices, leaves, pick
from tttstream_agents.envs import tree
from tttstream_agents.errors import TrainingError
from tttstream_agents.policy import MemoryPolicy

NONE = -1
"""The class of a step without a label."""
PLACES = "places"
"""The name of a memory of places in the scores."""
BINS, MOST_CLASSES, MOST_COUNT = 8, 64, 15


@dataclass(frozen=True)
class Score:
    """The score of a memory on unseen sequences. accuracy: share of right answers in labelled steps. loss:
    cross-entropy in nats."""

    memory: str
    seed: int
    parameters: int
    state_bytes: int
    accuracy: float
    loss: float


def classes(space: spaces.Space[Any], obs: Any) -> tuple[Tensor, int]:
    """Observations [T, S, ...] as classes [T, S], and the number of classes.

    The first part with choices is used: all its components together if they have few combinations, else the first one.
    Without such a part, the first number of the first Box is binned into eight quantiles.
    """
    for path, part in leaves(space):
        if isinstance(part, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
            counts, first, shape = choices(part)
            flat = pick(obs, path)
            flat = flat.reshape(*flat.shape[: flat.dim() - len(shape)], -1).long() - torch.as_tensor(first)
            used = len(counts) if np.prod(counts.astype(float)) <= MOST_CLASSES else 1
            found = torch.zeros_like(flat[..., 0])
            for place in range(used):
                found = found * int(counts[place]) + flat[..., place]
            return found, int(np.prod(counts[:used]))
    path, part = next(iter(leaves(space)))
    numbers = pick(obs, path).double().flatten(2)[..., 0]
    edges = torch.quantile(numbers.flatten()[:100_000], torch.arange(1, BINS, dtype=torch.float64) / BINS)
    return torch.bucketize(numbers.contiguous(), edges), BINS


def labels(target: str, data: Data, space: spaces.Space[Any]) -> Tensor:
    """The right classes of each step, bool [T, S, C]; none if a step has no label.

    target: "answer" (the right actions), "first" (the class of the episode's first observation), "back:K" (the class of
    the observation K steps ago), "count" (how often the class of this observation has occurred before in the episode,
    at most 15). Raises TrainingError for another target.
    """
    if target == "answer":
        return data.answers
    seen, count = classes(space, data.obs)
    steps = torch.arange(len(seen))[:, None]
    begin = torch.where(data.starts, steps, -1).cummax(0).values
    if target == "first":
        return _one_hot(torch.where(steps > begin, seen.gather(0, begin), NONE), count)
    if target == "count":
        found = torch.zeros_like(seen)
        for kind in range(count):
            here = (seen == kind).long()
            before = here.cumsum(0) - here
            found = torch.where(here > 0, before - before.gather(0, begin), found)
        return _one_hot(found.clamp(max=MOST_COUNT), MOST_COUNT + 1)
    back = target.removeprefix("back:")
    if back == target or not back.isdecimal() or int(back) < 1:
        raise TrainingError(f"there is no target {target!r}: expected answer, first, count or back:K with K from 1")
    ago = int(back)
    source = (steps - ago).clamp(min=0).expand_as(seen)
    return _one_hot(torch.where(steps - ago >= begin, seen.gather(0, source), NONE), count)


def _one_hot(label: Tensor, count: int) -> Tensor:
    return label[..., None] == torch.arange(count)


def chance(right: Tensor) -> tuple[float, float]:
    """(accuracy, loss) of a predictor that knows only the frequencies of the right classes, bool [T, S, C]."""
    labelled = right[right.any(-1)].double()
    share = labelled.mean(0)
    return float(share.max()), float(-((labelled * share).sum(-1) / share.sum()).log().mean())


def described(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a memory and its options, "NAME" or "NAME:key=value,key=value", values in YAML. Raises TrainingError."""
    import yaml

    name, _, rest = text.partition(":")
    options = {}
    for word in rest.split(",") if rest else ():
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise TrainingError(f"memory {text!r}: expected NAME or NAME:key=value,key=value, got {word!r}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise TrainingError(f"memory {text!r}: {value!r} is not a value") from error
    return name, options


def fit(
    memory: str, space: spaces.Space[Any], train: tuple[Data, Tensor], test: tuple[Data, Tensor], *,
    seed: int, updates: int, batch: int, lr: float, dim: int, heads: int, gate: bool = False, positions: bool = True,
    period: int = 1024, places: dict[str, Any] | None = None, on_update: Callable[[], Any] = lambda: None,
) -> Score:  # fmt: skip
    """Train a memory (see `described`) on the labels of sequences (see `labels`), and score it on other sequences.

    memory: with "places" the policy has a memory of places, described by the argument of this name, and no other.
    """
    torch.manual_seed(seed)
    name, options = ("mlp", {}) if memory == PLACES else described(memory)
    policy = MemoryPolicy(
        space, spaces.Discrete(train[1].shape[-1]), name, dim=dim, heads=heads, previous_action=False, options=options,
        gate=gate, positions=positions, period=period, places=places if memory == PLACES else None,
    )  # fmt: skip
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=updates + 1, pct_start=0.1)

    def loss_of(data: Data, label: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        parts = policy.encoder.tensors(tree(lambda x: x[:, rows], data.obs), 2, check=False)
        x, _ = policy.remember(policy.encoder(parts), policy.initial_state(len(rows)), data.starts[:, rows])
        wanted = label[:, rows]
        labelled = wanted.any(-1)
        said, wanted = policy.actor(x)[labelled].log_softmax(-1), wanted[labelled]
        right = wanted.gather(-1, said.argmax(-1, keepdim=True))[:, 0]
        return -torch.where(wanted, said, -torch.inf).logsumexp(-1).sum(), right

    for _ in range(updates):
        rows = torch.randint(train[1].shape[1], (batch,))
        loss, right = loss_of(*train, rows)
        optimizer.zero_grad()
        (loss / max(1, len(right))).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        on_update()
    with torch.no_grad():
        found = [loss_of(*test, rows) for rows in torch.arange(test[1].shape[1]).split(batch)]
    right = torch.cat([one[1] for one in found]).float()
    parameters = sum(p.numel() for p in policy.parameters())
    total = sum(float(one[0]) for one in found)
    size = policy.initial_state(1).nbytes
    return Score(memory, seed, parameters, size, float(right.mean()), total / max(1, len(right)))


def probe(
    make_env: Callable[[], gym.Env[Any, Any]], target: str = "answer", memories: Sequence[str] = ("ttt_linear", "gru"),
    *, seeds: int = 1, steps: int = 128, sequences: int = 512, updates: int = 400, batch: int = 16, lr: float = 3e-3,
    dim: int = 64, heads: int = 2, gate: bool = False, positions: bool = True, period: int = 1024,
    places: dict[str, Any] | None = None, quiet: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Score memories on a target. Returns {"target", "classes", "chance": {accuracy, loss}, "scores": [...]}.

    target: see `labels`. memories: see `described`. steps, sequences: T and S of the training set; the test set has a
    quarter of S. gate, positions, period: of the policies. places: also score a memory of places (`MemoryPolicy`) as
    "places". Raises TrainingError if no step has a label.
    """
    for memory in memories:
        described(memory)
    memories = [*memories, *[PLACES] * bool(places)]
    for name, value in (("seeds", seeds), ("steps", steps), ("updates", updates), ("batch", batch)):
        if value < 1:
            raise TrainingError(f"{name} must be at least 1, got {value}")
    if sequences < 4:
        raise TrainingError(f"sequences must be at least 4, got {sequences}")
    env = make_env()
    space = env.observation_space
    env.close()
    Encoder(space)  # raises an error before anything is played
    data = collect(make_env, steps, sequences + sequences // 4, 0, target == "answer", quiet=quiet)
    right = labels(target, data, space)
    sets = [
        (Data(*(tree(lambda x, cut=cut: x[:, cut], part) for part in data)), right[:, cut])
        for cut in (slice(0, sequences), slice(sequences, None))
    ]
    if not all(bool(one.any()) for _, one in sets):
        raise TrainingError(f"no step of {steps} has a label for target {target!r}: play longer sequences")
    accuracy, loss = chance(sets[1][1])
    scores = []
    with tqdm(total=len(memories) * seeds * updates, unit=" updates", disable=True if quiet else None) as bar:
        for memory in memories:
            for seed in range(seeds):
                bar.set_postfix_str(f"{memory}, seed {seed}", refresh=False)
                scores.append(
                    fit(
                        memory, space, sets[0], sets[1], seed=seed, updates=updates, batch=batch, lr=lr,
                        dim=dim, heads=heads, gate=gate, positions=positions, period=period,
                        places=places, on_update=bar.update,
                    )
                )  # fmt: skip
    return {
        "target": target, "classes": right.shape[-1], "chance": {"accuracy": accuracy, "loss": loss},
        "scores": [vars(one) for one in scores],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The scores of `probe` as a text table: means and ranges over seeds."""
    width = max(14, *(len(one["memory"]) + 2 for one in result["scores"]))
    lines = [
        f"{'memory':<{width}}{'parameters':>12}{'state bytes':>13}{'accuracy':>10}{'range':>14}{'loss (nats)':>13}"
    ]
    for memory in dict.fromkeys(one["memory"] for one in result["scores"]):
        rows = [one for one in result["scores"] if one["memory"] == memory]
        right = [one["accuracy"] for one in rows]
        span = f"{min(right):.3f}..{max(right):.3f}" if len(rows) > 1 else ""
        lines.append(
            f"{memory:<{width}}{rows[0]['parameters']:>12,}{rows[0]['state_bytes']:>13,}{np.mean(right):>10.3f}{span:>14}"
            f"{np.mean([one['loss'] for one in rows]):>13.3f}"
        )
    lines.append(
        f"{'(frequencies)':<{width + 25}}{result['chance']['accuracy']:>10.3f}{'':>14}{result['chance']['loss']:>13.3f}"
    )
    return "\n".join(lines)
