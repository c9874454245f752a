"""The scale of poses: fixed once, never changed, saved and restored to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tttstream.errors import ConfigError, ShapeError, StateError
from tttstream.poses import PoseScale


def walk(count: int, seed: int = 0) -> np.ndarray:
    """[count, 4]: x, y in metres that spread ever wider, and a heading as cosine and sine."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 1, (count, 3)).cumsum(0)
    return np.stack([500 + steps[:, 0], steps[:, 1], np.cos(steps[:, 2]), np.sin(steps[:, 2])], axis=1)


def test_the_same_pose_has_the_same_key_after_100_000_frames() -> None:
    scale = PoseScale(directions=(2, 3), warmup=100)
    poses = walk(100_000)
    keys = [scale.push(pose) for pose in poses]
    assert all(key is None for key in keys[:99])
    assert all(key is not None for key in keys[99:])
    for index in (99, 150, 5_000, 99_999):
        again = scale.push(poses[index])
        assert again is not None
        assert again.tobytes() == keys[index].tobytes() == scale.normalise(poses[index]).tobytes()  # type: ignore[union-attr]


def test_the_warm_up_fixes_offset_and_scale() -> None:
    poses = walk(100)
    scale = PoseScale(directions=(2, 3), warmup=100)
    for pose in poses:
        key = scale.push(pose)
    assert key is not None
    spread = poses[:, :2].std(0).max()
    np.testing.assert_allclose(key[:2], (poses[-1, :2] - poses[:, :2].mean(0)) / spread, rtol=1e-9)
    assert key[2:].tolist() == poses[-1, 2:].tolist()


@pytest.mark.parametrize("saved_at", [0, 1, 50, 99, 100, 300])
def test_a_restart_continues_bit_for_bit(saved_at: int) -> None:
    whole, first, second = (PoseScale(directions=(2, 3), warmup=100) for _ in range(3))
    poses = walk(400, seed=2)
    expected = [whole.push(pose) for pose in poses][saved_at:]
    for pose in poses[:saved_at]:
        first.push(pose)
    second.restore(json.loads(json.dumps(first.state())))
    found = [second.push(pose) for pose in poses[saved_at:]]
    assert [None if key is None else key.tobytes() for key in found] == [
        None if key is None else key.tobytes() for key in expected
    ]
    assert second.state() == whole.state()


def test_a_given_scale_applies_from_the_first_pose() -> None:
    scale = PoseScale(2.0, offset=[1, 1, 0, 0], directions=(2, 3))
    assert scale.fixed
    assert scale.push(np.array([5, 1, 0.6, 0.8])).tolist() == [2, 0, 0.6, 0.8]  # type: ignore[union-attr]
    each = PoseScale([2, 0.5])
    assert each.push(np.array([1, 1])).tolist() == [0.5, 2]  # type: ignore[union-attr]
    restored = PoseScale()
    restored.restore(json.loads(json.dumps(each.state())))
    assert restored.push(np.array([1, 1])).tolist() == [0.5, 2]  # type: ignore[union-attr]


def test_equal_poses_extend_the_warm_up() -> None:
    scale = PoseScale(warmup=4)
    assert [scale.push(np.array([0.1, 0.3])) for _ in range(50)] == [None] * 50
    assert scale.push(np.array([1.1, 0.3])) is not None


def test_directions_alone_are_not_scaled() -> None:
    scale = PoseScale(directions=(0, 1), warmup=2)
    scale.push(np.array([1.0, 0.0]))
    assert scale.push(np.array([0.0, 1.0])).tolist() == [0, 1]  # type: ignore[union-attr]


def test_refused_arguments() -> None:
    for wrong in (0.0, -1.0, np.nan, [1.0, 0.0]):
        with pytest.raises(ConfigError, match="scale of poses"):
            PoseScale(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 poses"):
        PoseScale(warmup=1)
    with pytest.raises(ConfigError, match="offset"):
        PoseScale(offset=[1, 2])
    scale = PoseScale(warmup=3)
    with pytest.raises(StateError, match="0 of 3"):
        scale.normalise(np.zeros(2))
    scale.push(np.zeros(2))
    for pose in (np.zeros(3), np.array([0, np.nan]), np.zeros((1, 2))):
        with pytest.raises(ShapeError):
            scale.push(pose)
    with pytest.raises(ShapeError):
        PoseScale([1.0, 2.0, 3.0]).push(np.zeros(2))
    with pytest.raises(ShapeError):
        PoseScale(1.0, directions=(5,)).push(np.zeros(2))
    with pytest.raises(StateError, match="not the state"):
        scale.restore({"scale": 1})
