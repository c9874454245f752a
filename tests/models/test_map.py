"""The map: codes, points, and the laws of a memory one level up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tttstream import models
from tttstream.errors import CheckpointError, ConfigError, ShapeError
from tttstream.models.map import MapConfig, MapModel
from tttstream.models.map.codes import PatchCodes
from tttstream.models.map.model import Cells
from tttstream.models.map.place_memory import PlaceMemory
from tttstream.models.map.points import SIZE, CellMarks, PlaceKeys, Plane, complete
from tttstream.poses import Angle, Form, Number, Quaternion, Rigid

SMALL = MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)


@pytest.fixture
def small() -> MapModel:
    """A map of 32 pixels with 16 patches, in float64."""
    torch.manual_seed(0)
    return MapModel(SMALL).double().eval()


def stream(rows: int, length: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Frames [B, T, 3, S, S] and poses [B, T, 5] in float64."""
    draw = torch.Generator().manual_seed(7)
    frames = torch.rand(rows, length, 3, size, size, generator=draw, dtype=torch.float64)
    return frames, torch.rand(rows, length, 5, generator=draw, dtype=torch.float64)


def test_all_components_give_the_picture_back() -> None:
    pictures = torch.rand(40, 3, 16, 24, dtype=torch.float64)
    codes = PatchCodes(4, 48).double()
    codes.fit(pictures)
    torch.testing.assert_close(codes.picture(codes.encode(pictures), 4), pictures)
    patches = codes.patches(pictures)
    assert patches.shape == (40, 24, 48)
    torch.testing.assert_close(patches[3, 8].view(3, 4, 4), pictures[3, :, 4:8, 8:12])  # second row, third column


def test_every_component_counts_alike() -> None:
    pictures = torch.rand(200, 3, 16, 16, dtype=torch.float64)
    pictures[:, 0] *= 3  # of unequal energy
    codes = PatchCodes(4, 20).double()
    codes.fit(pictures)
    spread = codes.encode(pictures).flatten(0, 1).square().mean(0)
    torch.testing.assert_close(spread, torch.ones_like(spread), rtol=1e-4, atol=0)
    assert codes.scale[0] > 2 * codes.scale[-1]


def test_short_poses_are_completed_and_long_ones_refused() -> None:
    assert complete(torch.tensor([1.0, 2.0])).tolist() == [1, 2, 0, 0, 0]
    with pytest.raises(ShapeError, match="got 6 numbers"):
        complete(torch.zeros(6))


def test_plane() -> None:
    numbers = [Number(name) for name in ("x", "y", "log_zoom")]
    assert Plane(None)(np.array([1.0, 2.0])).tolist() == [1, 2]
    assert Plane(Form(numbers[:2]))(np.array([1.0, 2.0])).tolist() == [1, 2]
    form = Form([numbers[0], Angle("roll", "deg"), *numbers[1:]])
    pose = form.encode(np.array([3.0, 90.0, 4.0, 0.1]))
    np.testing.assert_allclose(Plane(form)(pose), [3, 4, 0.1, np.pi / 2, 0], atol=1e-12)
    for parts in ([numbers[0], Angle("roll", "deg")], [Quaternion("q")], [Rigid()], [*numbers, *numbers]):
        with pytest.raises(ConfigError, match="a map lies in a plane"):
            Plane(Form(parts))


def test_keys_share_what_their_scale_says() -> None:
    torch.manual_seed(1)
    keys = PlaceKeys(20_000, 0.15)
    distances = torch.tensor([0.0, 0.05, 0.15, 0.3, 2.0]).double()
    points = torch.stack([1e4 + distances, torch.ones(5).double(), torch.full((5,), 7.0).double()], dim=-1)
    found = keys(points).double()
    alike = found @ found[0] / 20_000
    torch.testing.assert_close(alike, (-((distances / 0.15) ** 2) / 2).exp(), rtol=0, atol=0.04)


