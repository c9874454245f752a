"""Several `fit` in one folder at the same time: each has its own complete folder."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from tests.train.forked import forked
from tttstream.cli.main import main
from tttstream.train import cli

WORDS = [
    *("fit", "--config", "trainer/fast", "--config", "model/tiny", "--config", "data/walk"),
    *("--config", "task/prediction", "--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--model.depth=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--model.dim=16"),
    *("--data.init_args.batch_size=1", "--data.init_args.length=2", "--data.init_args.workers=0"),
]


def test_two_at_once(tmp_path: Path) -> None:
    def fit(seed: int) -> tuple[int, str]:
        os.chdir(tmp_path)
        with redirect_stderr(StringIO()) as said:
            code = main([*WORDS, f"--seed_everything={seed}"])
        return code, said.getvalue()

    both = forked([partial(fit, seed) for seed in (1, 2)])
    assert [code for code, _ in both] == [0, 0], both
    assert not any("not empty" in text for _, text in both)
    runs = sorted((tmp_path / "out" / "train").iterdir())
    assert [run.name for run in runs] == ["version_0", "version_1"]
    seeds = [yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] for run in runs]
    assert sorted(seeds) == [1, 2]
    for run in runs:
        assert json.loads((run / "model" / "config.json").read_text())["dim"] == 16
        assert len(list(run.glob("events.out*"))) == 1
        assert not [path for path in run.rglob("*") if path.name.endswith((".part", ".lock"))]


def test_numbers_are_taken_once(tmp_path: Path) -> None:
    def take(_: int) -> Path:
        return cli._take(CSVLogger(tmp_path / "out", name="train"))[0]

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(40)))
    assert len(set(taken)) == 40
    assert all(run.is_dir() and run.parent == tmp_path / "out" / "train" for run in taken)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--ckpt_path=", "ckpt_path is an empty text"),
        ("--ckpt_path=$BEST/last.ckpt", "$BEST was not replaced"),
        ("--trainer.default_root_dir=", "default_root_dir is an empty text"),
        ("--trainer.default_root_dir=~nobody-of-this-name/x", "no home folder"),
    ],
)
def test_paths_that_a_shell_should_have_made(
    word: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*WORDS, word]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert main([*WORDS, "--trainer.default_root_dir=~/run", "--ckpt_path=~/missing.ckpt"]) == 2
    assert f"no checkpoint {tmp_path / 'missing.ckpt'}" in capsys.readouterr().err
    assert main([*WORDS, "--trainer.default_root_dir=~/run", "--trainer.precision=wrong"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # and none of a run without results
    assert list((tmp_path / "run").iterdir()) == []
