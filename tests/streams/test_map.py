"""A stream with a map: it recalls, imagines, notices, and continues bit for bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tttstream import MapStream
from tttstream.errors import CheckpointError, ConfigError, FrameError, StateError
from tttstream.frames import Frame
from tttstream.models.map import MapConfig, MapModel
from tttstream.poses import Form
from tttstream.poses.form import Angle, Number
from tttstream.sources import Source, open_source
from tttstream.sources.places import Places
from tttstream.streams.map import Extent

Fresh = Callable[..., MapStream]
SMALL = MapConfig(size=32, patch=8, codes=6, marks=4, where=12, what=8, heads=2)


@pytest.fixture
def fresh() -> Callable[..., MapStream]:
    """Makes a stream of a small map with weights from a seed."""

    def make(seed: int = 0) -> MapStream:
        torch.manual_seed(seed)
        return MapStream(MapModel(SMALL))

    return make


def test_results(fresh: Fresh) -> None:
    stream = fresh()
    for frame in itertools.islice(Places(size=64), 12):
        result = stream.push(frame)
        assert (result.index, result.time_s) == (frame.index, frame.time_s)
        assert result.expected is not None
        assert (result.expected.shape, result.expected.dtype) == ((32, 32, 3), np.uint8)
        assert result.familiar is not None
        assert 0 <= result.familiar <= 1
        assert result.surprise_map.shape == (4, 4)
    assert stream.frames == 12


class Turning(Source):
    """A camera that turns; the form of its poses is known only after the first frame."""

    name = "turning"

    def __iter__(self) -> Iterator[Frame]:
        for index, turn in enumerate((0.0, 0.5, 1.0)):
            self.pose_form = Form([Number("x"), Number("y"), Angle("yaw", "rad")])
            yield Frame(np.zeros((32, 32, 3), np.uint8), index, pose=self.pose_form.encode(np.array([1.0, 2.0, turn])))

    def position(self) -> dict[str, Any]:
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        pass


def test_an_angle_is_the_roll_also_if_the_form_of_poses_is_known_late(fresh: Fresh) -> None:
    stream, source = fresh(), Turning()
    stream.begin(source)
    for frame, turn in zip(source, (0.0, 0.5, 1.0), strict=True):
        stream.push(frame)
        np.testing.assert_allclose(stream.at, [1, 2, 0, turn, 0], atol=1e-9)


def test_without_a_pose_a_still_camera_is_a_place_of_its_own(fresh: Fresh) -> None:
    frame = next(iter(Places(size=64)))
    bare, posed = fresh(), fresh()
    for index in range(3):
        a, b = bare.push(Frame(frame.image, index)), posed.push(Frame(frame.image, index, pose=np.zeros(5)))
        np.testing.assert_array_equal(a.expected, b.expected)
        np.testing.assert_array_equal(a.surprise_map, b.surprise_map)
    assert all(torch.equal(a, b) for a, b in zip(bare.state.tensors(), posed.state.tensors(), strict=True))


def test_a_still_camera_is_surprised_by_what_is_new_and_not_by_what_stays(fresh: Fresh, tmp_path: Path) -> None:
    """The scale is that of the stream: noise is usual, also where the memory knows little of the picture."""
    rng, image = np.random.default_rng(0), next(iter(Places(size=32))).image.astype(int)
    stream = fresh()

    def push(index: int, thing: int) -> float:
        noisy = image + rng.integers(-6, 7, image.shape)
        noisy[8:16, 8:16] += thing
        return stream.push(Frame(noisy.clip(0, 255).astype(np.uint8), index)).surprise

    usual = [push(index, 0) for index in range(100)]
    assert np.mean(np.array(usual[50:]) > 3) < 0.05, usual
    stream.save(tmp_path / "state.safetensors")
    assert push(100, 120) > 5
    stream.load(tmp_path / "state.safetensors")
    assert push(100, 120) > 5


def test_extent(fresh: Fresh) -> None:
    stream, image = fresh(), np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(StateError, match="has seen no frame"):
        stream.world()
    for pose in ([1.0, 1.0], [2.0, 0.5], [1.0, 1.0, math.log(3.0)]):
        stream.push(Frame(image, pose=np.array(pose)))
    np.testing.assert_allclose((*stream.extent.low, *stream.extent.high), (-0.5, -0.5, 2.5, 2.5))
    assert stream.world().picture.shape == (96, 96, 3)
    stream.push(Frame(image, pose=np.array([5.0, 5.0, 0, 0, 1])))
    assert stream.extent == Extent((4.5, 4.5), (5.5, 5.5), 1.0)
    metres = MapStream(stream.model, view=20.0)
    metres.push(Frame(image, pose=np.array([40.0, 10.0])))
    assert metres.extent == Extent((1.5, 0.0), (2.5, 1.0), 0.0)
    with pytest.raises(ConfigError, match="the side of a view is 0"):
        MapStream(stream.model, view=0)


@pytest.mark.parametrize("pose", [np.zeros(1), np.zeros(6)])
def test_other_poses_are_refused_and_change_nothing(fresh: Fresh, pose: np.ndarray) -> None:
    stream, image = fresh(), np.zeros((32, 32, 3), np.uint8)
    stream.push(Frame(image))
    before = [part.clone() for part in stream.state.tensors()]
    with pytest.raises(FrameError, match="2 to 5 finite numbers"):
        stream.push(Frame(image, 1, pose=pose))
    with pytest.raises(FrameError, match="imagine: a map takes a pose"):
        stream.imagine(pose)
    with pytest.raises(FrameError, match="imagine: a map takes a pose"):
        stream.imagine("here")  # type: ignore[arg-type]
    for zoom in (50.0, 800.0):
        with pytest.raises(FrameError, match=r"frame 1: a view is .* times as large as at zoom 1"):
            stream.push(Frame(image, 1, pose=np.array([0, 0, zoom])))
    assert stream.frames == 1
    assert all(torch.equal(a, b) for a, b in zip(before, stream.state.tensors(), strict=True))


def test_imagine_and_world_learn_nothing(fresh: Fresh) -> None:
    stream = fresh()
    for frame in itertools.islice(Places(size=64), 5):
        stream.push(frame)
    before = [part.clone() for part in stream.state.tensors()]
    picture, familiar = stream.imagine((1.5, 1.5))
    assert picture.shape == (32, 32, 3)
    assert familiar.shape == (4, 4)
    world, known = stream.world(Extent((0.0, 0.0), (2.0, 1.0), 0.0))
    assert world.shape == (32, 64, 3)
    assert known.shape == (4, 8)
    assert all(torch.equal(a, b) for a, b in zip(before, stream.state.tensors(), strict=True))


def test_the_world_is_made_of_what_imagine_gives(fresh: Fresh) -> None:
    """A world as large as a view is that view, but for half a cell at its border, where the view knows neighbours."""
    stream = fresh()
    for frame in itertools.islice(Places(size=64), 5):
        stream.push(frame)
    picture = stream.imagine((0.5, 0.5)).picture.astype(int)
    world = stream.world(Extent((0.0, 0.0), (1.0, 1.0), 0.0)).picture.astype(int)
    np.testing.assert_allclose(picture[4:-4, 4:-4], world[4:-4, 4:-4], atol=1)


def test_without_learn_the_state_is_unchanged(fresh: Fresh) -> None:
    stream = fresh()
    stream.learn = False
    for frame in itertools.islice(Places(size=64), 3):
        assert stream.push(frame).learned == 0
    assert all(not part.any() for part in stream.state.tensors())


def test_a_restored_stream_continues_bit_for_bit(fresh: Fresh, tmp_path: Path) -> None:
    whole, part = fresh(), fresh()
    with open_source("places") as source:
        straight = [whole.push(frame) for frame in itertools.islice(source, 14)]
    with open_source("places") as source:
        for frame in itertools.islice(source, 8):
            part.push(frame)
        part.save(tmp_path / "state.safetensors", source)
    again = fresh()
    with open_source("places") as source:
        again.load(tmp_path / "state.safetensors", source)
        for frame, expected in zip(source, straight[8:], strict=False):
            result = again.push(frame)
            assert (result.index, result.loss, result.surprise) == (expected.index, expected.loss, expected.surprise)
            np.testing.assert_array_equal(result.expected, expected.expected)
    with pytest.raises(CheckpointError, match="another model"):
        fresh(seed=1).load(tmp_path / "state.safetensors")


def test_the_same_pose_gives_the_same_key_however_late(fresh: Fresh) -> None:
    """Keys depend on poses only: a pose has the same key after any number of frames."""
    stream = fresh()
    pose = torch.tensor([1.2, 0.7, 0.1, 0.05, 3.0], dtype=torch.float64)
    point = pose[[0, 1, 4]]
    before = stream.model.keys(point), stream.model.marks(point)
    for frame in itertools.islice(Places(size=32), 20):
        stream.push(frame)
    assert torch.equal(before[0], stream.model.keys(point))
    assert torch.equal(before[1], stream.model.marks(point))
