"""The queue of results: equal sizes, intervals, and a table that grows over several calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def bench(root: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import popgym_bench  # type: ignore[import-not-found]

    return popgym_bench


def test_policies_have_equal_parameters(bench: object) -> None:
    for env in ("popgym-RepeatFirstEasy-v0", "MiniGrid-MemoryS7-v0", "Revisit-4x4"):
        counts = {name: count for name, (_, count) in bench.sizes(env).items()}  # type: ignore[attr-defined]
        assert max(counts.values()) < 1.1 * counts["ttt_linear"]
        assert min(counts.values()) > 0.9 * counts["ttt_linear"]


def test_interquartile_mean(bench: object) -> None:
    import records  # type: ignore[import-not-found]

    mean, low, high = records.interquartile([0.0, 1.0, 2.0, 30.0])
    assert mean == 1.5
    assert low < mean < high
    assert records.interquartile([0.5]) == (0.5, 0.5, 0.5)


def test_a_curve_is_thinned_to_its_ends(bench: object) -> None:
    import records

    curve = records.thinned(list(range(1000)), [float("nan"), *range(1, 1000)])
    assert len(curve) == records.POINTS
    assert curve[0] == (1, 1)
    assert curve[-1] == (999, 999)
    assert records.thinned([1, 2], [float("nan")] * 2) == []


def test_the_queue_is_stopped_and_continued(bench: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    words = ["--steps=4096", "--seeds=1", "--envs", "popgym-RepeatFirstEasy-v0", "--memories", "mlp", "gru"]

    def run(minutes: str, *more: str) -> str:
        given = [*words, f"--docs={docs}", f"--minutes={minutes}", f"--out={out}", *more]
        assert bench.main(given) == 0  # type: ignore[attr-defined]
        return capsys.readouterr().err

    assert "2 runs to go" in run("0.001")
    assert "2 runs to go" in run("5")
    row = next(line for line in (docs / "popgym.md").read_text().splitlines() if line.startswith("| popgym-Rep"))
    assert row.count("(1)") == 2
    assert (docs / "popgym.png").stat().st_size > 5000
    assert "0 runs to go" in run("5")
    table = (docs / "popgym.md").read_text()
    assert "0 runs to go" in run("5", f"--out={tmp_path / 'another machine'}")
    assert (docs / "popgym.md").read_text() == table


def test_a_stopped_run_ends_the_queue(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def stopped(*_: Any, **__: Any) -> dict[str, Any]:
        calls.append(1)
        return {"finished": False, "steps": 128, "return": 0.0}

    monkeypatch.setattr(bench, "train", stopped)
    words = ["--seeds=1", "--envs", "popgym-RepeatFirstEasy-v0", "--memories", "mlp", "gru", f"--docs={tmp_path}"]
    assert bench.main([*words, f"--out={tmp_path / 'out'}", "--minutes=5"]) == 0
    assert len(calls) == 1


def test_the_best_rate_of_a_sweep_is_for_all(bench: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--envs", "popgym-RepeatFirstEasy-v0", "--memories", "mlp", f"--docs={tmp_path}", f"--out={tmp_path}"]
    assert bench.main([*words, "--steps=2048", "--minutes=5", "--sweep"]) == 0  # type: ignore[attr-defined]
    assert "3 runs to go" in capsys.readouterr().err
    import records

    rate = bench.best_rate(records.load(tmp_path / "popgym.json"))  # type: ignore[attr-defined]
    assert f"learning rate {rate:g} for all" in (tmp_path / "popgym.md").read_text()
    assert "## The learning rate" in (tmp_path / "popgym.md").read_text()


@pytest.mark.filterwarnings("ignore")  # Stable-Baselines3 advises on batches that are this small
def test_throughput_is_counted_for_all_alike(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sb3_contrib", reason="Stable-Baselines3 is absent: pip install 'tttstream[sb3]'")
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import throughput  # type: ignore[import-not-found]

    monkeypatch.setattr(throughput, "NUMBERS", throughput.Sizes(2, 8, 8, 1))
    assert throughput.main(["--updates=1", "--envs", "CartPole-v1", f"--docs={tmp_path}"]) == 0
    rows = [line for line in (tmp_path / "throughput.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    assert "(1.00×)" in rows[0]


def test_a_readout_is_scored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stable_baselines3")
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import readout  # type: ignore[import-not-found]

    monkeypatch.setattr(readout, "ENVS", 2)
    monkeypatch.setattr(readout, "EPISODES", 4)
    env = "popgym-RepeatFirstEasy-v0"
    make_reader = readout.readers(env, 0)
    for name in ("no memory", "random reader"):
        assert -1 <= readout.score(env, make_reader[name](), 256, 0) <= 1


def test_endless_games_have_the_questions_of_the_short_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The action that popgym rewards at every step is the one that the endless form rewards."""
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import length  # type: ignore[import-not-found]

    from tttstream_agents.answers import collect
    from tttstream_agents.envs import make

    for env in ("popgym-RepeatFirstEasy-v0", "popgym-RepeatPreviousEasy-v0"):
        played = collect(lambda env=env: make(env), 20, 1, 0, answers=True)
        game = make(length.GAMES[env]).unwrapped
        game.reset(seed=0)
        for step in range(19):
            right = played.answers[step, 0].nonzero().flatten().tolist()
            rewards = []
            for action in range(4):
                game.shown = played.obs[: step + 1, 0].tolist()  # type: ignore[attr-defined]
                rewards.append(game.step(action)[1])
            assert [action for action in range(4) if rewards[action] == 1.0] == right


