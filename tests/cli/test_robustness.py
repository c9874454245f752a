"""`tttstream watch` on damaged and unusual files: readable parts are processed, the rest is reported in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tttstream.cli.main import main

READABLE = {  # least number of frames, cut off or damaged
    "av1.mkv": (10, False),
    "corrupted.mp4": (1, None),
    "mpeg4.avi": (10, False),
    "no_index.mp4": (100, True),
    "rotated_90.mov": (3, False),
    "truncated_midway.mkv": (10, True),
    "two_video_streams.mp4": (10, False),
    "unordered.mov": (4, None),
}
DRAWN = ("truncated_midway.mkv", "rotated_90.mov")  # with an overlay, which takes as long as all else
UNREADABLE = ["empty.mp4", "not_a_video.mp4"]


def test_every_file_is_here(shared_videos: Path) -> None:
    assert sorted(os.listdir(shared_videos / "robustness")) == sorted([*READABLE, *UNREADABLE])


@pytest.mark.parametrize("name", READABLE)
def test_readable_files_are_processed(shared_videos: Path, tmp_path: Path, name: str) -> None:
    least, truncated = READABLE[name]
    file = str(shared_videos / "robustness" / name)
    less = [] if name in DRAWN else ["--no-overlay"]
    assert main(["watch", file, "--out", str(tmp_path), "--size", "32", *less]) == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    lines = (tmp_path / "frames.jsonl").read_text().splitlines()
    assert said["frames"] == len(lines) >= least
    assert truncated is None or said["truncated"] is truncated
    made = ["frames.jsonl", *["overlay.mp4"] * (name in DRAWN), "summary.json", "surprise.png"]
    assert sorted(os.listdir(tmp_path)) == made


@pytest.mark.parametrize("policy", ["skip", "raise"])
@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_are_one_line_and_exit_2(
    shared_videos: Path, tmp_path: Path, name: str, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(shared_videos / "robustness" / name)
    assert main(["watch", file, "--out", str(tmp_path / "out"), "--size", "32", "--on-error", policy]) == 2
    captured = capsys.readouterr().err
    assert name in captured
    assert captured.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["truncated_midway.mkv", "no_index.mp4"])
def test_a_cut_file_is_exit_2_with_on_error_raise(
    shared_videos: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(shared_videos / "robustness" / name)
    less = [] if name in DRAWN else ["--no-overlay"]
    assert main(["watch", file, "--out", str(tmp_path / "out"), "--size", "32", "--on-error", "raise", *less]) == 2
    assert capsys.readouterr().err.count("error:") == 1
    assert os.listdir(tmp_path) == []


def test_the_whole_folder(shared_videos: Path, tmp_path: Path) -> None:
    folder = str(shared_videos / "robustness")
    assert main(["watch", folder, "--out", str(tmp_path), "--size", "32", "--max-frames", "5", "--no-overlay"]) == 0
    said = json.loads((tmp_path / "summary.json").read_text())
    assert sorted(Path(one["source"]).name for one in said["sources"]) == sorted(READABLE)
    assert sorted(Path(one["source"]).name for one in said["unreadable"]) == UNREADABLE
