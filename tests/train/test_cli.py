"""The four commands: a run from shipped configurations, its files, and a user's mistakes in one line."""

from __future__ import annotations

import csv
import errno
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from tttstream import models
from tttstream.cli.main import main
from tttstream.io import presets
from tttstream.train import cli, given
from tttstream.train.checkpoint import SPAWNED, WholeFiles

PIECES = ["--config", "trainer/fast", "--config", "model/tiny", "--config", "data/walk", "--config", "task/prediction"]
SHORT = [
    *("--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.limit_val_batches=1"),
    *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--model.dim=16"),
    *("--data.init_args.batch_size=1", "--data.init_args.length=4", "--data.init_args.workers=0"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", *PIECES, *SHORT]) == 0
    finally:
        os.chdir(before)
    return folder / "out" / "train" / "version_0"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
class TestRun:
    def test_the_files_of_a_run(self, run: Path) -> None:
        left = {path.relative_to(run).parts[0] for path in run.rglob("*")}
        assert {"checkpoints", "config.yaml", "metrics.csv", "model", "pictures"} <= left
        assert any(name.startswith("events.out.tfevents") for name in left)
        assert not list(run.rglob("*.part"))

    def test_the_log(self, run: Path) -> None:
        with open(run / "metrics.csv", encoding="utf-8") as file:
            columns = next(csv.reader(file))
        assert {"val/loss", "val/mse", "val/copy_mse", "val/inner_before", "val/psnr", "val/ssim"} <= set(columns)

    def test_the_model_can_watch(self, run: Path, here: Path) -> None:
        assert main(["watch", "walk", "--max-frames", "3", "--model", str(run / "model"), "--size", "32"]) == 0

    def test_export_writes_the_same_model(self, run: Path, here: Path) -> None:
        checkpoint = next((run / "checkpoints").glob("*.ckpt"))
        assert main(["export", str(checkpoint), "exported"]) == 0
        assert models.load("exported").fingerprint() == models.load(str(run / "model")).fingerprint()

    @pytest.mark.parametrize("command", ["validate", "test"])
    def test_measuring_a_checkpoint(
        self, run: Path, here: Path, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        checkpoint = next((run / "checkpoints").glob("*.ckpt"))
        words = [command, "--config", str(run / "config.yaml"), f"--ckpt_path={checkpoint}"]
        assert main([*words, "--trainer.limit_test_batches=1", "--trainer.limit_val_batches=1"]) == 0
        assert ("val/mse" if command == "validate" else "test/mse") in capsys.readouterr().out

    def test_predict_writes_a_line_a_frame(self, run: Path, here: Path) -> None:
        checkpoint = next((run / "checkpoints").glob("*.ckpt"))
        words = ["predict", "--config", str(run / "config.yaml"), f"--ckpt_path={checkpoint}"]
        assert main([*words, "--trainer.limit_predict_batches=2"]) == 0
        (path,) = here.rglob("predictions.jsonl")
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [row["frame"] for row in rows] == list(range(8))
        assert {row["clip"] for row in rows} == {"walk 200000"}
        assert "mse" not in rows[0]
        assert rows[1]["mse"] > 0
        assert not list(here.rglob("*.part"))

    def test_going_on(self, run: Path, here: Path) -> None:
        checkpoint = next((run / "checkpoints").glob("*.ckpt"))
        words = ["fit", "--config", str(run / "config.yaml"), f"--ckpt_path={checkpoint}", "--trainer.max_steps=4"]
        assert main(words) == 0
        assert torch.load(next(here.rglob("*.ckpt")))["global_step"] == 4

    def test_each_visit_has_its_own_time(self, here: Path) -> None:
        words = ["fit", *PIECES, *SHORT, "--trainer.max_steps=1000000", "--trainer.max_time=00:00:00:02"]
        assert main([*words, "--trainer.val_check_interval=1000000"]) == 0
        (last,) = here.rglob("last.ckpt")
        done = torch.load(last)["global_step"]
        assert main([*words, "--trainer.val_check_interval=1000000", f"--ckpt_path={last}"]) == 0
        assert max(torch.load(path)["global_step"] for path in here.rglob("last.ckpt")) > done


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["--model.dimm=3"], "unrecognized arguments: --model.dimm=3"),
            (["--config", "nope"], "there is no config nope: give a file, or a shipped one by name"),
            (["--config=trainer/fas"], r"did you mean trainer/fast\?"),
            (["--trainer.max_steps=abc"], '"trainer.max_steps": Expected a .*int.*abc'),
            (["--task.init_args.lrr=3"], "lrr"),
            (["--task=Nothing"], '"task": .*Nothing'),
            (["--task.init_args.horizon=0"], "horizon must be at least 1, got 0"),
            (["--model.dim=7"], "dim must be a multiple of heads"),
            (["--model.memory=lstmm"], "there is no memory 'lstmm'"),
            (["--model.memory=attention"], "grows with the stream"),
            (["--data.init_args.bad_video=maybe"], "bad_video is 'maybe'"),
            (["--ckpt_path=away.ckpt"], "there is no checkpoint away.ckpt"),
            (["--ckpt_path=torn.ckpt"], "torn.ckpt cannot be read as a checkpoint"),
            (["--ckpt_path=."], "cannot be read as a checkpoint"),
            (["--trainer.precision=bf17"], "precision"),
            (["--trainer.accelerator=abacus"], "invalid accelerator name"),
            (["--trainer.val_check_interval=0"], "trainer.val_check_interval must be at least"),
            (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be at least 0, got -1"),
            (["--trainer.default_root_dir=torn.ckpt"], "cannot write .*torn.ckpt"),
            (["--seed_everything=-1"], "seed_everything must lie"),
            (["--config=binary.yaml"], "binary.yaml cannot be read as text"),
            (["--task.init_args.lr=-1"], "lr cannot be negative"),
            (["--data.init_args.seed=-1"], "seed cannot be negative"),
            (["--data.init_args.length=1"], "set data.length to 2"),
            (["--data.init_args.train.count=0"], "walks: count must be at least 1"),
            (
                [
                    "--data.init_args.transform=torchvision.transforms.v2.Normalize",
                    "--data.init_args.transform.init_args.mean=[0]",
                    "--data.init_args.transform.init_args.std=[1]",
                ],
                "transform: Normalize takes no uint8 frames",
            ),
        ],
    )
    def test_one_line(self, here: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
        (here / "torn.ckpt").write_bytes(b"PK\x03\x04 half a file")
        (here / "binary.yaml").write_bytes(b"\xff\xfe\x00")
        assert main(["fit", *PIECES, *SHORT, *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tttstream: error: ")]
        assert len(lines) == 1
        assert re.search(says, lines[0]), lines[0]
        assert len(lines[0]) < 600
        assert {path.name for path in here.iterdir()} == {"torn.ckpt", "binary.yaml"}  # no folder of the run

    def test_no_data(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fit", "--config", "trainer/fast", "--config", "task/prediction"]) == 2
        assert "error: no data is given: add a piece of data/" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["test", "--config=data/mine"], "test"),
            (["predict", "--config", "mine.yaml", "--data.train.folders=videos"], "test"),
            (["validate", "--data=VideoData", "--data.test=Walks"], "val"),
            (["fit", "-c", "mine.yaml", "--config=data/spliced"], None),
            (["fit", "--config=data/spliced"], "train"),
            (["test", "--config=data/videos"], None),
            (["test", "--config=mine.yaml", "--data.test=Walks"], None),
            (["test", "--config=mine.yaml", "--data.init_args.fractions=[0.8,0.1,0.1]"], None),
            (["test", "--config=mine.yaml", "--help"], None),
            (["test", "--config=mine.yaml", "--data=of.mine.Own"], None),
            (["test", "--config=away.yaml"], None),
        ],
    )
    def test_missing_data_is_reported_before_lightning_is_imported(
        self, here: Path, words: list[str], part: str | None
    ) -> None:
        (here / "data").mkdir()
        for name in ("mine.yaml", "data/mine"):
            (here / name).write_text("data: {class_path: VideoData, init_args: {train: Videos, test: null}}\n")
        assert given.without(words) == part

    def test_missing_test_data(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["test", "--data=VideoData", "--data.train=Walks"]) == 2
        assert main(["test", *PIECES, *SHORT, "--data.init_args.test=null"]) == 2  # known after parsing
        says = "tttstream: error: data: nothing is given for test; give data.test, or fractions to cut it from train"
        assert capsys.readouterr().err.splitlines() == [says, says]
        assert not (here / "out").exists()

    def test_a_full_disk_while_logging(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")

        monkeypatch.setattr(cli.CSVLogger, "log_metrics", full)
        assert main(["fit", *PIECES, *SHORT, "--trainer.log_every_n_steps=1"]) == 2
        assert "cannot write metrics.csv: the disk is full" in capsys.readouterr().err

    def test_a_key_in_a_file(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (here / "mine.yaml").write_text("trainer:\n  max_step: 3\n")
        assert main(["fit", *PIECES, "--config", "mine.yaml"]) == 2
        assert "max_step" in capsys.readouterr().err

    @pytest.mark.parametrize("where", ["file", "init_args", "word"])
    def test_data_of_another_size(self, here: Path, capsys: pytest.CaptureFixture[str], where: str) -> None:
        (here / "mine.yaml").write_text("data: {init_args: {size: 128}}\n")
        words = {"file": "--config=mine.yaml", "init_args": "--data.init_args.size=128", "word": "--data.size=128"}
        assert main(["fit", *PIECES, *SHORT, words[where]]) == 2
        error = capsys.readouterr().err
        assert "data.size is 128, but the model takes pictures of 32: set --model.size alone" in error
        assert len(error.splitlines()) == 1
        assert not (here / "out").exists()

    def test_a_checkpoint_of_another_model(self, run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        checkpoint = next((run / "checkpoints").glob("*.ckpt"))
        assert main(["fit", *PIECES, *SHORT, "--model.depth=1", f"--ckpt_path={checkpoint}"]) == 2
        assert "the checkpoint is of another model: depth 2, here 1" in capsys.readouterr().err

    def test_a_checkpoint_that_is_none(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        torch.save({"weight": torch.zeros(2)}, here / "weights.pth")
        torch.save([1], here / "list.ckpt")
        for name in ("weights.pth", "list.ckpt"):
            assert main(["fit", *PIECES, *SHORT, f"--ckpt_path={name}"]) == 2
            assert f"{name} is not a checkpoint of a run" in capsys.readouterr().err
        assert main(["test", *PIECES, *SHORT, "--ckpt_path=best"]) == 2
        assert "there is no checkpoint best: give a file" in capsys.readouterr().err

    def test_export_of_something_else(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (here / "torn.ckpt").write_bytes(b"nothing")
        torch.save({"state_dict": {}}, here / "other.ckpt")
        for name, says in (("away", "there is no"), ("torn", "cannot be read"), ("other", "not written by")):
            assert main(["export", f"{name}.ckpt", "model"]) == 2
            assert says in capsys.readouterr().err
        torch.save({"state_dict": {}, "tttstream": {"model": {"classes": 3}}}, here / "classes.ckpt")
        assert main(["export", "classes.ckpt", "model"]) == 2
        assert "holds a model that this version cannot build" in capsys.readouterr().err
        assert not (here / "model").exists()


class TestCheckpoints:
    def test_a_full_disk_leaves_the_last_good_one(
        self, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        writer = WholeFiles()
        writer.save_checkpoint({"state_dict": {}, "step": 1}, here / "last.ckpt")

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(cli.TTTStreamError, match=r"last.ckpt: the disk is full"):
            writer.save_checkpoint({"step": 2}, here / "last.ckpt")
        assert writer.load_checkpoint(here / "last.ckpt")["step"] == 1
        assert os.listdir(here) == ["last.ckpt"]

    def test_bare_weights_come_back_from_spawned_ranks(self, here: Path) -> None:
        """Lightning writes them under another name; `make soak` has the whole run."""
        assert f'"{SPAWNED}"' in inspect.getsource(_MultiProcessingLauncher)
        WholeFiles().save_checkpoint({"model.weight": torch.ones(2)}, here / SPAWNED)
        assert WholeFiles().load_checkpoint(str(here / SPAWNED))["model.weight"].tolist() == [1, 1]

    def test_a_really_full_disk(self, here: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("there is no /dev/full")
        (here / ".last.ckpt.part").symlink_to("/dev/full")
        with pytest.raises(cli.TTTStreamError, match=r"last.ckpt: the disk is full"):
            WholeFiles().save_checkpoint({"weights": torch.zeros(10**6)}, here / "last.ckpt")
        assert os.listdir(here) == []


class TestConfigs:
    def test_every_piece_has_a_sentence_and_only_its_own_key(self) -> None:
        for name in presets.names():
            group = name.partition("/")[0]
            text = (presets.folder() / f"{name}.yaml").read_text("utf-8")
            assert text.startswith("# "), name
            if group != "agents":
                keys = {line.partition(":")[0] for line in text.splitlines() if line and line[0] not in "# -"}
                assert keys <= {group}, name

    @pytest.mark.parametrize("name", [n for n in presets.names("model") if n.startswith("model/")] or ["model/tiny"])
    def test_models(self, name: str) -> None:
        import yaml

        values = yaml.safe_load((presets.folder() / f"{name}.yaml").read_text("utf-8"))["model"]
        assert models.FrameModel(models.ModelConfig(**values))

    def test_names(self) -> None:
        assert presets.find("trainer/fast") == presets.find("trainer/fast.yaml")
        assert presets.find("../pyproject") is None
        assert "trainer/fast" in presets.names()
