"""Registration: errors of poses are measured to a fraction of a pixel, and a stream corrects its poses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream import MapStream, models
from tttstream.frames import Frame
from tttstream.models.map import MapConfig, MapOutput
from tttstream.models.map.lattice import around, drawn
from tttstream.models.map.model import View
from tttstream.sources.places import Places
from tttstream.streams.registration import Measured, Shifts, measured

CONFIG = MapConfig()
Error = tuple[float, float, float, float]
ERRORS = [(0.0, 0.0, 0.0, 0.0), (1.5, -0.7, 0.4, 0.0), (6.3, 3.1, 0.0, -0.6), (-10.0, 9.0, -0.3, 0.5)]


def scene(pose: Tensor, seed: int = 0) -> tuple[View, Tensor]:
    """The view that is expected at a pose [1, 5], with all cells known, and a larger picture of the same world whose
    middle is that of the view [1, 3, h, w]."""
    world = torch.randn(1, 3, 60, 60, generator=torch.Generator().manual_seed(seed))
    world = F.interpolate(world, (240, 240), mode="bicubic").mul(0.15).add(0.5)
    block = around(pose, CONFIG.side)
    rows, columns = block.rows * CONFIG.patch, block.columns * CONFIG.patch
    laid = world[..., 60 : 60 + rows, 60 : 60 + columns]
    known = MapOutput(*(torch.ones(1, block.rows * block.columns) for _ in range(3)))
    return View(block, known, laid, laid), world


def seen(world: Tensor, pose: Tensor, view: View, error: Error) -> Tensor:
    """The picture [3, S, S] of a camera whose pose has an error."""
    around_it = view.block._replace(corner=view.block.corner - 60 / CONFIG.patch, rows=15, columns=15)
    return drawn(world, pose + pose.new_tensor(Shifts(*error).pose(CONFIG.size)), around_it, CONFIG.side, CONFIG.size)[
        0
    ]


@pytest.mark.parametrize("turn", [(0.0, 0.0), (0.1, -0.2)], ids=["upright", "turned"])
@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_an_error_is_measured(error: Error, turn: tuple[float, float]) -> None:
    """The light may be different, and the picture may show a new thing."""
    pose = torch.tensor([[0.63, 0.41, *turn, 0.0]], dtype=torch.float64)
    view, world = scene(pose)
    picture = seen(world, pose, view, error)
    brighter = picture * 0.8 + 0.1 * torch.linspace(0, 1, CONFIG.size)
    changed = picture.clone()
    changed[:, 20:40, 30:50] = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(1))
    for one, tolerance in ((picture, 0.15), (brighter, 0.15), (changed, 0.3)):
        found = measured(one, pose, view, CONFIG)
        assert found is not None
        np.testing.assert_allclose(found, error, atol=tolerance)


def test_nothing_is_measured_where_nothing_is_known_or_fits() -> None:
    pose = torch.tensor([[0.63, 0.41, 0.0, 0.0, 0.0]], dtype=torch.float64)
    view, world = scene(pose)
    picture = seen(world, pose, view, (2.0, 1.0, 0.0, 0.0))
    unknown = view._replace(said=view.said._replace(familiar=torch.zeros_like(view.said.familiar)))
    assert measured(picture, pose, unknown, CONFIG) is None
    other, elsewhere = scene(pose, seed=5)
    assert measured(seen(elsewhere, pose, other, (0.0, 0.0, 0.0, 0.0)), pose, view, CONFIG) is None
    assert measured(torch.full_like(picture, 0.5), pose, view, CONFIG) is None


def test_shifts_of_exact_poses_do_not_count() -> None:
    rng, shifts = np.random.default_rng(0), Shifts()
    for _ in range(300):
        wrong = rng.random() < 0.05
        shifts = shifts.after(Measured(8.0, 3.0, 2.0, -2.0) if wrong else Measured(*rng.normal(0, 0.1, 4)))
        assert shifts[:4] == (0.0,) * 4


def test_shifts_of_other_poses_count() -> None:
    rng, shifts = np.random.default_rng(0), Shifts()
    for number in range(300):
        x, y = rng.normal(0, 1.3, 2)
        shifts = shifts.after(Measured(x, y, 0.01, 0.0))
        if number > 10:
            np.testing.assert_allclose(shifts[:4], (x, y, 0, 0), rtol=0.02)
    assert shifts.after(None)[:4] == (0.0,) * 4
    assert shifts.after(None)[4:] == shifts[4:]


def inexact(noise: float, late: int) -> Iterator[tuple[Frame, np.ndarray]]:
    """Frames of `places` with poses that are noisy and late, and their true poses."""
    rng, poses = np.random.default_rng(0), []
    for frame in Places(size=64, seed=3):
        poses.append(np.array(frame.pose))
        given = poses[max(0, len(poses) - 1 - late)].copy()
        given[:2] += rng.normal(0, noise, 2)
        yield Frame(frame.image, frame.index, frame.time_s, given), poses[-1]


@pytest.mark.parametrize(("noise", "late"), [(0.0, 0), (0.02, 0), (0.0, 3)])
def test_poses_are_corrected(noise: float, late: int) -> None:
    stream, wrong, left = MapStream(models.load("map")), [], []
    for frame, true in itertools.islice(inexact(noise, late), 60):
        stream.push(frame)
        assert frame.pose is not None
        wrong.append((true - frame.pose)[:2] * stream.size)
        left.append(wrong[-1] - stream.shifts[:2])
    if not noise and not late:
        assert not np.any(left)
        return
    # A map begins at a pose that is wrong too, so it may be displaced as a whole.
    rest = np.std(left[20:], axis=0).max()
    assert rest < 0.4 * np.std(wrong[20:], axis=0).max()
    stream.reset()
    assert stream.shifts == Shifts()


def test_a_restored_stream_corrects_poses_bit_for_bit(tmp_path: Path) -> None:
    frames = [frame for frame, _ in itertools.islice(inexact(0.02, 1), 24)]
    whole, part, again = (MapStream(models.load("map")) for _ in range(3))
    straight = [whole.push(frame) for frame in frames]
    for frame in frames[:15]:
        part.push(frame)
    part.save(tmp_path / "state.safetensors")
    again.load(tmp_path / "state.safetensors")
    assert again.shifts == part.shifts != Shifts()
    for frame, expected in zip(frames[15:], straight[15:], strict=True):
        result = again.push(frame)
        assert (result.loss, result.surprise) == (expected.loss, expected.surprise)
        np.testing.assert_array_equal(result.expected, expected.expected)
    assert again.shifts == whole.shifts
