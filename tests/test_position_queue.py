"""The queue of demos/position.py: runs with other settings are separate, none is repeated, and text below the table is
kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).parent.parent / "demos" / "position.py"


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, list[tuple[str, str, int]]]:
    """The demo with runs that take no time, and a record of those that were done."""
    monkeypatch.syspath_prepend(DEMO.parent)  # it imports its neighbours
    spec = importlib.util.spec_from_file_location("position", DEMO)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    runs: list[tuple[str, str, int]] = []

    def scored(folder: Path, name: str, path: Path, reset: int, args: object) -> dict[str, float]:
        runs.append((folder.parent.name, folder.name, reset))
        return {str(times): 0.5 + 0.1 * len(runs) for times in demo.TIMES}

    monkeypatch.setattr(demo, "fit", lambda folder, *_: folder / "last.ckpt")
    monkeypatch.setattr(demo, "test", scored)
    return demo, runs


def test_each_choice_of_settings_has_its_own_runs(
    done: tuple[ModuleType, list[tuple[str, str, int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, runs = done

    def queue(*words: str) -> str:
        command = ["position", "--out", str(tmp_path), "--docs", str(tmp_path), "--memories", "ttt_linear", "gru"]
        monkeypatch.setattr("sys.argv", [*command, "--seeds", "0", *words])
        demo.main()
        return (tmp_path / "results" / "position.md").read_text()

    text = queue("--steps", "10")
    assert [run[1:] for run in runs] == [("ttt_linear-0", 0), ("gru-0", 0)]
    assert "| ttt_linear | 0.600 ± 0.000 |" in text
    queue("--steps", "10")
    assert len(runs) == 2
    text = queue("--steps", "20")
    assert len(runs) == 4
    assert runs[2][0] != runs[0][0]
    assert "| ttt_linear | 0.800 ± 0.000 |" in text
    (tmp_path / "results" / "position.md").write_text(text + "\nWords.\n")
    text = queue("--steps", "10", "--reset", "16")
    assert runs[4:] == [(runs[0][0], "ttt_linear-0", 16), (runs[0][0], "gru-0", 16)]
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:]
    assert names == ["ttt_linear", "gru", "ttt_linear, reset every 16", "gru, reset every 16"]
    assert text.endswith("\nWords.\n")
