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
from tttstream.sources import open_source
from tttstream.sources.camera import Camera

MakeVideo = Callable[..., Path]


@pytest.fixture
def clip(make_video: MakeVideo) -> str:
    return str(make_video("camera.mp4", range(0, 1000, 40)))  # one second at 25 frames a second


def test_a_file_in_the_cameras_place_plays_at_its_own_rate(clip: str) -> None:
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


def test_a_loop_goes_on_past_the_end(clip: str) -> None:
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


def test_a_position_goes_on_counting(clip: str) -> None:
    with Camera(clip, loop=True) as camera:
        list(itertools.islice(camera, 3))
        position = json.loads(json.dumps(camera.position()))
    with Camera(clip, loop=True) as camera:
        camera.seek(position)
        frame = next(iter(camera))
    assert (frame.index, frame.time_s) == (3, position["time_s"])
    assert position["time_s"] > 0


class Unplugged:
    """A capture that gives a few frames and then no more."""

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
    with Camera(0, on_error="raise") as camera, pytest.raises(SourceError, match="camera 0 gives no more frames"):
        list(camera)


@pytest.mark.parametrize("spec", [97, "97", "-1", "/dev/video97"])
def test_an_unknown_camera_fails_quickly_and_quietly(spec: int | str, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    with pytest.raises(SourceError, match="camera") as caught:
        open_source(spec)
    assert time.monotonic() - start < 3
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_file_in_the_cameras_place() -> None:
    with pytest.raises(SourceError, match=r"there is no nowhere\.mp4"):
        Camera("nowhere.mp4")
