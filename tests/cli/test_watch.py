"""`tttstream watch` from end to end: its files, repeated and resumed runs, several sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from tests.cli.watching import FILES, lines, summary, watch
from tttstream.cli.main import main
from tttstream.cli.watch import folder_names
from tttstream.models import build
from tttstream.sources.walk import Walk


def test_the_size_is_the_one_the_model_was_trained_at(clip: Callable[[str, int], Path], tmp_path: Path) -> None:
    """Unless --size is given; a saved stream continues with its own size."""
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


def test_a_saved_run_continues_bit_for_bit(tmp_path: Path, clip: Callable[..., Path]) -> None:
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


def test_without_learning_the_memory_does_not_change(tmp_path: Path, clip: Callable[..., Path]) -> None:
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

    def test_unreadable_sources_are_skipped(
        self, tmp_path: Path, clip: Callable[..., Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        bad = tmp_path / "bad.mp4"
        bad.write_text("no video")
        assert watch(bad, clip("one"), "--out", tmp_path / "out") == 0
        assert "tttstream: skipped: " in capsys.readouterr().err
        assert sorted(os.listdir(tmp_path / "out")) == ["one", "summary.json"]
        assert [one["source"] for one in summary(tmp_path / "out")["unreadable"]] == [str(bad)]

    def test_or_end_the_run_with_the_results_before_them(self, tmp_path: Path, clip: Callable[..., Path]) -> None:
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
