"""A stream that processes only regions around its objects: the regions, its state, and exact continuation."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tttstream import models
from tttstream.cli.main import main
from tttstream.errors import ConfigError, FrameError
from tttstream.evaluation.davis import region_similarity
from tttstream.masks import MixtureModel, TargetModel
from tttstream.state import metadata, pack
from tttstream.streams import MaskStream
from tttstream.streams.windows import CELL, LEAST, MORE, Box, planned, where

Make = Callable[..., TargetModel]
HEIGHT, WIDTH, CROP = 192, 288, 96
Video = tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]]


def video(count: int = 6, height: int = HEIGHT, width: int = WIDTH, radius: int = 12) -> Video:
    """Frames and labels: one disk in the left half and one in the right, over noise."""
    rng, ground = np.random.default_rng(0), np.random.default_rng(1).integers(0, 90, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    frames, labels = [], []
    for t in range(count):
        image, label = ground + rng.integers(0, 10, ground.shape), np.zeros((height, width), np.uint8)
        for number, (row, column) in enumerate(((50 + 2 * t, 40 + 3 * t), (height - 50 - 2 * t, width - 50)), start=1):
            inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
            label[inside] = number
            image[inside] = (220, 60, 40) if number == 1 else (60, 200, 240)
        frames.append(image.astype(np.uint8))
        labels.append(label)
    return frames, labels


@settings(max_examples=60)
@given(
    corner=st.tuples(st.floats(0, 400), st.floats(0, 700)),
    sides=st.tuples(st.floats(1, 480), st.floats(1, 854)),
    crop=st.sampled_from([128, 192, 256, 400]),
    before=st.sampled_from([0.0, 0.1, 0.4, 0.66]),
)
def test_a_window_lies_in_the_frame_shows_the_object_and_has_a_bounded_number_of_pixels(
    corner: tuple[float, float], sides: tuple[float, float], crop: int, before: float
) -> None:
    height, width, finest = 480, 854, 320 / 480
    box = Box(*corner, min(corner[0] + sides[0], height), min(corner[1] + sides[1], width))
    (window,), (zoom,) = planned({0: box}, [before], height, width, crop**2, finest)
    assert 0 <= window.top < window.bottom <= height
    assert 0 <= window.left < window.right <= width
    edge = (CELL + 2) / zoom  # sides of the picture are whole cells
    assert window.top <= box.top + edge
    assert window.left <= box.left + edge
    assert window.bottom >= box.bottom - edge
    assert window.right >= box.right - edge
    down, across = window.sides
    assert down % CELL == across % CELL == 0
    assert down * across <= max((MORE**0.5 * crop + 2 * CELL) ** 2, LEAST * (MORE * crop**2 / LEAST + CELL)) * 1.1
    assert zoom <= finest
    assert down / (window.bottom - window.top) == pytest.approx(zoom, rel=0.1 if down >= LEAST else 0.3)


def test_the_zoom_stays_until_the_object_is_far_larger_or_smaller() -> None:
    zooms, zoom = [], 0.0
    for side in (*range(100, 460, 4), *range(460, 100, -4)):
        _, (zoom,) = planned({0: Box(0, 0, side, side)}, [zoom], 480, 854, 128**2, 0.667)
        zooms.append(zoom)
    changes = [b / a for a, b in pairwise(zooms) if a != b]
    assert 4 <= len(changes) <= 16
    assert all(change < 0.95 or change > 1.45 for change in changes)
    assert zooms[0] == 0.667


def test_objects_that_lie_near_each_other_share_a_window() -> None:
    near, far = Box(100, 100, 200, 200), Box(300, 600, 400, 700)
    boxes = {0: near, 2: Box(120, 140, 220, 240), 5: far}
    windows, zooms = planned(boxes, [0.0] * 6, 480, 854, 128**2, 0.5)
    assert sorted(window.objects for window in windows) == [[0, 2], [5]]
    assert zooms[1] == 0.0


def test_a_window_says_where_it_lies_in_the_frame(make_target_model: Make) -> None:
    """What is learned of a given mask through a window lies where it lies in the whole frame."""
    model, (frames, labels) = make_target_model(torch.float32), video(1)
    pixels = torch.from_numpy(frames[0]).permute(2, 0, 1)[None, None] / 255.0
    masks, shown = torch.from_numpy(labels[0] == 1)[None, None, None].float(), torch.ones(1, 1, 1, dtype=torch.bool)
    _, whole = model(pixels, masks=masks, given=shown)
    top, left, bottom, right = 16, 8, 112, 136
    middle = torch.tensor([HEIGHT, WIDTH, HEIGHT, WIDTH]) / 2
    view = ((torch.tensor([top, left, bottom, right]) - middle) / HEIGHT)[None, None]
    _, part = model(
        pixels[..., top:bottom, left:right], masks=masks[..., top:bottom, left:right], given=shown, view=view
    )
    torch.testing.assert_close(part.box, whole.box)
    box = where(part, None, HEIGHT, WIDTH)[0]
    rows, columns = np.nonzero(labels[0] == 1)
    assert box.top < rows.min() < rows.max() < box.bottom
    assert box.left < columns.min() < columns.max() < box.right
    inside = part.given_keys[0, 0, : model.config.inside, -3:-1]
    assert (inside >= part.box[0, 0, :2] - 1e-6).all()
    assert (inside <= part.box[0, 0, 2:] + 1e-6).all()


def test_objects_that_lie_apart_are_followed_as_if_alone(make_target_model: Make) -> None:
    model, (frames, labels) = make_target_model(torch.float32), video()
    both = MaskStream(model, objects=2, size=HEIGHT, crop=CROP)
    alone = [MaskStream(model, size=HEIGHT, crop=CROP) for _ in range(2)]
    for t, frame in enumerate(frames):
        found = both.push(frame, labels[0] if t == 0 else None)
        for number, stream in enumerate(alone, start=1):
            one = stream.push(frame, labels[0] == number if t == 0 else None)
            assert np.array_equal(found.mask == number, one.mask == 1)
            assert found.confidence[number - 1] == one.confidence[0]
    for number, stream in enumerate(alone):
        assert torch.equal(pack(both.state.of([number])), pack(stream.state))
    fresh = MaskStream(model, objects=2, size=HEIGHT)
    assert both.state_bytes == fresh.state_bytes


def test_an_object_that_is_forgotten_has_no_window_and_frees_its_place(make_target_model: Make) -> None:
    model, (frames, labels) = make_target_model(torch.float32), video()
    stream, other = (MaskStream(model, objects=2, size=HEIGHT, crop=CROP) for _ in range(2))
    for each in (stream, other):
        each.push(frames[0], labels[0])
    assert stream.windows == 2
    stream.forget(1)
    result, both = stream.push(frames[1]), other.push(frames[1])
    assert stream.windows == 1
    assert not (result.mask == 1).any()
    assert result.confidence[0] == 0
    assert np.array_equal(result.mask == 2, both.mask == 2)
    again = [each.push(frames[2], np.where(labels[2] == 1, 1, 0)) for each in (stream, other)]
    assert np.array_equal(again[0].mask, again[1].mask)
    assert torch.equal(pack(stream.state), pack(other.state))
    assert stream.add(frame=frames[3], mask=labels[3] == 1, number=1).added == 1
    with pytest.raises(ConfigError, match="objects 1 to 2, got number 3"):
        stream.forget(3)


def test_a_stream_with_windows_and_added_objects_continues_bit_for_bit(make_target_model: Make, tmp_path: Path) -> None:
    model, (frames, labels) = make_target_model(torch.float32), video()
    stream = MaskStream(model, objects=3, size=HEIGHT, crop=CROP)
    assert not stream.push(frames[0]).mask.any()  # nothing was given
    stream.add(frame=frames[1], mask=labels[1] == 1)
    added = stream.add(frame=frames[2], box=(WIDTH - 70, HEIGHT - 74, 40, 40))
    assert added.added == 2
    stream.save(tmp_path / "state")
    assert len(set(json.loads(metadata(tmp_path / "state")["masks"])["zooms"]) - {0.0}) > 0
    other = MaskStream(model)
    other.load(tmp_path / "state")
    assert (other.crop, other.size, other.objects) == (CROP, HEIGHT, 3)
    twin = stream.copy()
    for t in (3, 4, 5):
        given = (labels[t] == 1) * 3 if t == 4 else None  # a third object, where the first one was
        results = [each.push(frames[t], given) for each in (stream, other, twin)]
        for result in results[1:]:
            assert np.array_equal(result.mask, results[0].mask)
            assert np.array_equal(result.confidence, results[0].confidence)
    assert torch.equal(pack(other.state), pack(stream.state))
    assert stream.state.seen.tolist() == [[1.0, 1.0, 1.0]]
    stream.reset()
    assert not stream.push(frames[0]).mask.any()


def test_what_cannot_be_used_changes_nothing(
    make_target_model: Make, make_mask_model: Callable[..., MixtureModel]
) -> None:
    model, (frames, labels) = make_target_model(torch.float32), video(2)
    stream = MaskStream(model, size=HEIGHT, crop=CROP)
    stream.push(frames[0], labels[0] == 1)
    before, notes = pack(stream.state), stream.notes()
    model.centre.fill_(float("nan"))
    for mask in (None, labels[1] == 1):  # a mask for every object: none is looked for, but all are learned
        with pytest.raises(FrameError, match="not finite"):
            stream.push(frames[1], mask)
    assert torch.equal(pack(stream.state), before)
    assert json.loads(stream.notes()["masks"])["zooms"] == json.loads(notes["masks"])["zooms"]
    with pytest.raises(ConfigError, match="crop is 95, expected a side of at least 96"):
        MaskStream(model, crop=95)
    with pytest.raises(ConfigError, match="a MixtureModel looks at whole frames: leave crop out"):
        MaskStream(make_mask_model(torch.float32), crop=128)


def test_the_shipped_model_follows_a_small_thing_and_finds_it_after_it_was_away() -> None:
    """A disk of 0.7% of the picture, and then 22 frames without it."""
    frames, labels = video(8, 240, 320, 13)
    stream = MaskStream(models.load("track"), size=240, crop=112)
    empty = frames[0].copy()
    empty[:100, :100] = frames[0][100:200, 100:200]
    overlap = []
    for t, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        result = stream.push(frame, label == 1 if t == 0 else None)
        overlap.append(region_similarity(result.mask == 1, label == 1))
    assert np.mean(overlap[1:]) > 0.7
    window = stream._windows(240, 320, None)[0][0]
    assert window.sides[0] * window.sides[1] < 0.35 * 240 * 320
    away = [stream.push(empty) for _ in range(22)]
    assert np.mean([result.mask.any() for result in away[2:]]) < 0.5
    window = stream._windows(240, 320, None)[0][0]
    assert (window.bottom - window.top) * (window.right - window.left) > 0.8 * 240 * 320  # looked for everywhere
    back = [region_similarity(stream.push(frames[-1]).mask == 1, labels[-1] == 1) for _ in range(4)]
    assert back[-1] > 0.6


def test_the_command_takes_it_and_refuses_it_for_a_saved_stream(
    make_target_model: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_target_model(torch.float32).save(tmp_path / "model")
    frames, labels = video(4)
    (tmp_path / "frames").mkdir()
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"{t}.png")
    Image.fromarray(labels[0]).save(tmp_path / "mask.png")
    words = ["track", str(tmp_path / "frames"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    first, crop = ["--first-mask", str(tmp_path / "mask.png")], ["--crop", str(CROP), "--size", str(HEIGHT)]

    def masks() -> list[bytes]:
        return [path.read_bytes() for path in sorted((tmp_path / "out" / "masks").iterdir())]

    assert main([*words, *first, *crop, "--no-overlay"]) == 0
    whole = masks()
    saved = str(tmp_path / "state")
    assert main([*words, *first, *crop, "--no-overlay", "--max-frames", "2", "--save-state", saved]) == 0
    assert main([*words, "--load-state", saved, "--no-overlay"]) == 0
    assert masks() == whole[2:]
    capsys.readouterr()
    assert main([*words, "--load-state", saved, *crop]) == 2
    assert "--crop belongs to a new stream" in capsys.readouterr().err
    assert main([*words, "--load-state", saved, "--size", str(HEIGHT)]) == 2
    assert "--size belongs to a new stream" in capsys.readouterr().err
    assert main([*words, *first, "--crop", "20"]) == 2
    assert "crop is 20, expected a side of at least 96" in capsys.readouterr().err
