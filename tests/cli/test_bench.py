"""`tttstream bench`, and the primal form that it times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tttstream.cli.main import main
from tttstream.evaluation.speed import primal
from tttstream.memory import build
from tttstream.testing import assert_close
from tttstream_kernels import MLP, Linear, ttt
from tttstream_kernels.inner import Dense


@pytest.mark.parametrize("inner", [Linear(), MLP()], ids=lambda inner: inner.name)
def test_the_primal_form_is_the_dual_form(inner: Dense) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 12, 3, 4, dtype=torch.float64).unbind(0)
    eta = 0.3 * torch.rand(2, 12, 3, dtype=torch.float64)
    start = 0.3 * torch.randn(3, inner.size(4), dtype=torch.float64)
    gamma, beta = torch.randn(2, 3, 4, dtype=torch.float64).unbind(0)
    expected = ttt(inner, q, k, v, eta, start, gamma, beta, mini_batch=4)[0]
    assert_close(primal(inner, q, k, v, eta, start, gamma, beta, 4), expected)


def test_bench_writes_a_table_a_picture_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    names = ["delta", "ttt_conv", "attention"]
    arguments = ["--tokens", "4096", "--dim", "16", "--heads", "2", "--out", str(out)]
    assert main(["bench", "--memories", *names, *arguments]) == 0
    assert "3 memories" in capsys.readouterr().out
    numbers = json.loads((out / "bench.json").read_text())
    costs = {(c["memory"], c["tokens"]): c for c in numbers["costs"]}
    assert list(costs) == [(name, tokens) for name in names for tokens in (1024, 4096)]
    delta = build("delta", dim=16, heads=2)
    assert {costs["delta", tokens]["state"] for tokens in (1024, 4096)} == {delta.init_state(1).nbytes}
    assert costs["attention", 4096]["state"] == 4 * costs["attention", 1024]["state"]
    assert costs["ttt_conv", 1024]["step"] is None
    assert all(c["prefill"] > 0 and c["frame"] > 0 for c in costs.values())
    assert len(numbers["dual"]) == 4
    table = (out / "bench.md").read_text()
    assert all(f"| {name} | 4096 |" in table for name in names)
    assert (out / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_memory_stops_at_the_limit(tmp_path: Path) -> None:
    out = tmp_path / "bench"
    arguments = ["--memories", "attention", "--limit", "1e-9", "--dim", "16", "--heads", "2", "--out", str(out)]
    assert main(["bench", *arguments]) == 0
    assert json.loads((out / "bench.json").read_text())["costs"] == []


def test_a_later_run_adds_to_an_earlier_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench"
    options = ["--tokens", "1024", "--dim", "16", "--heads", "2", "--out", str(out)]
    assert main(["bench", "--add", "--memories", "gru", *options]) == 2
    assert "--add: " in capsys.readouterr().err
    assert main(["bench", "--memories", "gru", "additive", *options]) == 0
    before = json.loads((out / "bench.json").read_text())
    assert main(["bench", "--add", "--memories", "delta", "gru", *options]) == 0
    after = json.loads((out / "bench.json").read_text())
    assert [c["memory"] for c in after["costs"]] == ["additive", "delta", "gru"]
    assert after["costs"][0] == before["costs"][1]
    assert [run["memories"] for run in after["runs"]] == [["additive"], ["delta", "gru"]]
    assert "Of an earlier run (width 16, 2 heads, cpu" in (out / "bench.md").read_text()
    capsys.readouterr()
    assert main(["bench", "--add", "--memories", "gru", *options[:3], "32", *options[4:]]) == 2
    assert "is of width 16, 2 heads, cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--memories delta mamba", "there is no memory mamba: expected some of ttt_linear"),
        ("--tokens 10", "--tokens must be at least 1024, got 10"),
        ("--limit 0", "--limit must be above 0 seconds, got 0.0"),
        ("--device tpu", "--device tpu: expected cpu"),
        ("--memories delta --heads 5", "dim must be a multiple of heads"),
    ],
)
def test_mistakes(words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words.split(), "--out", str(tmp_path / "bench")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()
