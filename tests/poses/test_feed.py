"""The pose of now from the last line of a file that grows."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tttstream.errors import SourceError
from tttstream.poses import Feed


def test_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "odometry.txt"
    path.write_text("1 2 3\n")
    feed = Feed(path)
    assert feed().tolist() == [1, 2, 3]  # type: ignore[union-attr]
    with open(path, "a") as file:
        file.write("4, 5, 6\n7, 8")
        file.flush()
        assert feed().tolist() == [4, 5, 6]  # type: ignore[union-attr]
        file.write("0, 9\r\n\n# restarted\n")
        file.flush()
        assert feed().tolist() == [7, 80, 9]  # type: ignore[union-attr]


def test_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "odometry.txt"
    path.write_text("".join(f"{i} {i}\n" for i in range(50_000)))
    assert Feed(path)().tolist() == [49_999, 49_999]  # type: ignore[union-attr]


def test_a_header_names_and_leaves_out(tmp_path: Path) -> None:
    path = tmp_path / "odometry.csv"
    path.write_text("timestamp,x,y,yaw_deg\n")
    feed = Feed(path)
    assert feed() is None
    path.write_text("timestamp,x,y,yaw_deg\n1305031102.5,1,2,90\n")
    assert feed().tolist() == [1, 2, 0, 1]  # type: ignore[union-attr]
    assert feed.form is not None
    assert feed.form.directions == (2, 3)
    assert "yaw_deg (in deg" in feed.text
    assert Feed(path, "y")().tolist() == [2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("1 2", "has 2 values, expected 3"),
        ("1 2 nan", "finite"),
        ("1 2 x", "finite"),
    ],
)
def test_a_bad_line_is_no_pose(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "odometry.txt"
    path.write_text("1 2 3\n")
    feed = Feed(path)
    feed()
    path.write_text(f"1 2 3\n{line}\n")
    assert feed() is None
    assert said in feed.reason
    path.write_text("1 2 3\n3 2 1\n")
    assert feed().tolist() == [3, 2, 1]  # type: ignore[union-attr]
    assert feed.reason == ""


def test_a_file_that_stops_growing_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "odometry.txt"
    path.write_text("1 2 3\n")
    os.utime(path, (time.time() - 3, time.time() - 3))
    feed = Feed(path, tolerance=2.5)
    assert feed() is None
    assert "odometry.txt stopped growing: its last line is older than 2.5 s" in feed.reason
    assert Feed(path, tolerance=60)().tolist() == [1, 2, 3]  # type: ignore[union-attr]
    path.unlink()
    assert feed() is None
    assert "No such file" in feed.reason


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no file of poses"):
        Feed(tmp_path / "absent.txt")
    path = tmp_path / "odometry.txt"
    path.write_text("1 2 3\n")
    with pytest.raises(SourceError, match="no header"):
        Feed(path, "x")
    with pytest.raises(SourceError, match="above 0"):
        Feed(path, tolerance=0)
