"""Videos: times, rotation, damage, exact seeking, and constant memory without a reader."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.sources import Source, open_source

STEADY = range(0, 2400, 40)
MakeVideo = Callable[..., Path]


def images(source: Source, count: int | None = None) -> list[NDArray[np.generic]]:
    return [frame.image for frame in itertools.islice(source, count)]


def test_frames_have_numbers_times_and_the_written_pixels(make_video: MakeVideo) -> None:
    path = make_video("steady.mp4", STEADY)
    with open_source(path) as source:
        frames = list(source)
        assert (source.name, source.fps, source.frames, source.live) == ("steady.mp4", 25, 60, False)
        assert (source.skipped, source.truncated) == (0, False)
    assert [frame.index for frame in frames] == list(range(60))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(60) / 25, atol=1e-3)
    assert all(frame.image.shape == (64, 64, 3) and frame.image.dtype == np.uint8 for frame in frames)
    differences = [
        np.abs(np.diff(pair, axis=0)).mean() for pair in itertools.pairwise(f.image.astype(int) for f in frames)
    ]
    assert min(differences) > 1


@pytest.mark.parametrize("name", ["variable.mkv", "variable.mp4"])
def test_variable_rate_is_kept(make_video: MakeVideo, name: str) -> None:
    steps = [20, 40, 200, 33, 1200, 60, 20, 90] * 4
    times = list(itertools.accumulate([500, *steps]))
    with open_source(make_video(name, times)) as source:
        came = [frame.time_s for frame in source]
        assert not source.truncated
    np.testing.assert_allclose(came, (np.array(times) - 500) / 1000, atol=2e-3)


def test_reading_continues_after_an_interrupted_loop(make_video: MakeVideo) -> None:
    with open_source(make_video("steady.mp4", STEADY)) as source:
        assert [frame.index for frame in itertools.islice(source, 3)] == [0, 1, 2]
        for frame in source:
            assert frame.index == 3
            break
        assert next(iter(source)).index == 4


@pytest.mark.parametrize(
    ("name", "codec"), [("seek.mp4", "libx264"), ("seek.mkv", "libx264"), ("seek.ts", "libx264"), ("seek.avi", "mpeg4")]
)
def test_seeking_reads_the_same_frames_bit_for_bit(make_video: MakeVideo, name: str, codec: str) -> None:
    path = make_video(name, STEADY, codec)
    with open_source(path) as source:
        whole = list(source)
    for index in (0, 1, 11, 12, 13, 30, 59, 60):
        with open_source(path) as source:
            images(source, index)
            position = json.loads(json.dumps(source.position()))
        with open_source(path) as source:
            images(source, 5)
            source.seek(position)
            rest = list(source)
        assert [frame.index for frame in rest] == list(range(index, 60))
        for frame, expected in zip(rest, whole[index:], strict=True):
            assert frame.time_s == expected.time_s
            np.testing.assert_array_equal(frame.image, expected.image)


def test_seeking_does_not_decode_earlier_frames(make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    from tttstream.sources.video import Video

    with Video(str(make_video("long.mp4", range(0, 12000, 40)))) as source:
        images(source, 290)
        position = source.position()
        taken = []
        following = Video._next_picture
        monkeypatch.setattr(Video, "_next_picture", lambda self: taken.append(1) or following(self))
        source.seek(position)
        assert len(taken) <= 12
        assert next(iter(source)).index == 290


def test_a_position_of_another_file_is_refused(make_video: MakeVideo) -> None:
    path = make_video("one.mp4", STEADY)
    with open_source(path) as source:
        images(source, 20)
        position = source.position()
        with pytest.raises(SourceError, match=r"cannot continue at a position of 'other\.mp4'"):
            source.seek({**position, "source": "other.mp4"})
    make_video("one.mp4", range(0, 400, 40))
    with open_source(path) as source, pytest.raises(SourceError, match="has changed"):
        source.seek(position)


def cut(path: Path, share: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("cut.mkv", "libx264"),
        ("cut.avi", "mpeg4"),
        ("cut.ts", "libx264"),
        ("cut.ts", "mpeg2video"),
        ("cut.m2ts", "libx264"),
    ],
)
def test_a_cut_file_is_read_up_to_the_cut(make_video: MakeVideo, name: str, codec: str) -> None:
    path = cut(make_video(name, STEADY, codec, gop=1), 0.51)
    with open_source(path) as source:
        count = len(images(source))
        assert source.truncated
        assert 10 < count < 40
    with open_source(path, on_error="raise") as source:
        good = []
        with pytest.raises(SourceError, match="cut off after") as caught:
            good.extend(source)
        assert abs(len(good) - count) <= 1
        assert source.truncated
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"), [("whole.gif", "gif", "rgb8"), ("whole.mjpeg", "mjpeg", "yuvj420p")]
)
def test_formats_that_name_no_length_are_judged_by_how_they_end(
    make_video: MakeVideo, name: str, codec: str, pixels: str
) -> None:
    path = make_video(name, STEADY, codec, pixels=pixels)
    with open_source(path) as source:
        assert len(images(source)) == len(STEADY)
        assert not source.truncated
    with open_source(cut(path, 0.5)) as source:
        assert 10 < len(images(source)) < 50
        assert source.truncated


def test_whole_transport_streams_are_not_called_truncated(make_video: MakeVideo) -> None:
    for name in ("whole.ts", "whole.m2ts"):
        with open_source(make_video(name, STEADY)) as source:
            assert len(images(source)) == len(STEADY)
            assert not source.truncated


def test_damage_in_the_middle_is_counted(make_video: MakeVideo) -> None:
    path = make_video("damaged.mp4", STEADY)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1000] = np.random.default_rng(0).bytes(1000)
    path.write_bytes(data)
    with open_source(path) as source:
        frames = list(source)
        assert source.skipped > 0
        assert source.truncated
        assert len(frames) >= 40
        assert frames[-1].time_s > 2.2
        position, skipped = source.position(), source.skipped
    with open_source(path) as source:
        source.seek(position)
        assert (source.skipped, source.truncated) == (skipped, True)
        assert not images(source)
    with open_source(path, on_error="raise") as source, pytest.raises(SourceError, match="damaged"):
        images(source)


def test_a_hole_in_a_regular_stream_is_seen(make_video: MakeVideo) -> None:
    with open_source(make_video("hole.mkv", [t for t in range(0, 6000, 40) if not 2000 < t < 4000])) as source:
        images(source)
        assert source.truncated


def test_without_a_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    blank = make_video("blank.mp4", STEADY)
    data = bytearray(blank.read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    blank.write_bytes(data)
    expected = {"text.mp4": "cannot be read as a video", "empty.mp4": "is empty", "blank.mp4": "no frame of"}
    expected["missing.mp4"] = "no such file"
    for name, message in expected.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_password_stays_out_of_names_and_messages() -> None:
    with pytest.raises(SourceError) as caught:
        open_source("http://me:secret@127.0.0.1:9/video.mp4")
    assert "secret" not in str(caught.value)


def test_memory_is_flat_without_a_reader(make_video: MakeVideo, resident_mb: Callable[[], float]) -> None:
    with open_source(make_video("big.mp4", range(0, 1600, 40), side=768)) as source:
        frames = iter(source)
        for _ in range(5):
            next(frames)
        before = resident_mb()
        time.sleep(0.5)
        assert resident_mb() - before < 5
        for _ in frames:
            pass
        assert resident_mb() - before < 40


@pytest.mark.parametrize(
    ("name", "count", "skipped", "truncated", "shape"),
    [
        ("two_video_streams.mp4", 390, 0, False, (270, 480)),
        ("av1.mkv", 125, 0, False, (360, 640)),
        ("mpeg4.avi", 164, 0, False, (240, 320)),
        ("rotated_90.mov", 3, 0, False, (568, 320)),
        ("unordered.mov", 4, 0, False, (50, 50)),
        ("corrupted.mp4", 49, 1, True, (720, 1280)),
        ("truncated_midway.mkv", 179, 0, True, (240, 426)),
        ("no_index.mp4", 250, 1, True, (720, 1280)),
    ],
)
def test_robustness_files(
    shared_videos: Path, name: str, count: int, skipped: int, truncated: bool, shape: tuple[int, int]
) -> None:
    with open_source(shared_videos / "robustness" / name) as source:
        seen = [(frame.time_s, frame.image.shape[:2]) for frame in source]
        assert (source.skipped, source.truncated) == (skipped, truncated)
    assert len(seen) == count
    assert {size for _, size in seen} == {shape}
    times = [time for time, _ in seen]
    assert times[0] == 0
    assert all(late > early for early, late in itertools.pairwise(times))
    if truncated:
        with open_source(shared_videos / "robustness" / name, on_error="raise") as source, pytest.raises(SourceError):
            for _ in source:
                pass


@pytest.mark.parametrize("name", ["not_a_video.mp4", "empty.mp4"])
def test_robustness_files_without_a_video(shared_videos: Path, name: str) -> None:
    with pytest.raises(SourceError):
        open_source(shared_videos / "robustness" / name)


def test_rotation_is_that_of_opencv(shared_videos: Path) -> None:
    import cv2

    path = shared_videos / "robustness" / "rotated_90.mov"
    capture = cv2.VideoCapture(str(path))
    _, expected = capture.read()
    capture.release()
    with open_source(path) as source:
        image = next(iter(source)).image
    assert image.shape == expected.shape
    assert np.abs(image[..., ::-1].astype(int) - expected).mean() < 4


GOOD = "gestures/again.mkv gestures/eat.mkv scenes/flipping_a_pancake.mkv people/carphone.mp4 people/cutie_example.mp4"


@pytest.mark.parametrize("name", [*GOOD.split(), "scenes/bigbuckbunny.mp4"])
def test_good_files_are_not_called_truncated(shared_videos: Path, name: str) -> None:
    with open_source(shared_videos / name, on_error="raise") as source:
        for _ in source:
            pass
        assert (source.skipped, source.truncated) == (0, False)


def test_every_video_yields_frames(shared_videos: Path) -> None:
    paths = [
        p for p in sorted(shared_videos.rglob("*.m*")) if p.suffix != ".md" and p.stem not in ("empty", "not_a_video")
    ]
    assert len(paths) > 30
    for path in paths:
        with open_source(path) as source:
            frames = images(source, 5)
        assert len(frames) >= 3, path
        assert all(frame.dtype == np.uint8 and frame.ndim == 3 for frame in frames), path
