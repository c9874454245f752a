"""LeRobot data sets as sources: both layouts, shared videos, times, poses and damage. The tests write the data sets."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream import open_source
from tttstream.cli.main import main
from tttstream.errors import SourceError
from tttstream.sources.listing import expand

arrow = pytest.importorskip("pyarrow", reason="needs the extra robots")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra robots")

FPS = 10
CAMERA = "observation.images.front"
LENGTHS = (5, 7, 4)


def shade(number: int) -> NDArray[np.uint8]:
    """A plain picture, another grey for each frame of the whole data set."""
    return np.full((32, 48, 3), 20 + 12 * number, np.uint8)


def video(path: Path, numbers: list[int], *, skip: tuple[int, ...] = (), first: int = 0) -> None:
    """Frames at 10 a second, those in `skip` left out; one key frame in three, so that decoding begins before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "3", "crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, FPS)
        for place, number in enumerate(numbers):
            if place in skip:
                continue
            frame = av.VideoFrame.from_ndarray(shade(number), format="rgb24")
            frame.pts, frame.time_base = place + first, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows(episode: int, length: int, start: int) -> dict[str, list[Any]]:
    steps = range(length)
    return {
        "episode_index": [episode] * length,
        "frame_index": list(steps),
        "index": [start + step for step in steps],
        "timestamp": [np.float32(step / FPS) for step in steps],
        "observation.state": [[float(episode), step / 10, -1.0] for step in steps],
        "observation.speed": [[float(step)] for step in steps],
    }


def table(path: Path, *parts: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table({name: [v for part in parts for v in part[name]] for name in parts[0]}), path)


