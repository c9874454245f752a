"""Views of things have the things in their boxes, features are kept, and training on streams of them lowers a loss."""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tttstream.evaluation import things as rules
from tttstream.models.teach import TeachConfig, TeachModel
from tttstream.sources.photographs import NAMES
from tttstream.train.data import things
from tttstream.train.things import EMPTY, Classes, collect, episode, evidence


def test_a_view_shows_its_things_in_their_boxes() -> None:
    of = things.pool(NAMES[:3], [])
    made = {number: things.thing(np.random.default_rng(number), of) for number in range(2)}
    one, again = (things.view(np.random.default_rng(5), of, made) for _ in range(2))
    assert np.array_equal(one.image, again.image)
    assert one.image.shape == (things.SIZE, things.SIZE, 3)
    assert one.things == [0, 1]
    for left, top, right, bottom in [*one.boxes, *one.empty]:
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


def test_features_are_kept_and_streams_of_them_train_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = TeachModel(TeachConfig(keys=16, labels=8))
    parts = list(collect(model, tmp_path, NAMES[:4], [], 1, size=6))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = list(collect(model, tmp_path, NAMES[:4], [], 1, size=6))
    assert all(torch.equal(a, b) for one, two in zip(parts, again, strict=True) for a, b in zip(one, two, strict=True))
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    classes = Classes(parts)
    assert 4 <= len(classes.of) <= 6
    assert (parts[0][1][classes.empty] == EMPTY).all()
    model.mean.copy_(classes.features.mean(0))
    model.deviation.copy_(classes.features.std(0))
    optimizer, losses, rng = torch.optim.Adam(model.parameters(), 3e-3), [], np.random.default_rng(0)
    for _ in range(40):
        part = episode(classes, rng, 3, strangers=1)
        assert set(part.answers.tolist()) <= {0, 1, 2, part.taught}
        assert not set(part.examples.tolist()) & set(part.questions.tolist())
        found = evidence(model, classes, part)
        loss = F.cross_entropy(torch.cat([found, torch.zeros_like(found[:, :1])], 1), part.answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_rules_know_what_lies_apart_and_strangers_score_less() -> None:
    torch.manual_seed(0)
    homes = torch.linalg.qr(torch.randn(16, 16))[0]
    labels = torch.arange(4).repeat(6)
    answers = torch.arange(8).repeat(5)
    examples, questions = (homes[rows] + 0.05 * torch.randn(len(rows), 16) for rows in (labels, answers))
    model = TeachModel(TeachConfig(keys=16, labels=8))
    for rule in (rules.nearest, rules.class_means, rules.linear_probe, rules.bound(model.memory)):
        assert rules.known(rule, examples, labels, questions, answers) == (1.0, 1.0)
        assert rules.halves(rule, examples, labels, questions[answers < 4], answers[answers < 4], 3) == 1.0
