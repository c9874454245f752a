"""Recordings with a file of poses: each frame gets its own pose, also after skipped frames and after a restart."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.sources import open_source

MakeVideo = Callable[..., Path]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images whose grey is ten times their number; the fourth is damaged."""
    images = tmp_path / "images"
    images.mkdir()
    for index in range(10):
        Image.new("RGB", (16, 12), (10 * index,) * 3).save(images / f"{index}.png")
    (images / "3.png").write_bytes(b"\x89PNG broken")
    return images


def shown(frames: list[Frame]) -> list[tuple[int, int, float]]:
    """(number, grey / 10, first number of the pose)"""
    return [
        (frame.index, int(frame.image.mean()) // 10, float(frame.pose[0])) for frame in frames if frame.pose is not None
    ]


class TestFolders:
    def test_a_skipped_image_does_not_move_the_rows(self, folder: Path, tmp_path: Path) -> None:
        poses = write(tmp_path / "p.csv", "x\n" + "\n".join(map(str, range(10))))
        with open_source(folder, poses=poses) as source:
            frames = shown(list(source))
            assert (source.skipped, source.unposed) == (1, 0)
        assert frames == [(at, place, place) for at, place in enumerate([0, 1, 2, 4, 5, 6, 7, 8, 9])]

    def test_nor_the_times(self, folder: Path, tmp_path: Path) -> None:
        poses = write(tmp_path / "p.txt", f"0 0 0 0 0 0 0 1\n{9 / 30} 9 0 0 0 0 0 1\n")
        with open_source(folder, poses=poses) as source:
            frames = list(source)
            assert source.about.startswith("p.txt: TUM trajectory, 2 rows by time")
            assert source.pose_form is not None
            assert source.pose_form.names[:3] == ("tx", "ty", "tz")
        assert [round(x, 9) for _, _, x in shown(frames)] == [0, 1, 2, 4, 5, 6, 7, 8, 9]

    @pytest.mark.parametrize("name", ["1305031102.{:02d}", "1305031102{:02d}0000", "1305031102{:02d}0000000"])
    def test_names_that_are_times(self, tmp_path: Path, name: str) -> None:
        """As in the TUM and EuRoC data sets, an irregular recording, matched by the clock of both."""
        images = tmp_path / "rgb"
        images.mkdir()
        late = [0, 3, 4, 9]
        for value in late:
            Image.new("RGB", (8, 8), (10 * value,) * 3).save(images / f"{name.format(value)}.png")
        poses = write(tmp_path / "p.txt", "1305031101 -100 0 0 0 0 0 1\n1305031103 100 0 0 0 0 0 1\n")
        with open_source(images, poses=poses) as source:
            frames = list(source)
        times = np.array([frame.time_s for frame in frames])
        np.testing.assert_allclose(times / times[-1], np.array(late) / 9, atol=1e-5)
        found = np.array([frame.pose for frame in frames])[:, 0]
        np.testing.assert_allclose(found, 100 * times, atol=1e-4)

    def test_too_few_poses(self, folder: Path, tmp_path: Path) -> None:
        poses = write(tmp_path / "p.csv", "frame,x\n" + "\n".join(f"{i},{i}" for i in (0, 1, 2, 5, 6)))
        with open_source(folder, poses=poses) as source:
            assert shown(list(source)) == [(0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 5, 5), (4, 6, 6)]
            assert (source.skipped, source.unposed) == (5, 4)
            assert source.remarks() == [
                "4 frames skipped without a pose, the first: frame 4: p.csv has no frame 4 (after line 4)"
            ]
        (folder / "3.png").unlink()
        with (
            open_source(folder, poses=poses, on_error="raise") as source,
            pytest.raises(SourceError, match=r"frame 3: p.csv has no frame 3 \(after line 4\)"),
        ):
            list(source)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["im00.png", "im01.png"], "has 2 frames)"),
            (["1.png", "2.png"], "has 2 frames)"),
            (["a.png", "b1.png"], "has 2 frames)"),
            (["00.png", "02.png"], "has 2 frames, counted from 0; their names have the numbers 0 to 2)"),
            (["im7.png", "im8.png"], "has 2 frames, counted from 0; their names have the numbers 7 to 8)"),
        ],
    )
    def test_other_numbers_in_names_are_told(self, tmp_path: Path, names: list[str], said: str) -> None:
        images = tmp_path / "images"
        images.mkdir()
        for name in names:
            Image.new("RGB", (8, 8)).save(images / name)
        poses = write(tmp_path / "p.csv", "frame,x\n0,0\n1,1\n2,2\n")
        with open_source(images, poses=poses) as source:
            assert [frame.pose.tolist() for frame in source] == [[0], [1]]  # type: ignore[union-attr]
            assert source.about.endswith(said)

    def test_not_one_pose(self, folder: Path, tmp_path: Path) -> None:
        poses = write(tmp_path / "p.csv", "frame,x\n70,1\n")
        with open_source(folder, poses=poses) as source, pytest.raises(SourceError, match="not one of 9 frames"):
            list(source)
        poses = write(tmp_path / "p.csv", "timestamp,x\n1305031102.5,1\n1305031103.5,1\n")
        with pytest.raises(SourceError, match=r"--pose-start 1305031102\.5"):
            open_source(folder, poses=poses)
        with open_source(folder, poses=poses, pose_start=1305031102.5) as source:
            assert len(list(source)) == 9

    @pytest.mark.parametrize("at", [0, 1, 3, 5])
    def test_a_restart(self, folder: Path, tmp_path: Path, at: int) -> None:
        text = "frame,x\n" + "\n".join(f"{i},{i}" for i in (0, 1, 2, 5, 6, 8))
        poses = write(tmp_path / "p.csv", text)
        with open_source(folder, poses=poses) as source:
            whole = shown(list(source))
        with open_source(folder, poses=poses) as source:
            list(itertools.islice(source, at))
            position = json.loads(json.dumps(source.position()))
        with open_source(folder, poses=poses) as source:
            source.seek(position)
            assert shown(list(source)) == whole[at:]
            assert (source.skipped, source.unposed) == (4, 3)
        with open_source(folder) as source, pytest.raises(SourceError, match="continue with the same --poses"):
            source.seek(position)
        if at in (1, 2, 5):
            moved = write(tmp_path / "p.csv", "frame,x\n" + "\n".join(f"{i},{i + 1}" for i in range(10)))
            with open_source(folder, poses=moved) as source, pytest.raises(SourceError, match=r"p.csv has changed"):
                source.seek(position)