def test_keys_of_different_worlds_are_independent() -> None:
    torch.manual_seed(1)
    keys = PlaceKeys(4096, 0.15)
    worlds = torch.tensor([-1, 0, 1, 2, 3, 4, 6, 9, 1_000_000, 2_000_000]).double()
    found = keys(torch.stack([torch.full((10,), 0.6).double(), torch.full((10,), 0.1).double(), worlds], dim=-1))
    alike = found @ found.mT / 4096 - torch.eye(10)
    assert alike.abs().max() < 0.09  # 5 deviations, and those of the lengths
    assert found.mean().abs() < 0.03


def test_keys_are_equal_on_every_machine() -> None:
    keys = PlaceKeys(3, 0.5)
    keys.waves.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]))
    found = keys(torch.tensor([[0.5, 0.25, 3.0]]).double())[0]
    torch.testing.assert_close(found, torch.tensor([0.9714576, -1.4054805, 0.6466947]), rtol=0, atol=1e-6)


def test_marks_of_different_cells_differ() -> None:
    side = torch.tensor([-1_000_000, -2, -1, 0, 1, 2, 7, 1_000_000]).double()
    worlds = torch.tensor([0, 1, 2, 3, 4, 6, 9, 1_000_000, 2_000_000]).double()
    points = torch.cartesian_prod((side + 0.5) / 4, (side + 0.5) / 4, worlds)
    found = CellMarks(4096, 4)(points) / SIZE
    assert found.shape == (576, 4096)
    torch.testing.assert_close(found.abs(), torch.ones_like(found))
    alike = found @ found.mT / 4096 - torch.eye(len(found))
    assert alike.abs().max() < 0.1  # 6 deviations of fair coins
    assert found.mean(0).abs().max() < 0.25
    assert found.mean().abs() < 0.01


def test_marks_are_equal_on_every_machine() -> None:
    marks = CellMarks(40, 4)
    points = torch.tensor([[0.01, 0.51, 3.0], [0.24, 0.74, 3.0], [0.26, 0.51, 3.0]]).double()
    first, same, next_ = marks(points)
    assert torch.equal(first, same)
    assert not torch.equal(first, next_)
    assert "".join("-+"[int(sign > 0)] for sign in first) == "--+--+-+-++-+-+---+-+--+--+--+++-++++-+-"
    assert torch.equal(CellMarks(96, 4)(points)[:, :40], marks(points))


