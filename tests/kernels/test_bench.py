"""The benchmark: rows that run, rows that fail with a reason, a continued run, and the targets of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.filterwarnings("ignore:.*backend_config:DeprecationWarning")


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(root / "kernels" / "bench"))
    import run  # type: ignore[import-not-found]

    return run  # type: ignore[no-any-return]


def words(out: Path, *more: str) -> list[str]:
    return ["--device=cpu", "--quick", "--tokens=256", f"--out={out}", *more]


def read(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(out.with_suffix(".json").read_text())
    return report


def rows(report: dict[str, Any], what: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for case in report["cases"] if case["what"] == what for row in case["rows"]}


def test_a_table_and_the_same_as_json(run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.md"
    assert run.main(words(out)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.md"]
    assert out.read_text().strip() == capsys.readouterr().out.strip()
    report = read(out)
    assert torch.__version__.startswith(report["versions"]["torch"])
    assert report["ceilings"]["copy_gb_s"] > 0
    for what in ("forward", "forward+backward", "step"):
        found = rows(report, what)
        for name in ("TTT-Linear, reference", "TTT-MLP, reference", "TTT-Conv, reference", "flash attention"):
            assert found[name]["rounds"] >= 3
            assert 0 < found[name]["quickest"] <= found[name]["ms"]
            assert found[name]["share"] == pytest.approx(found[name]["floor_ms"] / found[name]["ms"])
        assert found["LSTM"]["ms"] > 0
        assert "no GPU" in found["TTT-Linear, triton"]["reason"]
        assert all("reason" in row for name, row in found.items() if name.startswith(("fla ", "Mamba")))
    text = out.read_text()
    assert report["device"] in text
    assert report["date"] in text
    assert "not installed (pip install flash-linear-attention)" in text or "it needs a GPU" in text
    assert "None of the 15 targets was measured: no GPU." in text


def test_a_run_continues_where_it_stopped(run: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    few = ["--what", "forward", "step", "--only", "linear, reference"]
    assert run.main(words(out, *few, "--minutes=0")) == 0
    first = read(out)
    assert [case["what"] for case in first["cases"]] == ["step"]
    assert "**Not finished**: 1 of the line-ups" in out.read_text()
    assert run.main(words(out, *few, "--resume")) == 0
    second = read(out)
    assert rows(second, "step") == rows(first, "step")
    assert rows(second, "forward")["TTT-Linear, reference"]["ms"] > 0
    assert second["unfinished"] == 0
    assert "Not finished" not in out.read_text()


def test_a_run_with_other_settings_is_not_continued(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    only = ["--only", "linear, reference"]
    assert run.main(words(out, "--what", "step", *only)) == 0
    before = rows(read(out), "step")
    assert run.main(words(out, "--what", "step", "--heads=2", "--resume", *only)) == 0
    assert "has another settings: starting a new run" in capsys.readouterr().err
    assert rows(read(out), "step") != before


def test_a_row_that_fails_is_reported_and_the_run_continues(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import contestants  # type: ignore[import-not-found]

    def broken(*_: object, **__: object) -> None:
        raise ValueError("the kernel\nis broken")

    monkeypatch.setattr(contestants, "ttt", broken)
    out = tmp_path / "table.md"
    assert run.main(words(out, "--what", "forward", "--only", "linear, reference", "lstm")) == 1
    assert "TTT-Linear, reference failed" in capsys.readouterr().err
    found = rows(read(out), "forward")
    assert found["TTT-Linear, reference"]["reason"] == "failed: ValueError: the kernel is broken"
    assert found["LSTM"]["ms"] > 0


def test_a_row_that_fails_on_the_gpu_is_skipped_in_the_next_call(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import contestants

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("an illegal memory access")

    out, more = tmp_path / "table.md", ["--what", "forward", "--only", "linear, reference", "lstm", "--resume"]
    with monkeypatch.context() as patch:
        patch.setattr(contestants, "ttt", broken)
        patch.setattr(run.Bench, "_alive", lambda _: False)
        assert run.main(words(out, *more)) == 75
    assert "TTT-Linear, reference broke the GPU's context" in capsys.readouterr().err
    assert read(out)["cases"] == []
    assert run.main(words(out, *more)) == 1
    found = rows(read(out), "forward")
    assert found["TTT-Linear, reference"]["reason"] == "failed: RuntimeError: an illegal memory access"
    assert found["LSTM"]["ms"] > 0


def test_slow_rows_are_left_out(run: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    more = ["--tokens", "256", "512", "--what", "forward", "--only", "mlp, reference", "--slowest=0.0001"]
    assert run.main(words(out, *more)) == 0
    short, long = (case["rows"][0] for case in read(out)["cases"])
    assert short["ms"] > 0
    assert long["reason"] == "left out: a call would take more than 0.0001 s (--slowest)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_mistakes_have_exit_code_2(run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--device=cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        run.main(words(tmp_path / "x.md", "--tokens=100"))
    assert end.value.code == 2


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of matrix products and convolutions, in place or not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            a, b = args[-2:]
            self.count += 2 * a.numel() * b.shape[-1]
        elif name == "convolution":
            self.count += 2 * args[0].numel() * args[1][0].numel()
        elif name == "convolution_backward":
            self.count += 2 * args[1].numel() * args[2][0].numel() * sum(args[10][:2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("what", ["forward", "forward+backward"])
def test_the_floor_counts_no_more_than_is_done(run: ModuleType, family: str, what: str) -> None:
    """The reference does what the floor counts, and a little more, for the biases."""
    from contestants import Case, Op, Tokens

    case = Case(what, 512, 1, 2)
    op = Op("", family, "reference")
    call = op.prepare(Tokens(case, torch.device("cpu"), torch.float32))
    with Operations() as done:
        call()
    floor = op.work(case, torch.float32).operations
    assert floor <= done.count < 1.05 * floor


def case(what: str, tokens: int, **milliseconds: float) -> dict[str, Any]:
    names = {
        "linear": "TTT-Linear, triton",
        "mlp": "TTT-MLP, triton",
        "fla": "fla chunk_ttt_linear",
        "flash": "flash attention",
        "graph": "TTT-Linear, triton, graph",
    }
    found = [{"name": names[name], "ms": ms, "share": 1.0 / ms, "bound": "bytes"} for name, ms in milliseconds.items()]
    return {"what": what, "tokens": tokens, "rows": [*found, {"name": "TTT-Conv, triton", "reason": "no kernel"}]}


def test_targets_are_compared_with_the_measured_rows(run: ModuleType) -> None:
    from targets import targets  # type: ignore[import-not-found]

    cases = [
        case("step", 1, graph=0.029),
        case("forward", 8192, linear=1.0, flash=2.0),
        case("forward", 16384, linear=2.08, flash=2.0),
        case("forward", 131072, linear=16.0, flash=99.0),
        case("forward+backward", 8192, linear=2.0, mlp=6.2, fla=3.2),
        case("forward+backward", 131072, linear=36.0, fla=50.0),
    ]
    found = {target.asked: target for target in targets(cases, "left out")}

    def of(words: str) -> Any:
        return next(target for asked, target in found.items() if words in asked)

    assert (of("1.5 times faster").reached, of("1.5 times faster").measured[:10]) == (False, "1.39 times")
    assert (of("within 3 times").reached, of("within 3 times").measured[:10]) == (False, "3.10 times")
    assert (of("flash").reached, of("flash").measured[:10]) == (False, "0.96 times")
    assert of("TTT-Linear, triton: forward time per token").reached is True
    assert of("TTT-Linear, triton: forward time per token").measured == "±2.0% over 3 lengths"
    assert of("TTT-Linear, triton: forward+backward time per token").reached is False
    assert (of("TTT-Linear, triton, graph: a step").reached, of("graph").measured) == (True, "29.0 µs")
    assert of("TTT-Linear, triton: forward at 16k").reached is False
    assert (of("TTT-Conv, triton: forward at").reached, of("TTT-Conv, triton: forward at").measured) == (
        None,
        "left out",
    )
