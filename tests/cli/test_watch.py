"""`tttstream watch` from end to end: what it writes, that it repeats, goes on, and ends well or leaves nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch

from tttstream.cli.main import main
from tttstream.cli.recorder import Recorder
from tttstream.cli.watch import folder_names
from tttstream.frames import Frame
from tttstream.models import build
from tttstream.sources.base import Source
from tttstream.sources.walk import Walk
from tttstream.views.writer import VideoWriter

QUICK = ["--size", "32"]
FILES = ["frames.jsonl", "overlay.mp4", "summary.json", "surprise.png"]
CUT_AT = 25  # a scene of the clips below ends here


def watch(*words: object) -> int:
    return main(["watch", *map(str, words), *QUICK])


def lines(folder: Path) -> list[dict[str, Any]]:
    """frames.jsonl without what differs between two runs."""
    rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "latency_ms"} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A video of some frames: noise patterns, another one after CUT_AT frames."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str, frames: int = 40) -> Path:
        path = folder / f"{name}.mp4"
        if not path.exists():
            rng = np.random.default_rng(len(name))
            patterns = [cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (80, 60)) for _ in range(2)]
            with VideoWriter(path, 20) as writer:
                for index in range(frames):
                    writer.write(np.asarray(patterns[index >= CUT_AT], dtype=np.uint8))
        return path

    return make


def test_the_size_is_the_one_the_model_was_trained_at(clip: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Unless --size says otherwise; a saved stream goes on at its own."""
    build("small", size=32, dim=32, depth=1, heads=2).save(tmp_path / "own")
    words = ["watch", str(clip("four", 4)), "--no-overlay"]
    for name, options, size in (
        ("base", ["--max-frames", "2"], 64),
        ("small", ["--model", "small", "--max-frames", "1"], 128),
        ("own", ["--model", str(tmp_path / "own")], 32),
        ("said", ["--model", str(tmp_path / "own"), "--size", "48", "--save-state", str(tmp_path / "state")], 48),
        (
            "loaded",
            ["--model", str(tmp_path / "own"), "--load-state", str(tmp_path / "state"), "--max-frames", "1"],
            48,
        ),
    ):
        words[1] = str(clip("four again", 4)) if name == "loaded" else words[1]
        assert main([*words, *options, "--out", str(tmp_path / name)]) == 0
        assert summary(tmp_path / name)["size"] == size, name
    words = ["watch", "walk", "--max-frames", "1", "--no-overlay", "--out", str(tmp_path / "walk")]
    assert main(words) == 0
    assert summary(tmp_path / "walk")["size"] == 64


