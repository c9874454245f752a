"""Poses as vectors: one orientation has the same numbers in any notation, and near orientations have near numbers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.poses import Angle, Form, Number, Quaternion, Rigid
from tttstream.poses.form import declared, unit_of

Floats = NDArray[np.float64]


def quaternion(axis: list[float], degrees: float) -> Floats:
    half = np.deg2rad(degrees) / 2
    return np.array([*(np.sin(half) * np.array(axis) / np.linalg.norm(axis)), np.cos(half)])


class TestAngles:
    @pytest.mark.parametrize(
        ("unit", "right_angle"), [("deg", 90.0), ("rad", np.pi / 2), ("turns", 0.25), ("quarters", 1.0)]
    )
    def test_whole_turns_have_no_effect(self, unit: str, right_angle: float) -> None:
        angle = Angle("yaw", unit)
        for turns in (-400, -4, 0, 4, 400):
            assert angle.encode(np.array([right_angle * (1 + turns)])).tolist() == [0, 1]
            assert angle.encode(np.array([right_angle * (2 + turns)])).tolist() == [-1, 0]

    def test_the_vector_is_continuous_at_a_jump_of_the_angle(self) -> None:
        angle = Angle("yaw", "deg")
        step = np.abs(angle.encode(np.array([359.9])) - angle.encode(np.array([0.1]))).max()
        assert 0 < step < 0.004

    def test_interpolation_takes_the_shorter_way(self) -> None:
        angle = Angle("yaw", "deg")
        middle = angle.between(np.array([350.0]), np.array([20.0]), 0.5)
        np.testing.assert_allclose(angle.encode(middle), [np.cos(np.deg2rad(5)), np.sin(np.deg2rad(5))], atol=1e-12)
        middle = angle.between(np.array([20.0]), np.array([-370.0]), 1 / 3)
        np.testing.assert_allclose(angle.encode(middle), [np.cos(np.deg2rad(10)), np.sin(np.deg2rad(10))], atol=1e-12)


class TestQuaternions:
    def test_the_columns_of_the_rotation(self) -> None:
        q = Quaternion("q").encode(quaternion([0, 0, 1], 90))  # x becomes y, y becomes -x
        np.testing.assert_allclose(q, [0, 1, 0, -1, 0, 0], atol=1e-12)
        q = Quaternion("q").encode(quaternion([1, 0, 0], 90))  # x is unchanged, y becomes z
        np.testing.assert_allclose(q, [1, 0, 0, 0, 0, 1], atol=1e-12)

    def test_signs_lengths_and_orders_are_one_orientation(self) -> None:
        for degrees in (10, 179.9, 180, 300):
            given = quaternion([1, 2, -3], degrees)
            expected = Quaternion("q").encode(given)
            assert Quaternion("q").encode(-given).tolist() == expected.tolist()
            assert Quaternion("q").encode(1.02 * given).tolist() == expected.tolist()
            assert Quaternion("q", "wxyz").encode(np.roll(given, 1)).tolist() == expected.tolist()

    def test_a_whole_turn_is_continuous_and_closed(self) -> None:
        turns = [Quaternion("q").encode(quaternion([1, 2, -3], degrees)) for degrees in range(0, 721)]
        steps = np.abs(np.diff(turns, axis=0)).max(1)
        assert 0.001 < steps.min() <= steps.max() < 0.02
        np.testing.assert_allclose(turns[0], turns[360], atol=1e-12)

    def test_slerp_of_a_quarter(self) -> None:
        part = Quaternion("q")
        middle = part.between(quaternion([0, 1, 0], 10), -quaternion([0, 1, 0], 110), 0.25)
        np.testing.assert_allclose(part.encode(middle), part.encode(quaternion([0, 1, 0], 35)), atol=1e-9)
        same = quaternion([0, 1, 0], 10)
        np.testing.assert_allclose(part.between(same, -same, 0.7), same, atol=1e-12)

    def test_invalid_values(self) -> None:
        assert "length of 0, not 1" in str(Quaternion("q").fault(np.zeros(4)))
        assert Quaternion("q").fault(np.array([0, 0, 0, 0.999])) is None


def test_kitti_and_a_quaternion_agree() -> None:
    q = quaternion([2, -1, 1], 50)
    x, y, z, w = q
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    row = np.concatenate([rotation, [[4.0], [5.0], [6.0]]], axis=1).ravel()
    pose = Form([Rigid()]).encode(row)
    np.testing.assert_allclose(pose, [4, 5, 6, *Quaternion("q").encode(q)], atol=1e-12)
    assert Rigid().fault(row) is None
    assert "no rotation" in str(Rigid().fault(np.ones(12)))
    mirror = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1.0, 0]]).ravel()
    assert "no rotation" in str(Rigid().fault(mirror))


class TestForms:
    def test_parts_in_their_order(self) -> None:
        form = Form([Number("x"), Quaternion("q"), Angle("pan", "deg"), Number("zoom")])
        pose = form.encode(np.array([7, 0, 0, 0, 1, 90, 3.0]))
        assert pose.tolist() == [7, 1, 0, 0, 0, 1, 0, 0, 1, 3]
        assert form.names[0] == "x"
        assert form.names[-3:] == ("cos pan", "sin pan", "zoom")
        assert form.directions == (1, 2, 3, 4, 5, 6, 7, 8)
        assert Form([Number("a"), Rigid()]).directions == (4, 5, 6, 7, 8, 9)

    def test_at_most_64_numbers(self) -> None:
        assert len(Form([Angle(str(i), "deg") for i in range(32)]).names) == 64
        with pytest.raises(SourceError, match="66 numbers"):
            Form([Angle(str(i), "deg") for i in range(33)])


class TestUnits:
    @pytest.mark.parametrize(
        ("name", "unit"),
        [
            *(("yaw_deg", "deg"), ("Heading [degrees]", "deg"), ("heading_rad", "rad"), ("roll.radians", "rad")),
            *(("x", "number"), ("pandas", "number"), ("lat_deg", "number"), ("yaw_rate_deg", "number")),
            *(("yawDeg", "deg"), ("headingRad", "rad"), ("yawRate", "number"), ("posX", "number")),
        ],
    )
    def test_by_name(self, name: str, unit: str) -> None:
        assert unit_of(name) == unit

    @pytest.mark.parametrize("name", ["yaw", "agent.dir", "camera_tilt", "Theta", "gimbalYaw"])
    def test_an_angle_without_a_unit_is_refused_unless_declared(self, name: str) -> None:
        with pytest.raises(SourceError, match=f"{name} seems to be an angle.*:deg"):
            unit_of(name)
        assert unit_of(name, "rad") == "rad"
        assert unit_of(name, "number") == "number"

    def test_declared(self) -> None:
        assert declared("x, yaw:deg ,a.b[2]:radians") == [("x", None), ("yaw", "deg"), ("a.b[2]", "rad")]
        for wrong in ("x,,y", "x:", "x:feet", ""):
            with pytest.raises(SourceError, match="NAME:UNIT"):
                declared(wrong)
