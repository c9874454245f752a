"""Reads the poses of a topic of a bag as a Track."""

import math
import re
from typing import Any, NamedTuple

import numpy as np

from tttstream.errors import SourceError
from tttstream.poses import Angle, Form, Number, Part, Quaternion, Track
from tttstream.sources.robots.recording import Recording, Stamped

TREE = "tf2_msgs/msg/TFMessage"
POSES = frozenset(
    {
        "geometry_msgs/msg/PoseStamped",
        "geometry_msgs/msg/PoseWithCovarianceStamped",
        "geometry_msgs/msg/TransformStamped",
        "nav_msgs/msg/Odometry",
        TREE,
    }
)
KEYS = ("x", "y", "z", "q", "yaw")


class Wanted(NamedTuple):
    """topic: of the poses. child: the frame whose transform is the pose, in a tree of transforms. keys: some of
    KEYS."""

    topic: str
    child: str | None
    keys: tuple[str, ...]


def wanted(text: str) -> Wanted:
    """Parse TOPIC, or TOPIC@FRAME for a tree of transforms, each with an optional suffix such as :x,y,yaw (default
    x,y,z,q). Raises SourceError for other text."""
    found = re.fullmatch(r"(/?[\w/~{}-]+)(?:@([^:]+))?(?::([\w,]+))?", text)
    keys = tuple((found[3] if found and found[3] else "x,y,z,q").split(","))
    if found is None or not set(keys) <= set(KEYS) or len(set(keys)) < len(keys):
        raise SourceError(
            f"--pose {text!r}: for a bag expected TOPIC, TOPIC:x,y,yaw (some of {', '.join(KEYS)}), or TOPIC@FRAME of "
            "a "
            "topic of transforms"
        )
    return Wanted(found[1], found[2], keys)


def track(
    recording: Recording, spec: str, *, clock: str, tolerance: float | None = None, on_error: str = "skip"
) -> Track:
    """All poses of a topic, with the times in their headers (clock="header") or of their recording ("log").

    Raises SourceError if the topic has no poses, or none that can be used.
    """
    asked = wanted(spec)
    topic = recording.find(asked.topic, POSES, "poses")
    if (topic.kind == TREE) != (asked.child is not None):
        frames = ", ".join(sorted(_children(recording, topic.name))[:8]) if topic.kind == TREE else ""
        how = f"name the frame of the pose, {topic.name}@FRAME; it has {frames}" if frames else "leave out the @"
        raise SourceError(f"{topic.name} of {recording.path.name} is {topic.kind}: {how}")
    times: list[float] = []
    rows: list[list[float]] = []
    for stamped in recording.messages(topic.name):
        if stamped is None:
            continue
        for pose in _of(stamped, asked.child):
            times.append((stamped.log if clock == "log" else pose[0]) / 1e9)
            rows.append(_numbers(pose[1], pose[2], asked.keys))
    if not rows:
        frames = ", ".join(sorted(_children(recording, topic.name))[:8]) if topic.kind == TREE else "no message"
        raise SourceError(f"{topic.name} of {recording.path.name} has no pose of {asked.child}; it has {frames}")
    kind = topic.kind.rpartition("/")[2]
    return Track.timed(
        topic.name, np.array(times), np.array(rows), form(asked.keys), kind=kind, tolerance=tolerance, on_error=on_error
    )


def _of(stamped: Stamped, child: str | None) -> list[tuple[int, Any, Any]]:
    """(stamp in nanoseconds, position, orientation) of each pose in a message."""
    message = stamped.message
    if hasattr(message, "transforms"):
        return [pose for part in message.transforms if part.child_frame_id == child for pose in _transform(part)]
    if hasattr(message, "transform"):
        return _transform(message)
    pose = message.pose.pose if hasattr(message.pose, "pose") else message.pose
    return [(stamped.header, pose.position, pose.orientation)]


def _transform(part: Any) -> list[tuple[int, Any, Any]]:
    stamp = part.header.stamp
    moment = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
    return [(moment, part.transform.translation, part.transform.rotation)]


def _children(recording: Recording, topic: str) -> set[str]:
    found = (stamped.message for stamped in recording.messages(topic) if stamped is not None)
    return {part.child_frame_id for message in found for part in message.transforms}


def _numbers(position: Any, orientation: Any, keys: tuple[str, ...]) -> list[float]:
    x, y, z, w = (float(getattr(orientation, axis)) for axis in "xyzw")
    values = {
        **{axis: [float(getattr(position, axis))] for axis in "xyz"},
        "q": [x, y, z, w],
        "yaw": [math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))],
    }
    return [number for key in keys for number in values[key]]


def form(keys: tuple[str, ...]) -> Form:
    """The form of the poses with these keys."""
    parts: dict[str, Part] = {"q": Quaternion("q"), "yaw": Angle("yaw", "rad")}
    return Form([parts.get(key) or Number(key) for key in keys])
