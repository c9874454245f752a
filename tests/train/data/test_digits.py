"""Moving digits: the protocol of Moving MNIST, the same in every run, from fonts or from idx files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from tttstream.errors import DataError
from tttstream.train.data import DigitsClip, MovingDigits, PyAV, Walks
from tttstream.train.data.clips import Shot
from tttstream.train.data.digits import drawn_digit
from tttstream.train.data.objects import MovingObjects


def shot(frames: int = 200, **options: int | str) -> Shot:
    return DigitsClip("digits", frames=frames, **options).open(PyAV()).read(np.arange(frames))  # type: ignore[arg-type]


def idx(path: Path, count: int = 5, side: int = 28, magic: int = 0x803) -> Path:
    images = np.zeros((count, side, side), np.uint8)
    images[:, 4:24, 10:18] = 200 + np.arange(count)[:, None, None]
    data = struct.pack(">4I", magic, count, side, side) + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_frames_follow_from_the_seed_and_their_number() -> None:
    whole = shot(seed=3)
    reader = DigitsClip("digits", seed=3).open(PyAV())
    np.testing.assert_array_equal(reader.read(np.array([150, 151])).frames, whole.frames[150:152])
    assert not np.array_equal(shot(seed=4).frames, whole.frames)
    assert whole.frames.shape == (200, 64, 64, 3)
    assert (whole.frames[..., 0] == whole.frames[..., 2]).all()


@pytest.mark.parametrize("seed", range(4))
def test_one_digit_moves_straight_and_bounces(tmp_path: Path, seed: int) -> None:
    """Its speed is a tenth of its way, 3.6 pixels a frame, its path linear between the edges, never outside them."""
    frames = shot(seed=seed, count_of_digits=1, images=str(idx(tmp_path / "images"))).frames[..., 0]
    assert ((frames > 0).sum((1, 2)) == 20 * 8).all()  # the digit is always whole
    corners = np.array([np.argwhere(frame)[0] for frame in frames]) - (4, 10)
    assert corners.min() >= 0
    assert corners.max() <= 64 - 28
    assert corners.min() <= 1
    assert corners.max() >= 35
    steps = np.diff(corners, axis=0)
    straight = np.abs(steps[1:]) - np.abs(steps[:-1])
    assert (np.abs(straight) <= 1).all(1).mean() > 0.7  # but for the frames of a bounce
    speed = np.hypot(*np.median(np.abs(steps), axis=0))
    assert speed == pytest.approx(3.6, abs=0.8)


def test_masks_tell_the_digits_apart() -> None:
    both = shot(seed=1, count_of_digits=2)
    assert both.masks is not None
    assert set(np.unique(both.masks)) == {0, 1, 2}
    assert (both.frames[both.masks > 0] > 127).all()
    assert ((both.frames[..., 0] > 127) == (both.masks > 0)).mean() > 0.999


def test_the_brighter_pixel_shows() -> None:
    two = shot(frames=50, seed=1, count_of_digits=2).frames
    assert two.max() == 255
    assert 0.03 < float((two > 0).mean()) < 0.25


def test_another_size_shows_the_same_movement() -> None:
    small, large = shot(frames=30, seed=2), shot(frames=30, seed=2, size=128)
    reduced = large.frames.reshape(30, 64, 2, 64, 2, 3).mean((2, 4))
    assert float(np.abs(reduced - small.frames).mean()) < 6


def test_drawn_digits_differ_and_are_all_there() -> None:
    digits = np.stack([drawn_digit(number) for number in range(200)])
    assert digits.shape == (200, 28, 28)
    assert len(np.unique(digits.reshape(200, -1), axis=0)) == 200
    assert (digits.max((1, 2)) > 200).all()
    ink = (digits > 127).mean((1, 2))
    assert 0.05 < ink.min() < ink.max() < 0.5
    edges = np.concatenate([digits[:, 0], digits[:, -1], digits[:, :, 0], digits[:, :, -1]], axis=1)
    assert (edges > 127).mean() < 0.01


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_idx_files(tmp_path: Path, name: str) -> None:
    index = MovingDigits(3, frames=20, seed=5, images=str(idx(tmp_path / name)))
    clips = index.clips()
    assert [clip.count(PyAV()) for clip in clips] == [20] * 3
    assert len({clip.name for clip in clips}) == 3
    assert set(np.unique(clips[0].open(PyAV()).read(np.arange(20)).frames)) - {0} <= set(range(200, 205))


def test_idx_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no digits here, only words and more words")
    (tmp_path / "text.gz").write_text("no gzip")
    cut = idx(tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-5])
    idx(tmp_path / "labels", magic=0x801)
    idx(tmp_path / "large", side=32)
    expected = {"text": "not an idx file", "text.gz": "cannot be read", "cut": "not an idx file"}
    expected |= {"labels": "not an idx file", "large": "32×32 pixels, expected 28×28", "absent": "no idx file"}
    for name, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            MovingDigits(1, images=str(tmp_path / name)).clips()
        assert "\n" not in str(caught.value)


def test_at_least_one() -> None:
    for wrong, says in (
        (MovingDigits(0), "count must be at least 1, got 0"),
        (MovingDigits(1, digits=0), "digits must be at least 1"),
        (MovingDigits(1, frames=0), "frames must be at least 1"),
        (MovingDigits(1, size=4), "size >= 16"),
        (MovingDigits(1, seed=-1), "seed >= 0"),
        (Walks(1, frames=0), "frames must be at least 1"),
        (Walks(1, seed=-1), "seed cannot be negative"),
        (MovingObjects(1, seed=-1), "seed cannot be negative"),
    ):
        with pytest.raises(DataError, match=says):
            wrong.clips()
