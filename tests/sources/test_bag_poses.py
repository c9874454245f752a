"""Poses in ROS 2 bags: kinds of message, clocks, tolerances."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import numpy as np
import pytest

from tttstream import open_source
from tttstream.errors import SourceError

pytest.importorskip("mcap_ros2", reason="needs the extra robots")
from tests.sources.bags import START, Message, S, by_log, header, image, images, picture_of, pose, poses, write


def test_poses_are_matched_by_time(tmp_path: Path) -> None:
    """Poses at other moments, written down late: interpolated by the stamps of both headers."""
    moments = [0.03 + 0.05 * n for n in range(8)]
    path = write(tmp_path / "a.mcap", by_log([*images(5), *poses(moments, late=3 * S)]))
    source = open_source(path, pose="/pose")
    frames = list(source)
    assert [round(frame.time_s, 6) for frame in frames] == [0.0, 0.1, 0.2, 0.3, 0.4]  # 0 and 0.4 within a step
    for frame, t in zip(frames[1:4], (0.1, 0.2, 0.3), strict=True):
        np.testing.assert_allclose(frame.pose[:3], [t, 2 * t, 0.0], atol=1e-6)
        np.testing.assert_allclose(frame.pose[3:], [np.cos(t), np.sin(t), 0, -np.sin(t), np.cos(t), 0], atol=1e-4)
    tight = open_source(path, pose="/pose", pose_tolerance=0.02)
    assert [round(frame.time_s, 6) for frame in tight] == [0.1, 0.2, 0.3, 0.4]
    assert tight.unposed == 1
    with pytest.raises(SourceError, match=r"more than the tolerance of 0\.02 s"):
        list(open_source(path, pose="/pose", pose_tolerance=0.02, on_error="raise"))


def test_poses_of_some_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", by_log([*images(3), *poses([0, 0.1, 0.2])]))
    for frame, t in zip(open_source(path, pose="/pose:x,yaw"), (0, 0.1, 0.2), strict=True):
        np.testing.assert_allclose(frame.pose, [t, np.cos(t), np.sin(t)], atol=1e-6)
    for spec in ("/pose:x,w", "/pose:x,x", "/po se"):
        with pytest.raises(SourceError, match="for a bag expected TOPIC"):
            open_source(path, pose=spec)
    with pytest.raises(SourceError, match="which has no poses; it contains"):
        open_source(path, pose="/camera/image")
    with pytest.raises(SourceError, match="leave out the @"):
        open_source(path, pose="/pose@base")


def stamped(t: float, x: float, kind: str) -> Message:
    """A pose at x, written at t seconds, as a message of a kind."""
    at = START + round(t * S)
    covered = Made(pose=pose(x), covariance=[0.0] * 36)
    moved = Made(translation=Made(x=x, y=0.0, z=0.0), rotation=Made(x=0.0, y=0.0, z=0.0, w=1.0))
    messages: dict[str, Callable[[], Any]] = {
        "geometry_msgs/msg/PoseWithCovarianceStamped": lambda: Made(header=header(at), pose=covered),
        "geometry_msgs/msg/TransformStamped": lambda: Made(header=header(at), child_frame_id="base", transform=moved),
        "nav_msgs/msg/Odometry": lambda: Made(header=header(at), child_frame_id="base", pose=covered),
    }
    return "/where", kind, at + S // 5, messages[kind]()


@pytest.mark.parametrize("clock", ["header", "log"])
@pytest.mark.parametrize("kind", ["PoseWithCovarianceStamped", "TransformStamped", "Odometry"])
def test_kinds_of_poses(tmp_path: Path, kind: str, clock: str) -> None:
    """Poses are written 0.2 s late, images 0.02 s: by the log a frame has the pose of 0.18 s before it."""
    package = "nav_msgs" if kind == "Odometry" else "geometry_msgs"
    known = [stamped(t / 10, 3 * t / 10, f"{package}/msg/{kind}") for t in range(-2, 4)]
    path = write(tmp_path / "a.mcap", by_log([*images(3), *known]))
    behind = 0.0 if clock == "header" else 0.18
    source = open_source(path, pose="/where:x,y,yaw", clock=clock)
    found = [frame.pose for frame in source]
    assert kind in source.about
    assert [pose[0] for pose in found] == pytest.approx([3 * (t - behind) for t in (0, 0.1, 0.2)], abs=1e-5)
    expected = 0.0 if kind == "TransformStamped" else 2.0
    assert [pose[1] for pose in found] == pytest.approx([expected * pose[0] for pose in found], abs=1e-5)
    with pytest.raises(SourceError, match=rf"/where of a.mcap is {package}/msg/{kind}: leave out the @"):
        open_source(path, pose="/where@base")


def test_trees_of_transforms(tmp_path: Path) -> None:
    def branches(t: float) -> Message:
        parts = []
        for child, x in (("wheel", 9.0), ("base", 3 * t)):
            part = stamped(t, x, "geometry_msgs/msg/TransformStamped")[3]
            part.child_frame_id = child
            parts.append(part)
        return "/tf", "tf2_msgs/msg/TFMessage", START + round(t * S), Made(transforms=parts)

    path = write(tmp_path / "a.mcap", by_log([*images(3), *(branches(t / 10) for t in range(3))]))
    assert [frame.pose[0] for frame in open_source(path, pose="/tf@base")] == pytest.approx([0, 0.3, 0.6], abs=1e-6)
    with pytest.raises(SourceError, match="name the frame of the pose, /tf@FRAME; it has base, wheel"):
        open_source(path, pose="/tf")
    with pytest.raises(SourceError, match="has no pose of arm; it has base, wheel"):
        open_source(path, pose="/tf@arm")


def test_two_clocks_that_do_not_meet(tmp_path: Path) -> None:
    """A camera whose times count from its start, with poses in absolute time: refused, with advice."""
    other = [
        (t, k, log, image(picture_of(n), stamp=S * 50 + n * S // 10)) for n, (t, k, log, _) in enumerate(images(3))
    ]
    path = write(tmp_path / "a.mcap", by_log([*other, *poses([0, 0.1, 0.2, 0.3])]))
    with pytest.raises(SourceError, match=r"both use the clock header; try --clock log"):
        open_source(path, pose="/pose")
    frames = list(open_source(path, pose="/pose:x", clock="log"))
    assert [frame.pose[0] for frame in frames] == pytest.approx([0.02, 0.12, 0.22], abs=1e-6)


def test_poses_without_an_orientation_are_left_out(tmp_path: Path) -> None:
    bad = poses([0.1])[0]
    bad[3].pose.orientation = Made(x=0.0, y=0.0, z=0.0, w=0.0)
    path = write(tmp_path / "a.mcap", by_log([*images(3), *poses([0, 0.2]), bad]))
    assert "1 of 3 rows left out" in open_source(path, pose="/pose").about
    with pytest.raises(SourceError, match="quaternion"):
        open_source(path, pose="/pose", on_error="raise")


def test_a_file_of_poses_uses_the_same_clock(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", images(3))
    rows = tmp_path / "poses.csv"
    rows.write_text("timestamp,x\n" + "".join(f"{START / S + n / 10:.3f},{n}\n" for n in range(3)))
    assert [frame.pose[0] for frame in open_source(path, poses=rows)] == pytest.approx([0, 1, 2], abs=1e-5)
    both = write(tmp_path / "b.mcap", by_log([*images(3), *poses([0, 0.1])]))
    with pytest.raises(SourceError, match="has no column '/pose'"):
        open_source(both, poses=rows, pose="/pose")
