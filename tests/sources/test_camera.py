"""The live camera, with a looped file in its place: newest frame first, own pace, a clean end."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tttstream.errors import SourceError
from tttstream.poses import Feed
from tttstream.sources import open_source
from tttstream.sources.camera import Camera

MakeVideo = Callable[..., Path]


@pytest.fixture
def clip(make_video: MakeVideo) -> str:
    return str(make_video("camera.mp4", range(0, 1000, 40)))  # one second at 25 frames a second


def test_a_file_as_a_camera_plays_at_its_own_rate(clip: str) -> None:
    with Camera(clip) as camera:
        assert (camera.name, camera.live, camera.fps) == ("camera.mp4", True, 25)
        start = time.monotonic()
        frames = list(camera)
        took = time.monotonic() - start
        assert 0.7 < took < 3
        assert not camera.truncated
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert all(late.time_s > early.time_s for early, late in itertools.pairwise(frames))
    assert frames[0].time_s == 0
    assert frames[-1].time_s <= took
    assert frames[0].image.shape == (64, 64, 3)


def test_colours_are_rgb(clip: str) -> None:
    with Camera(clip) as camera, open_source(clip) as video:
        live, expected = next(iter(camera)).image, next(iter(video)).image
    assert np.abs(live.astype(int) - expected).mean() < 4


def test_a_slow_reader_gets_the_newest_frame(clip: str) -> None:
    with Camera(clip, loop=True) as camera:
        frames = iter(camera)
        first = next(frames)
        time.sleep(0.4)
        second = next(frames)
        assert second.index == 1
        assert second.time_s - first.time_s > 0.25
        assert camera.missed >= 4


def test_a_loop_continues_after_the_end(clip: str) -> None:
    with Camera(clip, loop=True) as camera:
        assert next(frame for frame in camera if frame.time_s > 1.3).index > 5


def test_closing_ends_the_thread_and_the_stream(clip: str) -> None:
    before = threading.active_count()
    camera = Camera(clip, loop=True)
    next(iter(camera))
    camera.close()
    camera.close()
    assert threading.active_count() == before
    assert len(list(camera)) <= 1
    assert not camera.truncated


def test_a_position_continues_the_counts(clip: str) -> None:
    with Camera(clip, loop=True) as camera:
        list(itertools.islice(camera, 3))
        position = json.loads(json.dumps(camera.position()))
    with Camera(clip, loop=True) as camera:
        camera.seek(position)
        frame = next(iter(camera))
    assert (frame.index, frame.time_s) == (3, position["time_s"])
    assert position["time_s"] > 0


class Unplugged:
    """A capture that returns a few frames and then none."""

    def __init__(self, device: object) -> None:
        self.left = 3

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.left -= 1
        return (True, np.zeros((4, 6, 3), np.uint8)) if self.left >= 0 else (False, None)

    def get(self, what: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


def test_a_lost_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttstream.sources.camera._open", Unplugged)
    with Camera(0) as camera:
        frames = list(camera)
        assert 1 <= len(frames) <= 3
        assert camera.truncated
        assert camera.fps is None
    with Camera(0, on_error="raise") as camera, pytest.raises(SourceError, match="camera 0 sends no more frames"):
        list(camera)


@pytest.mark.parametrize("spec", [97, "97", "-1", "/dev/video97"])
def test_an_unknown_camera_fails_quickly_and_quietly(spec: int | str, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(SourceError, match="camera") as caught:
        open_source(spec)
    assert time.monotonic() - start < 3
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_as_a_camera() -> None:
    with pytest.raises(SourceError, match=r"there is no nowhere\.mp4"):
        Camera("nowhere.mp4")


class TestPoses:
    def test_a_callable_is_called_at_each_capture(self, clip: str) -> None:
        asked: list[float] = []

        def where(moment: float) -> list[float] | None:
            asked.append(moment)
            return None if len(asked) == 2 else [moment, 1.0]

        with Camera(clip, pose=where) as camera:
            frames = [next(iter(camera))]
            time.sleep(0.3)
            frames += itertools.islice(camera, 2)
            lost = camera.unposed
        assert len(asked) >= 6
        posed = [frame for frame in frames if frame.pose is not None]
        assert len(posed) == 3 - lost
        taken = [frame.pose[0] for frame in posed if frame.pose is not None]
        assert set(taken) <= set(asked)
        assert taken[-1] - taken[0] == pytest.approx(posed[-1].time_s - posed[0].time_s)

    @pytest.mark.parametrize("bad", [None, [float("nan")], "here"])
    def test_no_pose_is_counted_or_raised(self, clip: str, bad: object) -> None:
        with Camera(clip, pose=lambda _: bad) as camera:  # type: ignore[arg-type,return-value]
            frames = list(itertools.islice(camera, 3))
            assert [frame.pose for frame in frames] == [None] * 3
            assert camera.unposed == 3
            assert camera.remarks()[0].startswith("3 frames without a pose, the first: frame 0 at 0.000 s")
        with (
            Camera(clip, pose=lambda _: bad, on_error="raise") as camera,  # type: ignore[arg-type,return-value]
            pytest.raises(SourceError, match=r"camera.mp4 has no pose for frame 0"),
        ):
            next(iter(camera))

    def test_a_callable_that_fails(self, clip: str) -> None:
        with (
            Camera(clip, pose=lambda _: [1 / 0]) as camera,
            pytest.raises(SourceError, match="the request for a pose failed: ZeroDivisionError"),
        ):
            next(iter(camera))

    def test_a_file_that_grows(self, clip: str, tmp_path: Path) -> None:
        path = tmp_path / "odometry.txt"
        path.write_text("1 2\n")
        feed = Feed(path, tolerance=30)
        with Camera(clip, pose=feed, loop=True) as camera:
            first = next(iter(camera))
            with open(path, "a") as file:
                file.write("3 4\n5")
            late = next(frame for frame in camera if frame.pose is not None and frame.pose[0] != 1)
            assert camera.unposed == 0
            assert camera.about.startswith("odometry.txt: its last line as it grows, stale after 30 s")
            assert camera.pose_form is feed.form is not None
        assert first.pose is not None
        assert first.pose.tolist() == [1, 2]
        assert late.pose is not None
        assert late.pose.tolist() == [3, 4]