class TestResults:
    @pytest.fixture(scope="class")
    @classmethod
    def out(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("walk") / "deep" / "out"
        assert watch("walk", "--max-frames", 300, "--out", out, "--embeddings", "--seed", 3) == 0
        return out

    def test_the_files(self, out: Path) -> None:
        assert sorted(os.listdir(out)) == sorted([*FILES, "embeddings.npy"])

    def test_one_line_a_frame(self, out: Path) -> None:
        rows = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
        assert [row["index"] for row in rows] == list(range(300))
        assert rows[30]["time_s"] == 1.0
        assert all(list(row) == ["index", "time_s", "surprise", "learned", "latency_ms"] for row in rows)

    def test_the_summary(self, out: Path) -> None:
        said = summary(out)
        assert (said["source"], said["frames"], said["skipped"], said["truncated"]) == ("walk", 300, 0, False)
        assert (said["model"], said["size"], said["seed"], said["interrupted"]) == ("base", 32, 3, False)
        assert said["fps"] == pytest.approx(300 / said["seconds"], rel=0.01)
        latencies = [json.loads(line)["latency_ms"] for line in (out / "frames.jsonl").read_text().splitlines()]
        for key, value in said["latency_ms"].items():
            assert value == pytest.approx(np.percentile(latencies, int(key[1:])), abs=2e-3)
        assert said["state_bytes"] > 0
        assert 50 < said["rss_mb"]["start"] <= said["rss_mb"]["max"]
        assert all(set(event) == {"index", "time_s", "surprise"} for event in said["events"])

    def test_walk_is_judged_beside_two_rivals(self, out: Path) -> None:
        said = summary(out)
        known = Walk(size=32, seed=3).events(300)
        assert [(e["kind"], e["start"], e["stop"]) for e in said["planted"]] == [
            (e.kind, e.start, e.stop) for e in known
        ]
        assert list(said["detection"]) == ["surprise", "frame_difference", "mog2"]
        assert said["detection"]["surprise"]["events"] == len({event.start for event in known})

    def test_the_overlay_has_every_frame_at_the_rate_of_the_source(self, out: Path) -> None:
        with av.open(os.fspath(out / "overlay.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 30
            times = [frame.time for frame in container.decode(stream)]
        assert len(times) == 300
        assert times[-1] == pytest.approx(299 / 30, abs=1e-3)

    def test_embeddings_and_chart(self, out: Path) -> None:
        vectors = np.load(out / "embeddings.npy")
        assert vectors.shape[0] == 300
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert cv2.imread(os.fspath(out / "surprise.png")).std() > 5


def test_a_seed_repeats_bit_for_bit_and_another_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert watch("walk", "--max-frames", 40, "--out", tmp_path / name, "--seed", seed) == 0
    assert lines(tmp_path / "a") == lines(tmp_path / "b") != lines(tmp_path / "c")
    videos = [(tmp_path / name / "overlay.mp4").read_bytes() for name in "abc"]
    assert videos[0] == videos[1] != videos[2]


def test_no_overlay_means_none_also_of_an_earlier_run(tmp_path: Path) -> None:
    assert watch("walk", "--max-frames", 3, "--out", tmp_path, "--embeddings") == 0
    assert {"overlay.mp4", "embeddings.npy"} < set(os.listdir(tmp_path))
    (tmp_path / "notes.txt").write_text("mine")
    assert watch("walk", "--max-frames", 3, "--out", tmp_path, "--no-overlay") == 0
    assert set(os.listdir(tmp_path)) == {"frames.jsonl", "summary.json", "surprise.png", "notes.txt"}


def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path: Path, clip: Callable[..., Path]) -> None:
    video, state = clip("one"), tmp_path / "made" / "for" / "state"
    assert watch(video, "--out", tmp_path / "whole") == 0
    assert watch(video, "--out", tmp_path / "first", "--max-frames", 17, "--save-state", state) == 0
    assert watch(video, "--out", tmp_path / "second", "--load-state", state) == 0
    assert lines(tmp_path / "first") + lines(tmp_path / "second") == lines(tmp_path / "whole")


def test_a_memory_of_one_source_is_taken_to_another_from_its_start(tmp_path: Path, clip: Callable[..., Path]) -> None:
    state = tmp_path / "state"
    assert watch(clip("one"), "--out", tmp_path / "one", "--save-state", state) == 0
    assert watch(clip("second"), "--out", tmp_path / "second", "--load-state", state) == 0
    assert watch(clip("one"), clip("second"), "--out", tmp_path / "both", "--carry") == 0
    assert [row["index"] for row in lines(tmp_path / "second")] == list(range(40))
    assert lines(tmp_path / "second") == lines(tmp_path / "both" / "second")


def test_a_memory_of_another_model_is_refused(
    tmp_path: Path, clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    assert watch(clip("one"), "--out", tmp_path / "first", "--model", "small", "--save-state", state) == 0
    assert watch(clip("one"), "--out", out, "--load-state", state) == 2
    assert "saved by another model" in capsys.readouterr().err
    assert not out.exists()


def test_embeddings_change_nothing_else_and_cannot_begin_in_the_middle(
    tmp_path: Path, clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    video, state, whole = clip("one"), tmp_path / "state", tmp_path / "whole-state"
    assert watch(video, "--out", tmp_path / "a", "--max-frames", 17, "--save-state", state) == 0
    assert watch(video, "--out", tmp_path / "b", "--max-frames", 17, "--embeddings", "--save-state", whole) == 0
    assert lines(tmp_path / "a") == lines(tmp_path / "b")
    assert watch(video, "--out", tmp_path / "c", "--load-state", state) == 0
    assert watch(video, "--out", tmp_path / "d", "--load-state", whole) == 0
    assert watch(video, "--out", tmp_path / "e", "--load-state", whole, "--embeddings") == 0
    assert lines(tmp_path / "c") == lines(tmp_path / "d") == lines(tmp_path / "e")
    assert watch(video, "--out", tmp_path / "f", "--load-state", state, "--embeddings") == 2
    assert "saved without embeddings" in capsys.readouterr().err


def test_without_learning_the_memory_stays_as_it_was(tmp_path: Path, clip: Callable[..., Path]) -> None:
    assert watch(clip("one"), "--out", tmp_path / "on") == 0
    assert watch(clip("one"), "--out", tmp_path / "off", "--no-learn") == 0
    assert lines(tmp_path / "on")[0]["learned"] > 0
    assert lines(tmp_path / "on") != lines(tmp_path / "off")
    assert summary(tmp_path / "off")["learn"] is False


class TestSeveral:
    def test_each_has_a_folder_and_the_memory_is_its_own(self, tmp_path: Path, clip: Callable[..., Path]) -> None:
        sources = [clip("one"), clip("second"), clip("one")]
        assert watch(*sources, "--out", tmp_path / "out") == 0
        assert watch(clip("second"), "--out", tmp_path / "alone") == 0
        assert sorted(os.listdir(tmp_path / "out")) == ["one", "one-2", "second", "summary.json"]
        assert sorted(os.listdir(tmp_path / "out" / "one-2")) == FILES
        assert lines(tmp_path / "out" / "second") == lines(tmp_path / "alone")
        total = summary(tmp_path / "out")
        assert total["frames"] == 120
        assert [one["source"] for one in total["sources"]] == list(map(str, sources))

    def test_what_cannot_be_read_is_passed_over(
        self, tmp_path: Path, clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = tmp_path / "bad.mp4"
        bad.write_text("no video")
        assert watch(bad, clip("one"), "--out", tmp_path / "out") == 0
        assert "tttstream: skipped: " in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path / "out")) == ["one", "summary.json"]
        assert [one["source"] for one in summary(tmp_path / "out")["unreadable"]] == [str(bad)]

    def test_or_ends_the_run_with_what_was_done_before_it(self, tmp_path: Path, clip: Callable[..., Path]) -> None:
        bad = tmp_path / "bad.mp4"
        bad.write_text("no video")
        assert watch(clip("one"), bad, "--out", tmp_path / "out", "--on-error", "raise") == 2
        assert os.listdir(tmp_path / "out") == ["one"]
        assert sorted(os.listdir(tmp_path / "out" / "one")) == FILES

    def test_folder_names(self) -> None:
        given = [
            "a/b.mp4",
            "c/b.mkv",
            "gym:CartPole-v1",
            "0",
            "walk",
            "http://x.org/v/cam 1.mp4?key=2",
            "b-2.avi",
            "d/",
        ]
        assert folder_names(given) == ["b", "b-2", "CartPole-v1", "camera-0", "walk", "cam_1", "b-2-2", "d"]


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
    def test_one_line_exit_2_and_nothing_left(
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

    def test_nothing_but_nan(
        self, tmp_path: Path, use: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        use(Flawed(5, set(range(5))))
        assert watch("walk", "--out", tmp_path / "out") == 2
        assert "no readable frame" in capsys.readouterr().err
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