def test_every_environment_of_the_queue_can_be_made(bench: object) -> None:
    from tttstream_agents.envs import make

    for task in bench.ENVS.values():  # type: ignore[attr-defined]
        for memory in ("gru", "places"):
            make(task.env, env_args=task.env_args, wrappers=task.wrapped(memory)).close()


@pytest.mark.parametrize("back", [0, 2])
def test_labels_of_lanes_against_a_loop(root: Path, monkeypatch: pytest.MonkeyPatch, back: int) -> None:
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import hold  # type: ignore[import-not-found]

    torch.manual_seed(0)
    lanes = hold.Lanes(3, hold.Variant("gru", back=back, low=4, high=9))
    pieces = [lanes.segment(20) for _ in range(3)]
    cards, starts, labels = (torch.cat(part).tolist() for part in zip(*pieces, strict=True))
    for row in range(3):
        episode: list[int] = []
        lengths = []
        for t in range(60):
            if starts[t][row]:
                lengths.append(len(episode))
                episode = []
            episode.append(cards[t][row])
            place = len(episode) - 1 - back if back else 0
            known = len(episode) > max(back, 1)
            assert labels[t][row] == (episode[place] if known else -1)
        assert all(4 <= length <= 9 for length in lengths[1:])
        assert len(set(lengths[1:])) > 1
    endless = hold.Lanes(2, hold.Variant("gru", back=back), endless=True).segment(200)[1]
    assert endless.sum().item() == 2
    assert endless[0].all()


def test_probes_are_continued_column_by_column(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in the file is not run again; what is missing is, a few memories at a time, gated ones apart."""
    monkeypatch.syspath_prepend(str(root / "agents" / "bench"))
    import probes  # type: ignore[import-not-found]

    calls: list[tuple[tuple[str, ...], bool]] = []

    def probe(_: object, *, memories: list[str], gate: bool, places: object, **__: object) -> dict[str, object]:
        memories = ["places"] if places else memories
        calls.append((tuple(memories), gate))
        scores = [{"memory": name, "accuracy": 0.5, "parameters": 1} for name in memories]
        return {"chance": {"accuracy": 0.25}, "scores": scores}

    monkeypatch.setattr(probes, "probe", probe)
    monkeypatch.setattr(probes, "GATED", ("gru",))
    words = ["probes.py", f"--docs={tmp_path}", "--envs", "Revisit-4x4"]
    monkeypatch.setattr("sys.argv", [*words, "--minutes=0"])
    assert probes.main() == 0
    assert not calls
    monkeypatch.setattr("sys.argv", words)
    assert probes.main() == 0
    assert [name for names, gate in calls if not gate for name in names] == ["places", *probes.MEMORIES]
    assert max(len(names) for names, _ in calls) == probes.AT_ONCE
    assert calls[-1] == (("gru",), True)
    seen = len(calls)
    assert probes.main() == 0
    assert len(calls) == seen
    assert "| Revisit-4x4 | 0.250 |" + " 0.500 |" * (len(probes.MEMORIES) + 2) in (tmp_path / "probe.md").read_text()
