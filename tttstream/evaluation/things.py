"""Evaluation of taught things: baselines on the same keys, accuracy, and rejection of unknown things.

Letters: n examples, m questions, D width of a key, L labels.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.evaluation.detection import auroc
from tttstream.memory.binding import Binding

Rule = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(examples [n, D], their labels [n], questions [m, D], L) -> scores [m, L], larger for more probable labels."""


def nearest(examples: Tensor, labels: Tensor, questions: Tensor, count: int) -> Tensor:
    """The cosine of the nearest example of each label; all examples are kept."""
    likeness = F.normalize(questions, dim=-1) @ F.normalize(examples, dim=-1).mT
    return torch.stack([likeness[:, labels == label].amax(-1) for label in range(count)], -1)


def class_means(examples: Tensor, labels: Tensor, questions: Tensor, count: int) -> Tensor:
    """The cosine to the mean of the examples of each label."""
    examples = F.normalize(examples, dim=-1)
    means = torch.stack([examples[labels == label].mean(0) for label in range(count)])
    return F.normalize(questions, dim=-1) @ F.normalize(means, dim=-1).mT


def linear_probe(examples: Tensor, labels: Tensor, questions: Tensor, count: int, rate: float = 1.0) -> Tensor:
    """Softmax regression by SGD: one step with this rate on each example, in a random order with a fixed seed."""
    weights = torch.zeros(count, examples.shape[1])
    examples = F.normalize(examples, dim=-1)
    for row in torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist():
        error = F.one_hot(labels[row], count) - (weights @ examples[row]).softmax(0)
        weights = weights + rate * error[:, None] * examples[row]
    return F.normalize(questions, dim=-1) @ weights.mT


def bound(memory: Binding) -> Rule:
    """The evidence of a memory that learned the examples one by one."""

    def rule(examples: Tensor, labels: Tensor, questions: Tensor, count: int) -> Tensor:
        state = memory.init_state(1)
        for key, label in zip(examples, labels, strict=True):
            state = memory.bind(state, key[None], F.one_hot(label, memory.labels)[None].to(key.dtype))
        return memory.evidence(state, questions[None])[0, :, :count]

    return rule


class Known(NamedTuple):
    """accuracy: mean over the taught things. strangers: AUROC of the best score, taught things against others."""

    accuracy: float
    strangers: float


def known(rule: Rule, examples: Tensor, labels: Tensor, questions: Tensor, answers: Tensor) -> Known:
    """Evaluate a rule; queries whose answer is no label of the examples are strangers."""
    count = int(labels.max()) + 1
    with torch.no_grad():
        scores = rule(examples, labels, questions, count)
    taught = answers < count
    right = scores[taught].argmax(-1) == answers[taught]
    each = [float(right[answers[taught] == label].float().mean()) for label in answers[taught].unique()]
    best = scores.amax(-1).double().numpy()
    return Known(float(np.mean(each)), auroc(best[taught.numpy()], best[~taught.numpy()]))


def halves(rule: Rule, examples: Tensor, labels: Tensor, questions: Tensor, answers: Tensor, splits: int = 20) -> float:
    """The mean AUROC of strangers over several random splits, with half of the things taught and the others as
    strangers."""
    count, found = int(labels.max()) + 1, []
    for split in range(splits):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(split))
        new = torch.empty(count, dtype=torch.int64)
        new[order] = torch.arange(count)
        taught = new[labels] < count // 2
        part = examples[taught], new[labels][taught], questions, new[answers]
        found.append(known(rule, *part).strangers)
    return float(np.mean(found))
