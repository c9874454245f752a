"""The supervised probe: labels are right, a memory that can hold them is found, one that cannot is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tttstream_agents import answers
from tttstream_agents.answers import collect
from tttstream_agents.cli import main
from tttstream_agents.envs import make
from tttstream_agents.errors import EnvError, TrainingError
from tttstream_agents.probe import chance, classes, labels, probe, table


def test_labels_against_a_loop(repeat_first: Any) -> None:
    data = collect(lambda: repeat_first(steps=7), 20, 5, 0, answers=True, n_envs=4)
    assert data.obs.shape == data.starts.shape == (20, 5)
    space = spaces.Discrete(3)
    for target in ("first", "count", "back:2", "answer"):
        found = labels(target, data, space)
        for row in range(5):
            episode: list[int] = []
            for t in range(20):
                if data.starts[t, row]:
                    episode = []
                now = int(data.obs[t, row])
                expected = {
                    "first": episode[0] if episode else None, "count": episode.count(now),
                    "back:2": episode[-2] if len(episode) > 1 else None, "answer": episode[0] if episode else now,
                }[target]  # fmt: skip
                assert found[t, row].nonzero().flatten().tolist() == [expected] * (expected is not None), (target, t)
                episode.append(now)
    assert bool(data.starts[0].all())
    assert data.starts[7].all()


@pytest.mark.parametrize(
    ("env", "rule"),
    [
        ("popgym-RepeatPreviousEasy-v0", lambda seen, t: int(seen[t - 3]) if t >= 3 else None),
        ("popgym-RepeatFirstEasy-v0", lambda seen, t: int(seen[0])),
    ],
)
def test_right_answers_of_popgym_are_found_by_trying(env: str, rule: Any) -> None:
    data = collect(lambda: make(env), 12, 2, 0, answers=True, n_envs=2)
    for row in range(2):
        for t in range(12):
            expected = rule(data.obs[:, row], t)
            if expected is not None:
                assert data.answers[t, row].nonzero().tolist() == [[expected]]


def test_several_right_actions_of_several_parts() -> None:
    """MineSweeper: every safe cell that is not open yet."""
    data = collect(lambda: make("popgym-MineSweeperEasy-v0"), 6, 3, 0, answers=True, n_envs=3)
    assert data.answers.shape == (6, 3, 16)
    assert data.answers[0].sum(-1).tolist() == [14, 14, 14]  # two mines in sixteen cells
    assert (data.answers[1:].sum(-1) <= 14).all()


def test_trials_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more actions to try than TRIES, a share of the steps is labelled, and rightly."""
    whole = collect(lambda: make("popgym-CountRecallEasy-v0"), 20, 8, 0, answers=True)
    monkeypatch.setattr(answers, "TRIES", 20 * 8 * 27 // 4)
    part = collect(lambda: make("popgym-CountRecallEasy-v0"), 20, 8, 0, answers=True)
    labelled = part.answers.any(-1)
    assert 0.1 < labelled.float().mean() < 0.4
    assert torch.equal(part.answers[labelled], whole.answers[labelled])


def test_answers_and_masks_that_an_environment_tells() -> None:
    data = collect(lambda: make("tttstream/Revisit-v0", env_args={"side": 3}), 60, 3, 0, answers=True)
    answered = data.answers.any(-1)
    assert not answered[0].any()
    assert answered[40:].float().mean() > 0.9
    assert make("Taxi-v4").action_space.n == 6  # type: ignore[attr-defined]
    masked = collect(lambda: make("Taxi-v4"), 10, 2, 0, answers=False)
    assert masked.answers.shape == (10, 2, 0)


def test_classes_of_other_observations() -> None:
    pair, count = classes(spaces.MultiDiscrete([2, 3]), torch.tensor([[[1, 2], [0, 1]]]))
    assert (pair.tolist(), count) == ([[5, 1]], 6)
    many, count = classes(spaces.MultiDiscrete([50, 50], start=[1, 0]), torch.tensor([[[3, 2]]]))
    assert (many.tolist(), count) == ([[2]], 50)
    bins, count = classes(spaces.Box(-1, 1, (2,)), torch.linspace(-1, 1, 80).view(8, 5, 2))
    assert count == 8
    assert torch.bincount(bins.flatten()).tolist() == [5] * 8
    accuracy, loss = chance(torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], dtype=torch.bool))
    assert accuracy == 0.75
    assert loss == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))


def test_the_probe_distinguishes_a_memory_from_none(repeat_first: Any) -> None:
    """Four frames hold the observation of two steps ago, one frame cannot."""
    result = probe(
        lambda: repeat_first(steps=12), "back:2", ["framestack", "mlp"], steps=24, sequences=128, updates=150, batch=16,
        dim=16, heads=1, lr=1e-2,
    )  # fmt: skip
    scores = {one["memory"]: one for one in result["scores"]}
    assert scores["framestack"]["accuracy"] > 0.9
    assert scores["mlp"]["accuracy"] < 0.5
    assert scores["framestack"]["loss"] < 0.5 < scores["mlp"]["loss"]
    assert 0.3 < result["chance"]["accuracy"] < 0.5
    lines = table(result).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-1].startswith("(frequencies)")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--steps=16", "--sequences=8", "--updates=3", "--batch=4", "--dim=16", "--heads=1", "--quiet"]
    words = ["probe", "popgym-CountRecallEasy-v0", "--memories", "mlp", "gru", "--seeds=2", *small]
    assert main([*words, f"--out={tmp_path / 'probe.json'}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 4
    assert ".." in printed
    written = json.loads((tmp_path / "probe.json").read_text())
    assert len(written["scores"]) == 4
    assert written["env"] == "popgym-CountRecallEasy-v0"
    for more, says in (
        (["--target=back:0"], "back:K with K from 1"),
        (["--target=back:40"], "no step of 16 has a label"),
        (["--updates=0"], "updates must be at least 1"),
        (["--memories=lstn"], "no memory 'lstn'"),
        (["--env-args", "deck"], "expected key=value, got 'deck'"),
    ):
        try:
            code: Any = main([*words, *more])
        except SystemExit as end:
            code = end.code
        assert code == 2
        assert says in capsys.readouterr().err


def test_what_has_no_answer_is_named() -> None:
    with pytest.raises(EnvError, match="can be found for Discrete"):
        probe(lambda: gym.make("Pendulum-v1"), steps=4, sequences=4)
    with pytest.raises(TrainingError, match="sequences must be at least 4"):
        probe(lambda: gym.make("CartPole-v1"), "first", sequences=2)


def test_memories_with_options_and_a_gate(tmp_path: Path) -> None:
    """Options are written behind the name; a gate adds parameters; no positions take some away."""
    path = tmp_path / "scores.json"
    words = ["probe", "tttstream/RepeatFirst-v0", "--env-args", "steps=8", "--updates=1", "--sequences=4", "--steps=8"]

    def parameters(*more: str) -> list[int]:
        assert main([*words, "--dim=16", "--heads=1", "--quiet", f"--out={path}", *more]) == 0
        return [one["parameters"] for one in json.loads(path.read_text())["scores"]]

    plain, gated = parameters("--memories", "delta", "delta:conv=0"), parameters("--memories=delta", "--gate")
    assert plain[0] - plain[1] == 3 * 16 * 4 + 3 * 16  # a short convolution over q, k and v
    assert gated[0] - plain[0] == 6 * 16 * 16 + 16
    assert plain[0] - parameters("--memories=delta", "--period=8")[0] == 2 * 7 * 16
    assert plain[0] - parameters("--memories=delta", "--no-positions")[0] == 2 * 9 * 16
