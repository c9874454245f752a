"""The lattice: cells are the same pieces of the world whatever the pose, and views are drawn from them."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tttstream.errors import ShapeError
from tttstream.models.map.lattice import around, cell_points, drawn, evened, laid
from tttstream.sources.places import Places

POSES = [(1.5, 1.5, 0.0, 0.0), (1.6, 1.4, 0.2, 0.0), (1.4, 1.7, 0.0, 0.5), (1.5, 1.2, -0.2, -0.3)]


def test_an_aligned_view_is_unchanged() -> None:
    frame, pose = torch.rand(1, 3, 32, 32).double(), torch.tensor([[1.5, -0.5, 0, 0, 0]]).double()
    block = around(pose, 4)
    assert (block.corner.tolist(), block.rows, block.columns) == ([[4, -4]], 5, 5)
    picture, inside = laid(frame, pose, block, 4, 8)
    torch.testing.assert_close(picture[..., :32, :32], frame)
    assert inside[:, :32, :32].all()
    assert inside.sum() == 32 * 32
    torch.testing.assert_close(drawn(picture, pose, block, 4, 32), frame)


def test_an_oblique_view_is_restored_up_to_fine_detail() -> None:
    frame = F.interpolate(torch.rand(1, 3, 6, 6).double(), (64, 64), mode="bicubic")
    pose = torch.tensor([[7.13, -3.31, 0.1, 0.3, 0]]).double()
    block = around(pose, 4)
    back = drawn(laid(frame, pose, block, 4, 16)[0], pose, block, 4, 64)
    assert (back - frame).abs()[..., 2:-2, 2:-2].max() < 0.03


@pytest.mark.parametrize("numbers", POSES)
def test_cells_lie_where_the_embedded_camera_shows_them(numbers: tuple[float, ...]) -> None:
    """What is laid out equals the texture of the world there, where no things stand."""
    places = Places(size=128, seed=3)
    taken = torch.from_numpy(places.look(np.array([*numbers, 0.0]), 0)).permute(2, 0, 1)[None].double()
    pose = torch.tensor([[*numbers, 0.0]]).double()
    block = around(pose, 128)
    picture, inside = laid(taken, pose, block, 128, 1)
    points = cell_points(block, pose[:, 4], 128)[0].view(block.rows, block.columns, 3).numpy()
    x, y = ((points[..., axis] * 128 - 0.5).astype(np.float32) for axis in (0, 1))
    read = cv2.remap(places._texture(0), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    away = np.abs(read - picture[0].permute(1, 2, 0).numpy()).mean(-1)[inside[0].numpy()]
    assert np.median(away) < 2


@pytest.mark.parametrize("numbers", POSES)
def test_a_block_holds_its_view(numbers: tuple[float, ...]) -> None:
    pose = torch.tensor([[*numbers, 0.0], [-3.0, 2.0, 0.0, 0.0, 0.0]]).double()
    block = around(pose, 4)
    corners = torch.tensor([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)]).double() * math.exp(numbers[2])
    c, s = math.cos(numbers[3]), math.sin(numbers[3])
    at = 4 * (pose[0, :2] + corners @ torch.tensor([[c, s], [-s, c]]).double()) - block.corner[0]
    assert (at >= -1e-9).all()
    assert (at <= torch.tensor([block.columns, block.rows]) + 1e-9).all()


def test_points_are_the_middles_of_cells() -> None:
    pose = torch.tensor([[1.0, 2.0, 0.0, 0.0, 7.0]]).double()
    points = cell_points(around(pose, 2), pose[:, 4], 2)
    assert points[0, 0].tolist() == [0.75, 1.75, 7]
    assert points[0, 1].tolist() == [1.25, 1.75, 7]


def test_a_view_of_too_many_cells_is_refused() -> None:
    with pytest.raises(ShapeError, match="times as large as at zoom 1"):
        around(torch.tensor([[0, 0, 3.0, 0, 0]]), 4)


def test_steps_between_known_cells_are_smoothed_and_no_others() -> None:
    picture = torch.tensor([0.2, 0.6, 0.5]).double().repeat_interleave(8).expand(1, 3, 8, -1)
    known = torch.ones(1, 1, 3, dtype=torch.bool)
    even = evened(picture, known)
    torch.testing.assert_close(evened(picture.mT, known.mT), even.mT)
    assert even.diff(dim=-1).abs().max() < 0.051  # an eighth of the largest step
    torch.testing.assert_close(even[..., 4::8], picture[..., 4::8], atol=0.03, rtol=0)  # the middles stay
    torch.testing.assert_close(even[..., 7:9].mean(-1), picture[..., 7:9].mean(-1))
    known[..., 2] = False
    part = evened(picture, known)
    torch.testing.assert_close(part[..., :8], even[..., :8])
    torch.testing.assert_close(part[..., 16:], picture[..., 16:])
    torch.testing.assert_close(evened(picture, torch.zeros_like(known)), picture)
