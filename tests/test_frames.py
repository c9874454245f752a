"""A Frame: its image and its pose are checked where it is made."""

from __future__ import annotations

import numpy as np
import pytest

from tttstream.errors import FrameError
from tttstream.frames import Frame

IMAGE = np.zeros((4, 6, 3), np.uint8)


def test_a_frame_has_no_pose_unless_given() -> None:
    frame = Frame(IMAGE, 3, 0.25)
    assert frame.pose is None
    assert repr(frame) == "Frame(index=3, time_s=0.250, 6x4 uint8)"


def test_a_pose_is_a_read_only_float64_copy() -> None:
    given = np.array([1, -2, 1000000], np.float32)
    frame = Frame(IMAGE, pose=given)
    given[:] = 0
    assert frame.pose is not None
    assert frame.pose.dtype == np.float64
    assert frame.pose.tolist() == [1.0, -2.0, 1000000.0]
    with pytest.raises(ValueError, match="read-only"):
        frame.pose[0] = 5
    assert repr(frame) == "Frame(index=0, time_s=0.000, 6x4 uint8, pose=[1 -2 1e+06])"


@pytest.mark.parametrize("given", [[1, 2.5], (3,), np.arange(64)], ids=["list", "tuple", "64 whole numbers"])
def test_any_short_vector_is_a_pose(given: object) -> None:
    pose = Frame(IMAGE, pose=given).pose  # type: ignore[arg-type]
    assert pose is not None
    assert np.array_equal(pose, np.asarray(given, np.float64))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((1, 2)), r"shape \(1, 2\)"),
        (np.float64(1), r"shape \(\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros(65), r"shape \(65,\)"),
        ([1.0, np.nan], "not finite"),
        ([np.inf], "not finite"),
        (["1", "2"], "real numbers"),
        ([1j], "real numbers"),
        ([True], "real numbers"),
        ([None, 1], "real numbers"),
        ([[1], [2, 3]], "no vector"),
    ],
)
def test_anything_else_is_refused_with_the_number_of_the_frame(given: object, said: str) -> None:
    with pytest.raises(FrameError, match=f"frame 7: .*{said}"):
        Frame(IMAGE, 7, pose=given)  # type: ignore[arg-type]
