"""Decoding for training: any frame in any order is the same frame, by decord and by PyAV, also from odd files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tttstream.errors import SourceError
from tttstream.sources.video import Video
from tttstream.train.data import Decoder, Decord, PyAV, Reader, VideoClip
from tttstream.train.data.clips import Pixels
from tttstream.train.data.video import scan

Make = Callable[..., Path]
DECODERS = [PyAV(), PyAV(short_side=60), Decord(), Decord(short_side=60)]
IDS = ["pyav", "pyav-small", "decord", "decord-small"]

# Odd ones: AV1, DivX in AVI, no key frame for long, turned, in odd order, two streams, damaged, cut off.
REAL = [
    "robustness/av1.mkv",
    "robustness/mpeg4.avi",
    "robustness/rotated_90.mov",
    "robustness/unordered.mov",
    "robustness/two_video_streams.mp4",
    "robustness/corrupted.mp4",
    "robustness/truncated_midway.mkv",
    "people/carphone.mp4",
    "gestures/no.mkv",
]


def frames(reader: Reader, *indices: int) -> Pixels:
    return reader.read(np.array(indices)).frames


@pytest.mark.parametrize("decoder", DECODERS, ids=IDS)
@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".webm"])
def test_frames_by_number(movie: Make, numbers: Callable[..., list[int]], decoder: Decoder, suffix: str) -> None:
    path = str(movie(f"a{suffix}", 40, side=80))
    reader = decoder.open(path)
    assert reader.frames == decoder.count(path) == 40
    assert reader.damage is None
    for indices in ([0, 1, 2], [3, 9], [30, 31, 39], [5], [0], [38, 39]):
        shown = frames(reader, *indices)
        assert numbers(torch.from_numpy(shown).permute(0, 3, 1, 2)) == indices
        side = 60 if isinstance(decoder, PyAV | Decord) and decoder.short_side else 80
        assert shown.shape == (len(indices), side, side, 3)
        assert shown[0, 0, 0].mean() < 20
    assert len(frames(reader, 39, 40, 41)) == 1
    assert len(frames(reader, 50)) == 0
    reader.close()


@pytest.mark.parametrize("name", REAL)
def test_seeking_in_a_real_video_reads_the_same_frames(shared_videos: Path, name: str) -> None:
    path = str(shared_videos / name)
    decoder = PyAV(short_side=64)
    with_start = decoder.open(path)
    count = min(decoder.count(path), 60)
    whole = frames(with_start, *range(count))
    assert len(whole) == count
    for index in {0, 1, count // 3, count // 2, count - 2}:
        anew = decoder.open(path)
        np.testing.assert_array_equal(frames(anew, index, index + 1), whole[index : index + 2])
        anew.close()


@pytest.mark.parametrize("name", ["people/carphone.mp4", "robustness/rotated_90.mov", "robustness/mpeg4.avi"])
def test_decord_and_pyav_agree_with_the_source_of_watch(shared_videos: Path, name: str) -> None:
    path = str(shared_videos / name)
    with Video(path) as video:
        expected = [frame.image for _, frame in zip(range(3), video, strict=False)]
    for decoder in (PyAV(), Decord()):
        shown = decoder.open(path).read(np.arange(len(expected))).frames
        assert float(np.abs(shown.astype(float) - np.stack(expected)).mean()) < 1.5


def test_pyav_reads_the_files_that_decord_cannot_read(shared_videos: Path) -> None:
    for name in ("av1.mkv", "corrupted.mp4"):
        path = str(shared_videos / "robustness" / name)
        shown, expected = (decoder.open(path).read(np.arange(50)).frames for decoder in (Decord(64), PyAV(64)))
        np.testing.assert_array_equal(shown, expected)


def test_damage_is_reported(shared_videos: Path) -> None:
    folder = shared_videos / "robustness"
    cut = PyAV().open(str(folder / "truncated_midway.mkv"))
    assert cut.damage == "the last 4.4 of 10.4 s are missing"
    reader = PyAV(64).open(str(folder / "corrupted.mp4"))
    frames(reader, *range(reader.frames or 0))
    assert reader.damage == "damaged frames: 2"
    for name in ("av1.mkv", "mpeg4.avi", "unordered.mov", "two_video_streams.mp4"):
        assert scan(str(folder / name)).damage is None


@pytest.mark.parametrize("name", ["empty.mp4", "not_a_video.mp4", "absent.mp4"])
@pytest.mark.parametrize("decoder", [PyAV(), Decord()], ids=["pyav", "decord"])
def test_files_that_are_no_videos(shared_videos: Path, name: str, decoder: Decoder) -> None:
    path = str(shared_videos / "robustness" / name)
    for use in (decoder.open, decoder.count):
        with pytest.raises(SourceError, match=f"{name} cannot be read as a video") as caught:
            use(path)
        assert "\n" not in str(caught.value)


def test_a_part_of_a_video(movie: Make, numbers: Callable[..., list[int]]) -> None:
    path = str(movie("a.mp4", 20))
    clip = VideoClip(path, start=5, stop=9)
    assert clip.count(PyAV()) == 4
    reader = clip.open(PyAV())
    assert reader.frames == 4
    assert numbers(torch.from_numpy(frames(reader, 0, 3)).permute(0, 3, 1, 2)) == [5, 8]
    assert VideoClip(path, start=15).count(PyAV()) == 5
    assert VideoClip(path, start=30).count(PyAV()) == 0
