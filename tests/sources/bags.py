"""Bags of ROS 2 that the tests write: their messages, by kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import numpy as np
from mcap_ros2.writer import Writer
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
S = 1_000_000_000
START = 1_700_000_000 * S

FIELDS = {
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
    "geometry_msgs/Point": "float64 x\nfloat64 y\nfloat64 z",
    "geometry_msgs/Pose": "geometry_msgs/Point position\ngeometry_msgs/Quaternion orientation",
    "geometry_msgs/PoseStamped": "std_msgs/Header header\ngeometry_msgs/Pose pose",
    "geometry_msgs/PoseWithCovariance": "geometry_msgs/Pose pose\nfloat64[36] covariance",
    "geometry_msgs/PoseWithCovarianceStamped": "std_msgs/Header header\ngeometry_msgs/PoseWithCovariance pose",
    "geometry_msgs/Quaternion": "float64 x\nfloat64 y\nfloat64 z\nfloat64 w",
    "geometry_msgs/Transform": "geometry_msgs/Vector3 translation\ngeometry_msgs/Quaternion rotation",
    "geometry_msgs/TransformStamped": "std_msgs/Header header\nstring child_frame_id\n"
    "geometry_msgs/Transform transform",
    "geometry_msgs/Vector3": "float64 x\nfloat64 y\nfloat64 z",
    "nav_msgs/Odometry": "std_msgs/Header header\nstring child_frame_id\ngeometry_msgs/PoseWithCovariance pose",
    "sensor_msgs/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data",
    "sensor_msgs/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\n"
    "uint32 step\nuint8[] data",
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "std_msgs/String": "string data",
    "tf2_msgs/TFMessage": "geometry_msgs/TransformStamped[] transforms",
}
"""The fields of each kind of message; some are of another kind."""

Message = tuple[str, str, int, Any]
"""Topic, kind, when it is written in nanoseconds, the message."""


def parts(kind: str) -> Iterator[str]:
    """The kinds of message that a kind is made of, itself first."""
    yield kind
    for field in FIELDS[kind].splitlines():
        inner = field.split()[0].removesuffix("[]")
        if inner in FIELDS:
            yield from parts(inner)


def definition(kind: str) -> str:
    """The fields of a kind, such as std_msgs/msg/Header, and those of its parts, as a bag holds them."""
    first, *inner = dict.fromkeys(parts(kind.replace("/msg/", "/")))
    return "\n".join([FIELDS[first], *(f"{'=' * 80}\nMSG: {part}\n{FIELDS[part]}" for part in inner)])


def write(path: Path, messages: Iterable[Message], **options: Any) -> Path:
    """A bag."""
    with open(path, "wb") as file:
        writer = Writer(file, **options)
        schemas = {}
        for topic, kind, log, message in messages:
            if kind not in schemas:
                schemas[kind] = writer.register_msgdef(kind, definition(kind))
            writer.write_message(topic, schemas[kind], message, log, log)
        writer.finish()
    return path


def header(stamp: int) -> Any:
    return Made(stamp=Made(sec=stamp // S, nanosec=stamp % S), frame_id="camera")


def picture_of(number: int, height: int = 6, width: int = 8) -> Pixels:
    """Another one for each number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(
    pixels: NDArray[Any], encoding: str = "rgb8", stamp: int = START, pad: int = 0, big: bool = False, junk: int = 7
) -> Any:
    """An Image whose rows have `pad` bytes of junk behind their pixels."""
    order = ">" if big else "<"
    rows = pixels.astype(pixels.dtype.newbyteorder(order)).reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.concatenate([rows, np.full((len(rows), pad), junk, np.uint8)], 1)
    return Made(
        header=header(stamp), height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, is_bigendian=int(big),
        step=rows.shape[1], data=rows.tobytes(),
    )  # fmt: skip


def images(count: int, *, every: int = S // 10, late: int = S // 50, topic: str = "/camera/image") -> list[Message]:
    """Pictures 0.1 s apart by their headers, written 0.02 s later."""
    stamps = [START + number * every for number in range(count)]
    kind = "sensor_msgs/msg/Image"
    return [(topic, kind, at + late, image(picture_of(n), stamp=at)) for n, at in enumerate(stamps)]


def pose(x: float, yaw: float = 0.0) -> Any:
    return Made(
        position=Made(x=x, y=2 * x, z=0.0), orientation=Made(x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2))
    )


def poses(moments: Iterable[float], *, topic: str = "/pose", late: int = 0) -> list[Message]:
    """x is the time in seconds; y twice that."""
    stamps = [(t, START + round(t * S)) for t in moments]
    kind = "geometry_msgs/msg/PoseStamped"
    return [(topic, kind, at + late, Made(header=header(at), pose=pose(t, t))) for t, at in stamps]


def by_log(messages: Iterable[Message]) -> list[Message]:
    """Messages in the order in which they are written."""
    return sorted(messages, key=lambda message: message[2])