@torch.no_grad()
@pytest.mark.parametrize("memory", ["kernel_delta", "ttt_mlp"])
def test_a_map_recalls_before_any_training(memory: str) -> None:
    torch.manual_seed(0)
    config = MapConfig()
    if memory == "ttt_mlp":
        config = MapConfig(memory="ttt_mlp", options={"rotary": False, "mini_batch": 4})
    model = MapModel(config)
    draw = torch.Generator().manual_seed(3)
    place = torch.randint(36, (1, 40, 9), generator=draw)
    codes = torch.randn(36, 48, generator=draw)
    points = torch.stack(
        [torch.arange(36) % 6 / 4 + 0.125, torch.arange(36) // 6 / 4 + 0.125, torch.full((36,), 5)], -1
    )
    _, state = model.learned(Cells(codes[place], points.double()[place], torch.ones(1, 40, 9)))
    error = (model.imagine(points[None].double(), state).codes[0] - codes).square().mean()
    assert error < 0.3 * codes.square().mean()
    blank = (model.imagine(points[None].double(), None).codes[0] - codes).square().mean()
    assert blank > 0.99 * codes.square().mean()


@torch.no_grad()
def test_an_untrained_map_recalls_equally_in_worlds_of_all_numbers() -> None:
    """The error right after learning does not depend on the number of the world, nor on how far away it is."""
    torch.manual_seed(0)
    model = MapModel(MapConfig(options={"conv": 0, "features": 192, "sharp": 3.0}))  # few, so that there is an error
    draw = torch.Generator().manual_seed(3)
    cells = torch.randint(12, (1, 300, 2), generator=draw)
    what = torch.randn(144, 48, generator=draw)[cells[..., 0] * 12 + cells[..., 1]]
    left = []
    for corner, world in ((0.0, 0), (0.0, 1), (0.0, 12345), (1e4, 0), (-1e4, 7)):
        points = torch.cat([cells / 4.0 + corner + 0.125, torch.full((1, 300, 1), float(world))], -1).double()
        _, state = model.learned(Cells(what[:, None], points[:, None], torch.ones(1, 1, 300)))
        left.append(float((model.imagine(points, state).codes - what).square().mean()))
    assert max(left) < 1.1 * min(left), left
    assert max(left) < 0.5


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_streaming(small: MapModel, cut: int) -> None:
    frames, poses = stream(2, 5)
    whole, end = small(frames, poses)
    first, state = small(frames[:, :cut], poses[:, :cut])
    second, state = small(frames[:, cut:], poses[:, cut:], state)
    for name in whole._fields:
        parts = torch.cat([getattr(first, name), getattr(second, name)], 1)
        torch.testing.assert_close(parts, getattr(whole, name), rtol=1e-10, atol=1e-10)
    for a, b in zip(end.tensors(), state.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_reset_row_is_a_fresh_row(small: MapModel) -> None:
    frames, poses = stream(2, 5)
    reset = torch.zeros(2, 5, dtype=torch.bool)
    reset[1, 2] = True
    whole, _ = small(frames, poses, reset=reset)
    alone, _ = small(frames[1:, 2:], poses[1:, 2:])
    torch.testing.assert_close(whole.codes[1:, 2:], alone.codes, rtol=1e-10, atol=1e-10)


def test_a_fresh_state_is_zero_and_constant(small: MapModel) -> None:
    frames, poses = stream(1, 4)
    state = small.init_state(1)
    assert all(not part.any() for part in state.tensors())
    assert small(frames, poses)[1].nbytes == state.nbytes


@pytest.mark.parametrize("memory", ["ttt_mlp", "ttt_linear", "gru", "window"])
def test_imagine_does_not_learn_and_equals_a_query(memory: str) -> None:
    """With the TTT memories an answer depends on nothing but the state and the point."""
    torch.manual_seed(0)
    options = {"rotary": False} if memory.startswith("ttt") else {}
    config = MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2, memory=memory, options=options)
    model = MapModel(config).double().eval()
    frames, poses = stream(2, 3)
    _, state = model(frames, poses)
    kept = [part.clone() for part in state.tensors()]
    points = model.cells(frames, poses, count=16).points[:, 0]
    answers = model.imagine(points, state)
    assert answers.codes.shape == (2, 16, 6)
    assert ((answers.familiar > 0) & (answers.familiar < 1) & (answers.error > 0)).all()
    for a, b in zip(state.tensors(), kept, strict=True):
        assert torch.equal(a, b)
    one = model.imagine(points[:, 5:6], state)
    torch.testing.assert_close(one.codes[:, 0], answers.codes[:, 5])


@pytest.mark.parametrize("name", ["delta", "kernel_delta", "gated_delta", "mesa", "window"])
def test_other_memories_have_the_same_views(name: str) -> None:
    torch.manual_seed(0)
    options = {} if name == "window" else {"conv": 0}
    memory = PlaceMemory(4, 6, where=8, what=4, memory=name, heads=2, options=options).double()
    what, where, ask = (torch.randn(1, 20, n, dtype=torch.float64) for n in (4, 6, 6))
    _, state = memory(what, where, ask)
    _, other = memory(what, where, torch.randn_like(ask))
    moved = memory(what, torch.randn_like(where), ask)[1]
    held, same, changed = (part.tensors()[0] for part in (state, other, moved))
    assert torch.equal(held, same)  # the question changes nothing of what is stored
    assert not torch.allclose(held, changed)


def test_the_views_come_from_their_parts_alone() -> None:
    torch.manual_seed(0)
    memory = PlaceMemory(4, 6, where=8, what=4, heads=2, options={"rotary": False}).double()
    what, where, ask = (torch.randn(1, 20, n, dtype=torch.float64) for n in (4, 6, 6))
    _, state = memory(what, where, ask)
    _, other = memory(what, where, torch.randn_like(ask))
    for a, b in zip(state.tensors(), other.tensors(), strict=True):
        assert torch.equal(a, b)  # what is asked changes nothing of what is learned
    question = torch.randn(1, 3, 6, dtype=torch.float64)
    read = memory.read(question, state)
    told, _ = memory(what[:, :1], where[:, :1], question[:, :1], state)
    assert not torch.equal(read[:, 0], told[:, 0])  # it has learned the token by then


@pytest.mark.parametrize("name", ["kernel_delta", "ttt_mlp"])
def test_tied_queries_keep_the_projection_of_keys(name: str) -> None:
    """Whatever the weights are, a place is asked for as it is told."""
    options = {"conv": 0} if name == "kernel_delta" else {"rotary": False}
    memory = PlaceMemory(4, None, where=8, what=4, memory=name, heads=2, options=options, tied=True)
    views = memory.memory.views
    assert views is not None
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.add_(torch.randn_like(parameter))
    place, nothing = torch.randn(1, 8), torch.zeros(1, 12)
    q, k, _ = views(torch.cat([place, nothing], -1)).chunk(3, -1)
    assert not q.any()
    asked, other, _ = views(torch.cat([nothing[:, :8], place, nothing[:, :4]], -1)).chunk(3, -1)
    assert not other.any()
    torch.testing.assert_close(asked, k)


def test_a_frame_gives_the_cells_it_shows_most_of(small: MapModel) -> None:
    frames, _ = stream(1, 2)
    poses = torch.tensor([[[0.5, 0.5], [0.57, 0.5]]]).double()
    cells = small.cells(frames, poses, count=16)
    assert cells.points.shape == (1, 2, 16, 3)
    assert (cells.shown[0, 0] == 1).all()
    assert {tuple(point) for point in cells.points[0, 0, :, :2].tolist()} == {
        (x, y) for x in (0.125, 0.375, 0.625, 0.875) for y in (0.125, 0.375, 0.625, 0.875)
    }
    torch.testing.assert_close(
        cells.codes[0, 0].sort(0)[0], small.codes.encode(frames[0, 0]).sort(0)[0], rtol=1e-9, atol=1e-9
    )
    assert sorted(cells.shown[0, 1].tolist())[3] < 1  # a column of cells is cut
    assert (cells.shown[0, 1] > 0.7).all()


def test_what_is_beyond_the_border_comes_from_memory_where_it_is_familiar(small: MapModel) -> None:
    frames, _ = stream(1, 1)
    pose = torch.tensor([[0.57, 0.5]]).double()
    expected = small.view(pose, small.init_state(1))
    for known, same in ((1.0, False), (0.0, True)):
        told = expected._replace(said=expected.said._replace(familiar=torch.full_like(expected.said.familiar, known)))
        cells, bare = small.cells(frames, pose[None], told), small.cells(frames, pose[None])
        whole = bare.shown == 1
        torch.testing.assert_close(cells.codes[whole], bare.codes[whole])
        assert torch.equal(cells.codes, bare.codes) is same


def test_wrong_shapes(small: MapModel) -> None:
    frames, poses = stream(1, 2)
    with pytest.raises(ShapeError, match=r"expected frames \[B, T >= 1, 3, 32, 32\]"):
        small(frames[..., :16], poses)
    with pytest.raises(ShapeError, match="expected poses"):
        small(frames, poses[:, :1])
    with pytest.raises(ShapeError, match="expected reset bool"):
        small(frames, poses, reset=torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="multiple of patch"):
        MapConfig(size=60)
    with pytest.raises(ConfigError, match="scale must be a number above 0"):
        MapConfig(scale=0.0)


def test_a_folder_gives_the_model_back(small: MapModel, tmp_path: Path) -> None:
    small.save(tmp_path / "one")
    back = models.load(str(tmp_path / "one"))
    assert isinstance(back, MapModel)
    assert back.config == small.config
    assert back.fingerprint() == small.float().fingerprint()
    with pytest.raises(ConfigError, match="sees 32 pixels, not 64"):
        models.load(str(tmp_path / "one"), size=64)
    with pytest.raises(CheckpointError, match="there is no model"):
        models.load(str(tmp_path / "none"))
