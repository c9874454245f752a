"""`tttstream watch` with mistakes, bad frames, Ctrl-C and a full disk: it ends well or leaves nothing."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.cli.watching import FILES, QUICK, lines, summary, watch
from tttstream.cli.main import main
from tttstream.cli.recorder import Recorder
from tttstream.frames import Frame
from tttstream.sources.base import Source


class TestErrors:
    @pytest.fixture
    def place(self, tmp_path: Path, clip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder with things in it that cannot be used."""
        (tmp_path / "text.mp4").write_text("not a video")
        (tmp_path / "empty.mp4").write_bytes(b"")
        (tmp_path / "nothing").mkdir()
        (tmp_path / "good.mp4").write_bytes(clip("one").read_bytes())
        (tmp_path / "state").write_text("not a state")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            ("good.mp4 --size 0", "--size is 0"),
            ("good.mp4 --size 100000", "--size is 100000"),
            ("good.mp4 --size 33", "multiple"),
            ("good.mp4 --seed -1", "--seed is -1"),
            (f"good.mp4 --seed {2**63}", "--seed is"),
            ("good.mp4 --max-frames 0", "--max-frames is 0"),
            ("good.mp4 --max-frames ten", "invalid whole number"),
            ("missing.mp4", "no such file or folder"),
            ("text.mp4", "text.mp4"),
            ("empty.mp4", "empty"),
            ("nothing", "neither images nor videos"),
            ("good.mp4 --model huge", "huge"),
            ("good.mp4 --load-state none", "no file none"),
            ("good.mp4 --load-state state", "state"),
            ("good.mp4 --device nonsense", "nonsense"),
            ("good.mp4 --device meta", "'meta' cannot be used here"),
            ("good.mp4 --out good.mp4", "is a file"),
            ("good.mp4 --out good.mp4/deeper", "not a folder"),
            ("missing.mp4 --save-state nothing/deep/state", "no such file or folder"),
            ("good.mp4 --save-state good.mp4/state", "not a folder"),
            ("good.mp4 --save-state nothing", "is a folder: give a file"),
            ("gym:NoSuchWorld-v0", "NoSuchWorld"),
            ("good.mp4 --unknown", "unrecognized arguments"),
            ("", "SOURCE"),
        ],
    )
    def test_one_line_exit_2_and_no_files(
        self, place: Path, words: str, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = sorted(place.rglob("*"))
        arguments = ["watch", *words.split()]
        arguments += [] if "--size" in words else QUICK
        arguments += [] if "--out" in words else ["--out", "out"]
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse
            code = end.code  # type: ignore[assignment]
        captured = capsys.readouterr()
        assert code == 2
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert sorted(place.rglob("*")) == before

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_a_device_that_is_not_here(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert watch("good.mp4", "--device", "cuda", "--out", "out") == 2
        assert "--device cpu" in capsys.readouterr().err
        assert not (place / "out").exists()

    def test_results_that_were_there_survive_a_failure(self, place: Path) -> None:
        assert watch("good.mp4", "--out", "out") == 0
        before = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
        assert watch("text.mp4", "--out", "out") == 2
        assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == before

    @pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
    def test_a_folder_that_may_not_be_written(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (place / "nothing").chmod(0o500)
        assert watch("good.mp4", "--out", "nothing/out") == 2
        assert "no permission" in capsys.readouterr().err


class Flawed(Source):
    """Frames of noise, those in `bad` with a NaN."""

    name = "flawed"
    fps = 10.0

    def __init__(self, count: int, bad: set[int]) -> None:
        self.frames, self.bad = count, bad

    def __iter__(self) -> Iterator[Frame]:
        rng = np.random.default_rng(0)
        for index in range(self.frames or 0):
            image = rng.random((32, 32, 3), dtype=np.float32)
            if index in self.bad:
                image[3, 4, 1] = np.nan
            yield Frame(image, index, index / 10)

    def position(self) -> dict[str, Any]:
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        raise NotImplementedError


class TestNaN:
    @pytest.fixture
    def use(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Source], None]:
        return lambda source: monkeypatch.setattr("tttstream.sources.open_source", lambda *_, **__: source)

    def test_frames_with_nan_are_counted_and_change_nothing(self, tmp_path: Path, use: Callable[..., None]) -> None:
        use(Flawed(20, {4, 5}))
        assert watch("walk", "--out", tmp_path) == 0
        assert summary(tmp_path)["skipped"] == 2
        assert [row["index"] for row in lines(tmp_path)] == [i for i in range(20) if i not in (4, 5)]
        assert all(np.isfinite(row["surprise"]) for row in lines(tmp_path))

    def test_or_end_the_run(self, tmp_path: Path, use: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
        use(Flawed(20, {4}))
        assert watch("walk", "--out", tmp_path / "out", "--on-error", "raise") == 2
        assert "not finite" in capsys.readouterr().err
        assert os.listdir(tmp_path) == []

    def test_only_nan(self, tmp_path: Path, use: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
        use(Flawed(5, set(range(5))))
        assert watch("walk", "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert "no readable frame: " in error
        assert "not finite" in error
        assert os.listdir(tmp_path) == []


class TestInterrupt:
    @pytest.mark.parametrize("times", [1, 2])
    def test_ctrl_c_writes_everything(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        add = Recorder.add

        def interrupted(self: Recorder, *args: Any) -> Any:
            if self.frames == 12:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
            return add(self, *args)

        monkeypatch.setattr(Recorder, "add", interrupted)
        handler = signal.getsignal(signal.SIGINT)
        assert watch("walk", "--out", tmp_path / "out", "--save-state", tmp_path / "state") == 0
        assert signal.getsignal(signal.SIGINT) is handler
        said = summary(tmp_path / "out")
        assert said["interrupted"] is True
        assert said["frames"] == len(lines(tmp_path / "out")) == (13 if times == 1 else 12)
        assert sorted(os.listdir(tmp_path / "out")) == FILES
        assert (tmp_path / "state").exists()


class TestFullDisk:
    def test_any_writer_that_finds_the_disk_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        for target in (
            "tttstream.views.writer.VideoWriter._mux",
            "tttstream.io.outputs.ArrayFile._write_header",
            "tttstream.io.outputs.os.replace",
            "matplotlib.backends.backend_agg.FigureCanvasAgg.print_png",
        ):
            with monkeypatch.context() as patch:
                patch.setattr(target, full)
                assert watch("walk", "--max-frames", 5, "--embeddings", "--out", tmp_path / "out") == 2, target
            assert "the disk is full" in capsys.readouterr().err
            assert os.listdir(tmp_path) == []

    def test_a_disk_that_really_is(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip("no right to mount a small disk")
        try:
            assert watch("walk", "--max-frames", 200, "--out", disk / "out") == 2
            assert "the disk is full" in capsys.readouterr().err
            assert os.listdir(disk) == []
        finally:
            subprocess.run(["umount", disk], check=True)
