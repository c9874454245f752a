"""`make gpu` without a GPU: its records list finished steps, and its message names the missing parts."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def visits(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_visits", root / ".ci" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_visits"] = module
    spec.loader.exec_module(module)
    return module


def counting(path: Path, code: int = 0) -> list[str]:
    """A command that leaves a mark each time it is called."""
    return [sys.executable, "-c", f"open({str(path)!r}, 'a').write('x'); raise SystemExit({code})"]


def test_finished_steps_are_not_repeated(visits: ModuleType, tmp_path: Path) -> None:
    marks, records = tmp_path / "marks", tmp_path / "records"
    todo = [visits.Step("one", counting(marks)), visits.Step("three", counting(marks), 3)]
    assert visits.run(todo, records, 1.0) == 0
    assert marks.read_text() == "xxxx"
    assert json.loads((records / "three.json").read_text())["visits"] == 3
    assert visits.run(todo, records, 1.0) == 0
    assert marks.read_text() == "xxxx"


def test_a_failed_step_is_retried_and_delays_no_other(visits: ModuleType, tmp_path: Path) -> None:
    marks, other = tmp_path / "marks", tmp_path / "other"
    todo = [visits.Step("bad", counting(marks, 3), 2), visits.Step("good", counting(other))]
    assert visits.run(todo, tmp_path, 1.0) == 1
    assert json.loads((tmp_path / "bad.json").read_text())["code"] == 3
    assert visits.run(todo, tmp_path, 1.0) == 1
    assert marks.read_text() == "xx"
    assert other.read_text() == "x"


def test_a_step_that_asks_for_it_is_called_again_at_once(visits: ModuleType, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    again = f"import pathlib; f = pathlib.Path({str(marks)!r}); f.open('a').write('x'); n = len(f.read_text())"
    step = visits.Step("again", [sys.executable, "-c", f"{again}; raise SystemExit({visits.AGAIN} if n < 3 else 0)"])
    assert visits.run([step], tmp_path, 1.0) == 0
    assert marks.read_text() == "xxx"
    always = visits.Step("always", counting(tmp_path / "other", visits.AGAIN))
    assert visits.run([always], tmp_path, 1.0) == 1
    assert (tmp_path / "other").read_text() == "x" * visits.TIMES


def test_no_step_begins_after_its_time(visits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert visits.run([visits.Step("late", counting(tmp_path / "marks"))], tmp_path, -1.0) == 0
    assert "call again to continue with late" in capsys.readouterr().out
    assert not (tmp_path / "marks").exists()


def test_a_step_that_hangs_is_ended(visits: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "LIMIT", 0.5)
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert visits.run([visits.Step("hangs", hangs)], tmp_path, 1.0) == 1
    assert json.loads((tmp_path / "hangs.json").read_text())["code"] == 124


def test_training_continues_from_the_newest_checkpoint(visits: ModuleType, tmp_path: Path) -> None:
    assert visits.newest(tmp_path) is None
    for number in (0, 1):
        folder = tmp_path / f"version_{number}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    assert visits.newest(tmp_path) == tmp_path / "version_1" / "checkpoints" / "last.ckpt"


def test_what_there_is_to_do(visits: ModuleType, root: Path) -> None:
    """Every step runs something that is there; kernels come before their figures, figures before training."""
    todo = visits.steps(visits.named("NVIDIA H100 80GB HBM3"))
    assert [step.name for step in todo] == ["test-kernels", "bench", "test-rest", "base", "mask"]
    kernels = {word for word in todo[0].command if word.startswith("tests/")}
    holding = {path for path in (root / "tests" / "kernels").glob("test_*.py") if "_triton import" in path.read_text()}
    assert {str(path.relative_to(root)) for path in holding} <= kernels
    assert "docs/results/kernels-h100.md" in todo[1].command
    for step in todo[3:]:
        configs = [word for before, word in zip(step.command, step.command[1:], strict=False) if before == "--config"]
        assert all((root / "configs" / f"{name}.yaml").is_file() for name in configs)


def test_only_what_is_lacking_is_unpacked(visits: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(visits, "PACK", tmp_path)
    monkeypatch.setattr(visits, "call", lambda name, command: asked.append(command))
    (tmp_path / "pytest-9.2.0-py3-none-any.whl").touch()
    visits.unpack()
    assert not asked
    lacking = tmp_path / "no_such_package-1.0-py3-none-any.whl"
    lacking.touch()
    visits.unpack()
    assert [[word for word in command if word.endswith(".whl")] for command in asked] == [[str(lacking)]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_line_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(root / ".ci" / "gpu.py"), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == "make gpu: torch sees no CUDA device here; run it where there is one\n"