class TestVideos:
    def test_by_row_and_by_time(self, make_video: MakeVideo, tmp_path: Path) -> None:
        video = make_video("v.mp4", [0, 40, 80, 200, 240])  # a variable rate
        rows = write(tmp_path / "rows.csv", "x\n" + "\n".join("01234"))
        with open_source(video, poses=rows) as source:
            assert [frame.pose.tolist() for frame in source] == [[0], [1], [2], [3], [4]]  # type: ignore[union-attr]
        times = write(tmp_path / "times.csv", "t,x,yaw_deg\n0,0,350\n0.1,10,370\n0.2,20,30\n0.24,20,30\n")
        with open_source(video, poses=times) as source:
            found = np.array([frame.pose for frame in source])
        np.testing.assert_allclose(found[:, 0], [0, 4, 8, 20, 20], atol=1e-9)
        np.testing.assert_allclose(found[:, 1], np.cos(np.deg2rad([350, 358, 366, 30, 30])), atol=1e-9)

    def test_a_restart(self, make_video: MakeVideo, tmp_path: Path) -> None:
        video = make_video("v.mp4", range(0, 1200, 40))
        poses = write(tmp_path / "p.csv", "frame,x\n" + "\n".join(f"{i},{i}" for i in range(30) if i % 7 != 3))

        def frames(position: dict[str, Any] | None = None) -> list[tuple[int, float, bytes]]:
            with open_source(video, poses=poses) as source:
                if position:
                    source.seek(position)
                return [(f.index, float(f.pose[0]), f.image.tobytes()) for f in source if f.pose is not None]

        whole = frames()
        for at in (0, 6, 13):
            with open_source(video, poses=poses) as source:
                list(itertools.islice(source, at))
                position = json.loads(json.dumps(source.position()))
            assert frames(position) == whole[at:]

    def test_lost_frames_leave_the_rows_where_they_are(self, make_video: MakeVideo, tmp_path: Path) -> None:
        video = make_video("v.mp4", range(0, 1200, 40), gop=1)
        poses = write(tmp_path / "p.csv", "x\n" + "\n".join(map(str, range(30))))
        data = bytearray(video.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        video.write_bytes(bytes(data))
        with open_source(video, poses=poses) as source:
            found = list(source)
            assert source.skipped >= 2
        assert len(found) > 15
        assert all(frame.pose is not None and frame.pose[0] == round(frame.time_s * 25) for frame in found)

    def test_rows_after_a_gap_are_unknown(self, make_video: MakeVideo, tmp_path: Path) -> None:
        """Matroska does not contain the number of frames, so some may have been lost."""
        video = make_video("v.mkv", [*range(0, 480, 40), *range(560, 800, 40)])
        poses = write(tmp_path / "p.csv", "x\n" + "\n".join(map(str, range(20))))
        with open_source(video, poses=poses) as source:
            assert len(list(source)) == 12
            assert source.unposed == 6
            assert "give the poses by time" in source.remarks()[0]


def test_an_endless_source_ends_with_its_poses(tmp_path: Path) -> None:
    poses = write(tmp_path / "p.csv", "x\n1\n2\n3\n")
    with open_source("walk", size=32, poses=poses) as source:
        assert [frame.index for frame in source] == [0, 1, 2]
    times = write(tmp_path / "t.csv", "t,x\n0,1\n0.05,2\n0.1,3\n")
    with open_source("walk", size=32, poses=times, pose_tolerance=0.03) as source:
        assert [frame.index for frame in source] == [0, 1, 2, 3]


def test_refused_combinations(tmp_path: Path, folder: Path) -> None:
    poses = write(tmp_path / "p.csv", "x\n1\n")
    with pytest.raises(SourceError, match="--poses FILE"):
        open_source(folder, pose="x")
    with pytest.raises(SourceError, match="a callable is for a camera"):
        open_source(folder, poses=lambda moment: [moment])
    with pytest.raises(SourceError, match="is none"):
        open_source(folder, policy="a:b")
    with pytest.raises(SourceError, match="without a file of poses"):
        open_source("gym:CartPole-v1", poses=poses)
    with pytest.raises(SourceError, match="no file of poses"):
        open_source(folder, poses=tmp_path / "absent.csv")
