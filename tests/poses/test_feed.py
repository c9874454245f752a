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


@pytest.mark.parametrize("early", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("head", "row", "pose"),
    [
        ("# log of robot\nx,y,yaw_deg\n", "1,2,90\n", [1, 2, 0, 1]),
        (
            "# ground truth\n# by me\n# timestamp tx ty tz qx qy qz qw\n",
            "5 1 2 3 0 0 0 -1\n",
            [1, 2, 3, 1, 0, 0, 0, 1, 0],
        ),
        ("\n%x y yaw_deg\n\n", "1 2 90\n", [1, 2, 0, 1]),
        ("\ufeff", "5 1 2 3 0 0 0 -1\n", [1, 2, 3, 1, 0, 0, 0, 1, 0]),  # a TUM trajectory
        ("", "1 0 0 7 0 1 0 8 0 0 1 9\n", [7, 8, 9, 1, 0, 0, 0, 1, 0]),  # KITTI
        ("", "1 2 3 4 5 6 7 8\n", [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
)
def test_comments_and_known_rows(tmp_path: Path, early: int, head: str, row: str, pose: list[float]) -> None:
    """early: the lines that the file has when it is opened."""
    path = tmp_path / "odometry.txt"
    lines = (head + row).splitlines(keepends=True)
    path.write_text("".join(lines[:early]), encoding="utf-8")
    feed = Feed(path)
    for end in range(early, len(lines)):
        path.write_text("".join(lines[:end]), encoding="utf-8")
        assert feed() is None
        assert "no complete line" in feed.reason
    path.write_text(head + row, encoding="utf-8")
    assert feed().tolist() == pose  # type: ignore[union-attr]


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