def information(folder: Path, version: str, *, kind: str = "video", **changes: Any) -> None:
    old = version != "v3.0"
    chunk = "chunk-{episode_chunk:03d}" if old else "chunk-{chunk_index:03d}"
    file = "episode_{episode_index:06d}" if old else "file-{file_index:03d}"
    info = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "data_path": f"data/{chunk}/{file}.parquet",
        "video_path": f"videos/{chunk}/{{video_key}}/{file}.mp4" if old else f"videos/{{video_key}}/{chunk}/{file}.mp4",
        "features": {
            CAMERA: {"dtype": kind, "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "grip"]}},
            "observation.speed": {"dtype": "float32", "shape": [1], "names": None},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    } | changes
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def starts() -> list[int]:
    return [sum(LENGTHS[:episode]) for episode in range(len(LENGTHS))]


def v2(folder: Path, version: str = "v2.1") -> Path:
    """One file for each episode, two episodes in a chunk."""
    information(folder, version)
    lines = []
    for episode, (length, start) in enumerate(zip(LENGTHS, starts(), strict=True)):
        name = f"episode_{episode:06d}"
        table(folder / "data" / f"chunk-{episode // 2:03d}" / f"{name}.parquet", rows(episode, length, start))
        video(folder / f"videos/chunk-{episode // 2:03d}/{CAMERA}/{name}.mp4", list(range(start, start + length)))
        lines.append(json.dumps({"episode_index": episode, "tasks": ["push"], "length": length}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    return folder


def v3(folder: Path, *, shift: float = 0.0, **options: Any) -> Path:
    """Episodes 0 and 1 in one video and one table, episode 2 in others. shift: added to where episode 1 begins."""
    information(folder, "v3.0")
    begin = starts()
    table(folder / "data/chunk-000/file-000.parquet", rows(0, LENGTHS[0], 0), rows(1, LENGTHS[1], begin[1]))
    table(folder / "data/chunk-000/file-001.parquet", rows(2, LENGTHS[2], begin[2]))
    video(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", list(range(begin[2])), **options)
    video(folder / f"videos/{CAMERA}/chunk-000/file-001.mp4", list(range(begin[2], sum(LENGTHS))))
    starts_s = [0.0, LENGTHS[0] / FPS + shift, 0.0]
    described = {
        "episode_index": [0, 1, 2],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        "dataset_from_index": begin,
        f"videos/{CAMERA}/chunk_index": [0, 0, 0],
        f"videos/{CAMERA}/file_index": [0, 0, 1],
        f"videos/{CAMERA}/from_timestamp": starts_s,
        f"videos/{CAMERA}/to_timestamp": [s + n / FPS for s, n in zip(starts_s, LENGTHS, strict=True)],
        "stats/observation.state/max": [[1.0]] * 3,
    }
    table(folder / "meta/episodes/chunk-000/file-000.parquet", described)
    return folder


def stored(folder: Path) -> Path:
    """Version 2.0 with its pictures in the tables."""
    information(folder, "v2.0", kind="image", video_path=None)
    lines = []
    for episode, (length, start) in enumerate(zip(LENGTHS, starts(), strict=True)):
        part = rows(episode, length, start)
        encoded = [cv2.imencode(".png", shade(start + step))[1].tobytes() for step in range(length)]
        part[CAMERA] = [{"bytes": one, "path": f"frame_{step:06d}.png"} for step, one in enumerate(encoded)]
        table(folder / "data" / f"chunk-{episode // 2:03d}" / f"episode_{episode:06d}.parquet", part)
        lines.append(json.dumps({"episode_index": episode, "length": length}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines))
    return folder


def numbers(frames: list[Any]) -> list[int]:
    """Which frames of the whole data set these are, by their greys."""
    return [round((float(frame.image.mean()) - 20) / 12) for frame in frames]


@pytest.mark.parametrize("make", [v2, v3, stored])
def test_each_episode_has_its_own_frames(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    assert expand([folder]) == [f"{folder}#{episode}" for episode in range(3)]
    for episode, (length, start) in enumerate(zip(LENGTHS, starts(), strict=True)):
        source = open_source(f"{folder}#{episode}", pose="observation.state")
        frames = list(source)
        assert numbers(frames) == list(range(start, start + length))
        assert [frame.time_s for frame in frames] == pytest.approx([step / FPS for step in range(length)], abs=1e-6)
        np.testing.assert_allclose([f.pose for f in frames], [[episode, s / 10, -1] for s in range(length)])
        assert (source.frames, source.fps, source.skipped, source.truncated) == (length, FPS, 0, False)
        assert source.name == f"set#{episode}:{CAMERA}"


def test_colours_of_stored_pictures(tmp_path: Path) -> None:
    folder = stored(tmp_path / "set")
    part = rows(0, 5, 0)
    red = np.full((32, 48, 3), (200, 30, 60), np.uint8)
    part[CAMERA] = [{"bytes": cv2.imencode(".png", red[..., ::-1])[1].tobytes(), "path": None}] * 5
    table(folder / "data/chunk-000/episode_000000.parquet", part)
    for frame in open_source(f"{folder}#0"):
        np.testing.assert_array_equal(frame.image, red)


def test_a_time_that_is_off_is_no_match(tmp_path: Path) -> None:
    """If an episode begins between two frames of the video, its first frame is ambiguous."""
    small = open_source(f"{v3(tmp_path / 'a', shift=0.004)}#1")
    assert numbers(list(small)) == list(range(5, 12))
    with pytest.raises(SourceError, match=r"no frame of b#1:.* can be read: row 0 at 0\.000 s"):
        list(open_source(f"{v3(tmp_path / 'b', shift=0.05)}#1"))


def test_a_frame_that_is_missing_shifts_no_other(tmp_path: Path) -> None:
    folder = v3(tmp_path / "set", skip=(7,))
    source = open_source(f"{folder}#1", pose="observation.state:y")
    frames = list(source)
    assert numbers(frames) == [5, 6, 8, 9, 10, 11]
    assert [frame.pose[0] for frame in frames] == pytest.approx([0, 0.1, 0.3, 0.4, 0.5, 0.6])
    assert source.skipped == 1
    assert source.remarks() == ["1 rows skipped, the first: row 2 at 0.200 s: the video has no picture at its time"]
    with pytest.raises(SourceError, match=r"row 2 at 0\.200 s"):
        list(open_source(f"{folder}#1", on_error="raise"))


def test_a_video_that_ends_early(tmp_path: Path) -> None:
    folder = v2(tmp_path / "set")
    video(folder / f"videos/chunk-000/{CAMERA}/episode_000001.mp4", [5, 6, 7, 8])
    source = open_source(f"{folder}#1")
    assert numbers(list(source)) == [5, 6, 7, 8]
    assert (source.skipped, source.truncated) == (3, True)


def test_rows_in_any_order(tmp_path: Path) -> None:
    folder = v2(tmp_path / "set")
    part = rows(1, 7, 5)
    table(folder / "data/chunk-000/episode_000001.parquet", {name: column[::-1] for name, column in part.items()})
    frames = list(open_source(f"{folder}#1", pose="observation.state:y"))
    assert [frame.pose[0] for frame in frames] == pytest.approx([step / 10 for step in range(7)])
    assert numbers(frames) == list(range(5, 12))


def test_continues_at_its_position(tmp_path: Path) -> None:
    for folder in (v3(tmp_path / "a"), stored(tmp_path / "b")):
        source = open_source(f"{folder}#1", pose="observation.state")
        frames = iter(source)
        for _ in range(4):
            next(frames)
        again = open_source(f"{folder}#1", pose="observation.state")
        again.seek(source.position())
        rest = list(again)
        assert numbers(rest) == [9, 10, 11]
        assert [frame.index for frame in rest] == [4, 5, 6]
        for frame, true in zip(rest, frames, strict=True):
            np.testing.assert_array_equal(frame.image, true.image)
            np.testing.assert_array_equal(frame.pose, true.pose)
        with pytest.raises(SourceError, match="cannot continue at a position"):
            open_source(f"{folder}#2").seek(source.position())
        with pytest.raises(SourceError, match=r"taken with the pose observation\.state, this source has None"):
            open_source(f"{folder}#1").seek(source.position())


def test_poses(tmp_path: Path) -> None:
    folder = v2(tmp_path / "set")
    frames = list(open_source(f"{folder}#0", pose="observation.speed"))
    assert [frame.pose.tolist() for frame in frames] == [[0], [1], [2], [3], [4]]
    with pytest.raises(SourceError, match=r"has no vector 'action' for a pose; it has observation\.state"):
        open_source(f"{folder}#0", pose="action")
    with pytest.raises(SourceError, match=r"observation\.state of set has no 'z'; it has x, y, grip"):
        open_source(f"{folder}#0", pose="observation.state:x,z")
    with pytest.raises(SourceError, match="leave out the clock and the tolerance"):
        open_source(f"{folder}#0", pose_tolerance=0.1)
    part = rows(0, 5, 0)
    part["observation.state"][3] = [0.0, float("nan"), 0.0]
    table(folder / "data/chunk-000/episode_000000.parquet", part)
    with pytest.raises(SourceError, match="frame 3 of episode 0 of set is not finite"):
        open_source(f"{folder}#0", pose="observation.state")
    assert len(list(open_source(f"{folder}#0", pose="observation.speed"))) == 5


def test_refused_data_sets(tmp_path: Path) -> None:
    folder = v2(tmp_path / "set")
    with pytest.raises(SourceError, match="set has 3 episodes: give one, such as set#2"):
        open_source(folder)
    with pytest.raises(SourceError, match="has no episode 3; it has 3, 0 to 2"):
        open_source(f"{folder}#3")
    with pytest.raises(SourceError, match=f"there is no camera wrist; it has {CAMERA}"):
        open_source(f"{folder}#0", topic="wrist")
    (folder / f"videos/chunk-000/{CAMERA}/episode_000000.mp4").unlink()
    with pytest.raises(SourceError, match="there is no videos/chunk-000"):
        list(open_source(f"{folder}#0"))
    table(folder / "data/chunk-000/episode_000001.parquet", rows(1, 6, 5))
    with pytest.raises(SourceError, match=r"has 6 rows in episode_000001\.parquet, and 7 by its description"):
        open_source(f"{folder}#1")
    information(folder, "v1.6")
    with pytest.raises(SourceError, match=r"of version v1\.6 at 10 frames a second: expected one of v2\.0, v2\.1"):
        open_source(f"{folder}#0")
    information(folder, "v2.1", data_path="../../{episode_index}.parquet")
    with pytest.raises(SourceError, match="leads out of the folder"):
        open_source(f"{folder}#0")
    (folder / "meta/info.json").write_text("{}")
    with pytest.raises(SourceError, match="cannot be read as that of a LeRobot data set"):
        open_source(f"{folder}#0")


def test_watch_takes_episode_after_episode(tmp_path: Path) -> None:
    folder, out = v3(tmp_path / "set"), tmp_path / "out"
    assert main(["watch", str(folder), "--out", str(out), "--no-overlay", "--size", "16"]) == 0
    counts = [len((out / f"set_{episode}" / "frames.jsonl").read_text().splitlines()) for episode in range(3)]
    assert counts == list(LENGTHS)


def test_as_training_data(tmp_path: Path) -> None:
    """Each episode is a clip, wherever its frames lie in a video that several share."""
    pytest.importorskip("lightning", reason="training needs Lightning")
    from tttstream.errors import DataError
    from tttstream.train.data import LeRobotEpisodes, PyAV, VideoData

    folder = v3(tmp_path / "set", skip=(7,))
    index = LeRobotEpisodes(str(folder), pose="observation.state:x,y")
    clips = index.clips()
    assert [clip.name for clip in clips] == [f"{folder}#{episode}" for episode in range(3)]
    assert [clip.pose for clip in clips] == [2, 2, 2]
    assert [clip.count(PyAV()) for clip in clips] == list(LENGTHS)
    reader = clips[1].open(PyAV())
    for wanted, true in (([4, 5, 6], [9, 10, 11]), ([0, 1], [5, 6]), ([2, 3], [8, 8])):  # 7 is not in the video
        shot = reader.read(np.array(wanted))
        assert [round((float(image.mean()) - 20) / 12) for image in shot.frames] == true
        np.testing.assert_allclose(shot.poses, [[1, (n - 5) / 10] for n in true])
    assert len(reader.read(np.array([6, 7])).frames) == 1
    assert "the video has no picture at its time" in str(reader.damage)
    part = LeRobotEpisodes(str(folder), episodes="1:3")
    assert [clip.name[-1] for clip in part.clips()] == ["1", "2"]
    data = VideoData(train=index, size=8, length=4, batch_size=2, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert batch.reset[:, 0].all()
    np.testing.assert_array_equal(batch.pose[..., 0], batch.clip)  # x is the number of the episode
    with pytest.raises(DataError, match="expected FIRST:LAST"):
        LeRobotEpisodes(str(folder), episodes="3").clips()
    with pytest.raises(DataError, match="is no LeRobot data set"):
        LeRobotEpisodes(str(tmp_path)).clips()
    with pytest.raises(DataError, match="there is no camera wrist"):
        LeRobotEpisodes(str(folder), camera="wrist").clips()
