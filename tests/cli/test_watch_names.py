"""`tttstream watch` on files with unusual names and spellings, and two runs at the same time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cli.watching import FILES, QUICK
from tttstream.cli.main import main
from tttstream.cli.watch import folder_names

LATIN = os.fsdecode(b"caf\xe9.mp4")
ODD = [LATIN, "2024-01-01T10:00.mp4", "日本 \u202e語$5_$a^b$.mp4", "line\nend.mp4", "-dash.mp4", f"{'n' * 250}.mp4"]


def made(path: Path, frames: int = 6) -> Path:
    rng = np.random.default_rng(0)
    with av.open(os.path.abspath(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_odd_names_under_ascii(place: Path) -> None:
    made(place / "x.mp4")
    names: list[str] = []
    for name in ODD:
        try:
            shutil.copy(place / "x.mp4", place / name)
        except OSError:  # a file system that does not allow this name
            continue
        names.append(name)
    (place / "x.mp4").unlink()
    words = [os.path.join(".", name) if name.startswith("-") else name for name in names]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "tttstream", "watch", *words, *QUICK, "--out", "out"],
        capture_output=True,
        timeout=200,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"Traceback" not in done.stderr
    assert b"skipped: " not in done.stderr
    (done.stdout + done.stderr).decode("ascii")
    folders = folder_names(words)
    assert len(set(folders)) == len(names)
    for folder in folders:
        assert sorted(os.listdir(place / "out" / folder)) == FILES
        assert len((place / "out" / folder / "frames.jsonl").read_text("utf-8").splitlines()) == 6
    summary = json.loads((place / "out" / "summary.json").read_text("utf-8"))
    assert (summary["frames"], summary["unreadable"]) == (6 * len(names), [])


def test_names_of_folders() -> None:
    specs = ["a/X.mp4", "b/x.mp4", "summary.json.mp4", "con.mp4", "-", "0", "\u00e9.mp4", "e\u0301.mp4", "n" * 255]
    names = folder_names(specs)
    assert names[:2] == ["X", "x-2"]
    assert names[4:6] == ["stdin", "camera-0"]
    assert "summary.json" not in names
    assert "con" not in names
    assert len({name.casefold() for name in names}) == len(names)
    assert len(names[-1]) == 200


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.mp4", "--out", ""], "empty text"),
        ([""], "empty text"),
        (["$CLIP"], "$CLIP was not replaced"),
        (["x.mp4", "--out", "-"], "- is a pipe"),
        (["x.mp4", "--model", ""], "empty text"),
        (["x.mp4", "--out", "n" * 300], "too long"),
        (["m" * 300 + ".mp4"], "File name too long"),
        (["nul\0byte.mp4"], "cannot be opened"),
    ],
)
def test_one_line_and_no_files(place: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    made(place / "x.mp4")
    try:
        code = main(["watch", *words, *QUICK])
    except SystemExit as end:  # argparse
        code = end.code  # type: ignore[assignment]
    error = capsys.readouterr().err
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert os.listdir(place) == ["x.mp4"]


def test_links(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "a").mkdir()
    made(place / "a" / "x.mp4")
    (place / "b").symlink_to("a")
    (place / "c").symlink_to("c")
    assert main(["watch", "a", "b", "c", *QUICK, "--no-overlay", "--out", "out"]) == 0
    assert "tttstream: skipped: " in capsys.readouterr().err  # the link to itself
    assert sorted(os.listdir("out")) == ["summary.json", "x", "x-2"]


def test_two_runs_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["watch", "walk", *QUICK, "--no-overlay", "--out", "out"]
    with subprocess.Popen([sys.executable, "-m", "tttstream", *words], stdout=subprocess.DEVNULL) as first:
        try:
            while not (place / "out" / ".frames.jsonl.part").exists():
                assert first.poll() is None
                try:
                    first.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
            assert main([*words, "--max-frames", "3"]) == 2
            error = capsys.readouterr().err
            assert f"is in use by another run (process {first.pid}" in error
            assert error.count("\n") == 1
            assert first.poll() is None
        finally:
            first.send_signal(2)
        assert first.wait(100) == 0
    left = sorted(os.listdir(place / "out"))
    assert left == ["frames.jsonl", "summary.json", "surprise.png"]
    told = json.loads((place / "out" / "summary.json").read_text())
    assert told["interrupted"]
    assert told["frames"] == len((place / "out" / "frames.jsonl").read_text().splitlines())
