"""ROS 2 bags as sources: encodings, rows, byte orders, clocks, poses, damage. The bags are written by the tests."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace as Made
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream import open_source
from tttstream.cli.main import main
from tttstream.errors import SourceError
from tttstream.sources.listing import expand

pytest.importorskip("mcap_ros2", reason="needs the extra robots")
from mcap_ros2.writer import Writer

from tttstream.sources.robots.bag import Bag
from tttstream.sources.robots.images import picture

Pixels = NDArray[np.uint8]
S = 1_000_000_000
START = 1_700_000_000 * S
HEADER = """
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
POSE = """
================================================================================
MSG: geometry_msgs/Pose
geometry_msgs/Point position
geometry_msgs/Quaternion orientation
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
TRANSFORM = """
================================================================================
MSG: geometry_msgs/TransformStamped
std_msgs/Header header
string child_frame_id
geometry_msgs/Transform transform
================================================================================
MSG: geometry_msgs/Transform
geometry_msgs/Vector3 translation
geometry_msgs/Quaternion rotation
================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
"""
KINDS = {
    "sensor_msgs/msg/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\n"
    "uint8 is_bigendian\nuint32 step\nuint8[] data" + HEADER,
    "sensor_msgs/msg/CompressedImage": "std_msgs/Header header\nstring format\nuint8[] data" + HEADER,
    "geometry_msgs/msg/PoseStamped": "std_msgs/Header header\ngeometry_msgs/Pose pose" + HEADER + POSE,
    "nav_msgs/msg/Odometry": "std_msgs/Header header\nstring child_frame_id\ngeometry_msgs/PoseWithCovariance pose"
    + HEADER
    + "================================================================================\n"
    "MSG: geometry_msgs/PoseWithCovariance\ngeometry_msgs/Pose pose\nfloat64[36] covariance" + POSE,
    "tf2_msgs/msg/TFMessage": "geometry_msgs/TransformStamped[] transforms" + TRANSFORM + HEADER,
    "std_msgs/msg/String": "string data",
}
Message = tuple[str, str, int, Any]  # topic, kind, when it is written in nanoseconds, the message


def write(path: Path, messages: Iterable[Message], **options: Any) -> Path:
    """A bag."""
    with open(path, "wb") as file:
        writer = Writer(file, **options)
        schemas = {}
        for topic, kind, log, message in messages:
            if kind not in schemas:
                schemas[kind] = writer.register_msgdef(kind, KINDS[kind])
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
    return sorted(messages, key=lambda message: message[2])


def test_frames_and_their_times(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", images(5))
    with open_source(path) as source:
        frames = list(source)
        assert source.name == "a.mcap:/camera/image"
        assert (source.frames, source.skipped, source.truncated) == (5, 0, False)
        assert source.fps == pytest.approx(10)
        assert source.origin == START / S
        assert "by the headers" in source.about
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, picture_of(number))


def converted(encoding: str, pixels: Pixels) -> tuple[NDArray[Any], Pixels]:
    """RGB in an encoding, and what it has to become again."""
    grey = pixels[..., 0]
    ways: dict[str, Callable[[], tuple[NDArray[Any], Pixels]]] = {
        "rgb8": lambda: (pixels, pixels),
        "bgr8": lambda: (pixels[..., ::-1], pixels),
        "rgba8": lambda: (np.dstack([pixels, grey]), pixels),
        "bgra8": lambda: (np.dstack([pixels[..., ::-1], grey]), pixels),
        "mono8": lambda: (grey, np.dstack([grey] * 3)),
        "8UC1": lambda: (grey, np.dstack([grey] * 3)),
        "mono16": lambda: (grey.astype(np.uint16) * 256 + 17, np.dstack([grey] * 3)),
        "16UC1": lambda: (grey.astype(np.uint16) * 256 + 200, np.dstack([grey] * 3)),
        "32FC1": lambda: ((grey / 255).astype(np.float32), np.dstack([grey] * 3)),
    }
    return ways[encoding]()


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8", "mono8", "8UC1", "mono16", "16UC1", "32FC1"])
def test_encodings(encoding: str, big: bool, pad: int) -> None:
    stored, expected = converted(encoding, picture_of(1, 5, 7))
    np.testing.assert_array_equal(picture(image(np.ascontiguousarray(stored), encoding, pad=pad, big=big)), expected)


@pytest.mark.parametrize(
    ("encoding", "layout"),
    [("bayer_rggb8", "RGGB"), ("bayer_bggr8", "BGGR"), ("bayer_gbrg8", "GBRG"), ("bayer_grbg8", "GRBG")],
)
def test_mosaics(encoding: str, layout: str) -> None:
    colour = np.array([220, 120, 40], np.uint8)
    mosaic = np.zeros((12, 12), np.uint8)
    for place, name in enumerate(layout):
        mosaic[place // 2 :: 2, place % 2 :: 2] = colour["RGB".index(name)]
    np.testing.assert_array_equal(picture(image(mosaic, encoding))[4:8, 4:8], np.broadcast_to(colour, (4, 4, 3)))


@pytest.mark.parametrize(("encoding", "places"), [("yuv422", (1, 3, 0, 2)), ("yuv422_yuy2", (0, 2, 1, 3))])
def test_colours_in_pairs(encoding: str, places: tuple[int, ...]) -> None:
    luma, blue, other = 82, 90, 240  # pure red by BT.601
    row = np.zeros((2, 2, 4), np.uint8)
    row[..., places[0]] = row[..., places[1]] = luma
    row[..., places[2]], row[..., places[3]] = blue, other
    message = image(row.reshape(2, 8), encoding)
    message.width = 4
    assert np.abs(picture(message).astype(int) - [255, 0, 0]).max() < 4
    message.width = 3
    with pytest.raises(ValueError, match="in pairs"):
        picture(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "8UC3"}, "its encoding is '8UC3', expected one of rgb8, bgr8"),
        ({"step": 23}, r"8×6 pixels of rgb8 need rows of 24 bytes, and it has 144 bytes in rows of 23"),
        ({"data": b"\0" * 143}, "143 bytes in rows of 24"),
        ({"width": 0}, "it is 0×6 pixels"),
    ],
)
def test_images_that_are_none(change: dict[str, Any], message: str) -> None:
    bad = image(picture_of(0))
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(ValueError, match=message):
        picture(bad)


def test_dark_sixteen_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="its values go from 200 to 200"):
        picture(image(np.full((4, 4), 200, np.uint16), "mono16"))


def encoded(pixels: Pixels, suffix: str = ".png") -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 98] if suffix == ".jpg" else []
    return cv2.imencode(suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels, options)[1].tobytes()


@pytest.mark.parametrize(
    ("suffix", "kind", "swap"),
    [
        (".png", "png", False),
        (".png", "rgb8; png compressed bgr8", False),
        (".png", "rgb8; png compressed rgb8", True),
        (".jpg", "jpeg", False),
        (".jpg", "bgr8; jpeg compressed bgr8", False),
    ],
)
def test_compressed(suffix: str, kind: str, swap: bool) -> None:
    pixels = cv2.resize(picture_of(3, 4, 4), (32, 24), interpolation=cv2.INTER_CUBIC)
    stored = pixels[..., ::-1] if swap else pixels
    found = picture(Made(format=kind, data=encoded(stored, suffix)))
    assert np.abs(found.astype(int) - pixels).max() <= (0 if suffix == ".png" else 30)


def test_compressed_greys() -> None:
    grey = picture_of(3)[..., 0]
    np.testing.assert_array_equal(picture(Made(format="png", data=encoded(grey))), np.dstack([grey] * 3))
    deep = grey.astype(np.uint16) * 256
    found = picture(Made(format="16UC1; png compressed ", data=encoded(deep)))
    np.testing.assert_array_equal(found, np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("jpeg", encoded(picture_of(0), ".jpg")[:-40], "its JPEG is cut off"),
        ("16UC1; compressedDepth png", b"x", "depth of its own kind"),
        ("h264", b"\0\0\0\1x", "neither JPEG nor PNG"),
        ("png", encoded(picture_of(0))[:30], "cannot be decoded"),
    ],
)
def test_compressed_images_that_are_none(kind: str, data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture(Made(format=kind, data=data))


def test_a_topic_is_chosen(tmp_path: Path) -> None:
    text = ("/said", "std_msgs/msg/String", START, Made(data="hello"))
    path = write(tmp_path / "a.mcap", by_log([*images(2), *images(3, topic="/other"), text]))
    with pytest.raises(
        SourceError, match=r"which topic has the images\? It holds /camera/image \(sensor_msgs/msg/Image\), /other"
    ):
        open_source(path)
    assert open_source(path, topic="/other").frames == 3
    with pytest.raises(SourceError, match="has no topic /none; it holds /camera/image"):
        open_source(path, topic="/none")
    with pytest.raises(SourceError, match=r"/said of a\.mcap is std_msgs/msg/String, which has no images"):
        open_source(path, topic="/said")


def test_clocks(tmp_path: Path) -> None:
    """Headers 0.1 s apart, written in bursts: the two clocks tell other times."""
    bursts = [(t, k, START + S * (n // 3), m) for n, (t, k, _, m) in enumerate(images(6))]
    path = write(tmp_path / "a.mcap", bursts)
    assert [f.time_s for f in open_source(path)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    source = open_source(path, clock="log")
    assert [f.time_s for f in source] == [0, 1]
    assert source.skipped == 4
    assert "4 images were not later than those before them: does --clock header fit better?" in source.remarks()
    with pytest.raises(SourceError, match=r"message 1: its log says 1700000000\.000000 s, not after"):
        list(open_source(path, clock="log", on_error="raise"))
    blank = [(t, k, log, image(picture_of(n), stamp=0)) for n, (t, k, log, _) in enumerate(images(3))]
    source = open_source(write(tmp_path / "b.mcap", blank))
    assert [f.time_s for f in source] == pytest.approx([0, 0.1, 0.2])
    assert "times by the log, since the first header has none" in source.about
    with pytest.raises(SourceError, match="expected header or log"):
        open_source(path, clock="sun")


def test_missing_messages_leave_a_gap(tmp_path: Path) -> None:
    kept = [message for number, message in enumerate(images(6)) if number not in (2, 3)]
    frames = list(open_source(write(tmp_path / "a.mcap", kept)))
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.4, 0.5])
    np.testing.assert_array_equal(frames[2].image, picture_of(4))


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
        with pytest.raises(SourceError, match="of a bag expected TOPIC"):
            open_source(path, pose=spec)
    with pytest.raises(SourceError, match="which has no poses here"):
        open_source(path, pose="/camera/image")
    with pytest.raises(SourceError, match="leave out the @"):
        open_source(path, pose="/pose@base")


def test_odometry_and_transforms(tmp_path: Path) -> None:
    stamps = [(t, START + round(t * S)) for t in (0, 0.1, 0.2)]

    def moved(t: float, at: int) -> Any:
        where = Made(pose=pose(t), covariance=[0.0] * 36)
        return Made(header=header(at), child_frame_id="base", pose=where)

    odometry = [("/odom", "nav_msgs/msg/Odometry", at, moved(t, at)) for t, at in stamps]

    def transform(child: str, x: float, at: int) -> Any:
        where = Made(translation=Made(x=x, y=0.0, z=0.0), rotation=Made(x=0.0, y=0.0, z=0.0, w=1.0))
        return Made(header=header(at), child_frame_id=child, transform=where)

    def branches(t: float, at: int) -> Any:
        return Made(transforms=[transform("wheel", 9.0, at), transform("base", 3 * t, at)])

    tree = [("/tf", "tf2_msgs/msg/TFMessage", at, branches(t, at)) for t, at in stamps]
    path = write(tmp_path / "a.mcap", by_log([*images(3), *odometry, *tree]))
    assert [frame.pose[0] for frame in open_source(path, pose="/odom:x,y")] == pytest.approx([0, 0.1, 0.2], abs=1e-6)
    assert [frame.pose[0] for frame in open_source(path, pose="/tf@base")] == pytest.approx([0, 0.3, 0.6], abs=1e-6)
    with pytest.raises(SourceError, match="say the pose of which frame, /tf@FRAME; it has base, wheel"):
        open_source(path, pose="/tf")
    with pytest.raises(SourceError, match="has no pose of arm; it has base, wheel"):
        open_source(path, pose="/tf@arm")


def test_two_clocks_that_do_not_meet(tmp_path: Path) -> None:
    """A camera that counts from its start, and poses of the day: refused, with what helps."""
    other = [
        (t, k, log, image(picture_of(n), stamp=S * 50 + n * S // 10)) for n, (t, k, log, _) in enumerate(images(3))
    ]
    path = write(tmp_path / "a.mcap", by_log([*other, *poses([0, 0.1, 0.2, 0.3])]))
    with pytest.raises(SourceError, match=r"both go by the header; --clock log may fit"):
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


def test_a_file_of_poses_goes_by_the_same_clock(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", images(3))
    rows = tmp_path / "poses.csv"
    rows.write_text("timestamp,x\n" + "".join(f"{START / S + n / 10:.3f},{n}\n" for n in range(3)))
    assert [frame.pose[0] for frame in open_source(path, poses=rows)] == pytest.approx([0, 1, 2], abs=1e-5)
    both = write(tmp_path / "b.mcap", by_log([*images(3), *poses([0, 0.1])]))
    with pytest.raises(SourceError, match="has no column '/pose'"):
        open_source(both, poses=rows, pose="/pose")


def test_goes_on_where_it_stood(tmp_path: Path) -> None:
    mixed = images(8)
    mixed[3] = (*mixed[3][:3], image(picture_of(3), "odd", stamp=START + 3 * S // 10))
    path = write(tmp_path / "a.mcap", by_log([*mixed, *poses([n / 10 for n in range(8)])]))
    for options in ({}, {"pose": "/pose"}):
        whole = list(open_source(path, **options))
        source = open_source(path, **options)
        frames = iter(source)
        for _ in range(4):
            next(frames)
        position = source.position()
        again = open_source(path, **options)
        again.seek(position)
        rest = list(again)
        assert [frame.index for frame in rest] == [4, 5, 6]
        assert again.skipped == 1
        for frame, true in zip(rest, whole[4:], strict=True):
            np.testing.assert_array_equal(frame.image, true.image)
            assert frame.time_s == true.time_s
    with pytest.raises(SourceError, match="goes by another clock"):
        open_source(path, clock="log").seek(position)


def test_a_bag_that_was_cut_off(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mcap", images(40), chunk_size=1000).read_bytes()
    path = tmp_path / "cut.mcap"
    path.write_bytes(whole[: len(whole) // 2])
    source = open_source(path)
    frames = list(source)
    assert 5 < len(frames) < 35
    assert source.truncated
    assert any("damaged or cut off" in remark for remark in source.remarks())
    np.testing.assert_array_equal(frames[4].image, picture_of(4))
    with pytest.raises(SourceError, match="damaged or cut off"):
        list(open_source(path, on_error="raise"))


def test_a_damaged_chunk_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mcap", images(40), chunk_size=1000)
    data = bytearray(path.read_bytes())
    at = data.find(picture_of(20).tobytes()[:16])
    if at < 0:  # it is compressed
        at = len(data) // 3
    data[at + 3] ^= 0xFF
    path.write_bytes(data)
    source = open_source(path)
    frames = list(source)
    assert source.truncated
    assert len(frames) < 40
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.image, picture_of(number))


def test_folders_of_rosbag2(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    everything = images(6)
    write(folder / "run_0.mcap", everything[:2])
    write(folder / "run_1.mcap", everything[2:])
    assert expand([folder]) == [str(folder)]
    source = open_source(folder)
    assert [round(frame.time_s, 6) for frame in source] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert source.frames == 6
    old = tmp_path / "old"
    old.mkdir()
    (old / "metadata.yaml").write_text("rosbag2_bagfile_information: {}\n")
    (old / "old_0.db3").write_bytes(b"SQLite format 3\0")
    for spec in (old, old / "old_0.db3"):
        with pytest.raises(SourceError, match=r"old_0\.db3 is a bag in sqlite3.*`mcap convert old_0\.db3 old_0\.mcap`"):
            open_source(spec)


def test_what_is_no_bag(tmp_path: Path) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(b"hello world, hello")
    with pytest.raises(SourceError, match="is no bag in mcap"):
        open_source(path)
    with pytest.raises(SourceError, match="which topic has the images"):
        open_source(write(tmp_path / "b.mcap", []))
    with pytest.raises(SourceError, match="--topic and --clock are for bags"):
        open_source("walk", topic="/camera")


def test_no_image_can_be_read(tmp_path: Path) -> None:
    odd = [(t, k, log, image(picture_of(n), "odd", stamp=log)) for n, (t, k, log, _) in enumerate(images(3))]
    with pytest.raises(SourceError, match=r"not one of 3 images .* message 0: its encoding is 'odd'"):
        list(Bag(write(tmp_path / "a.mcap", odd)))


def test_watch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.mcap", by_log([*images(4), *images(4, topic="/b")]))
    out = tmp_path / "out"
    assert main(["watch", str(path), "--topic", "/b", "--out", str(out), "--no-overlay", "--size", "16"]) == 0
    assert len((out / "frames.jsonl").read_text().splitlines()) == 4
    assert main(["watch", str(path), "--out", str(out)]) == 2
    assert "which topic has the images?" in capsys.readouterr().err


def test_as_training_data(tmp_path: Path) -> None:
    """Two bags in lanes: every row begins with a reset, and each frame has the pose of its moment."""
    pytest.importorskip("lightning", reason="training needs Lightning")
    from tttstream.errors import DataError
    from tttstream.train.data import PyAV, RosBags, VideoData

    moments = [n / 10 for n in range(9)]
    for name in ("a", "b"):
        shown = images(9)
        if name == "b":
            shown[5] = (*shown[5][:3], image(picture_of(5), "odd", stamp=START + S // 2))
        write(tmp_path / f"{name}.mcap", by_log([*shown, *poses(moments)]))
    index = RosBags(str(tmp_path), pose="/pose:x,y")
    clips = index.clips()
    assert [Path(clip.name).name for clip in clips] == ["a.mcap", "b.mcap"]
    assert [clip.pose for clip in clips] == [2, 2]
    reader = clips[0].open(PyAV())
    assert reader.frames == 9
    for numbers in ([4, 5], [0, 3], [8], [2, 4, 6]):  # forward and back
        shot = reader.read(np.array(numbers))
        np.testing.assert_array_equal(shot.frames, [picture_of(n) for n in numbers])
        np.testing.assert_allclose(shot.poses, [[n / 10, n / 5] for n in numbers], atol=1e-6)
    assert len(reader.read(np.array([7, 8, 9])).frames) == 2
    damaged = clips[1].open(PyAV())
    shot = damaged.read(np.array([4, 5, 6]))
    np.testing.assert_array_equal(shot.frames, [picture_of(n) for n in (4, 6, 6)])  # the next one stands in
    np.testing.assert_allclose(shot.poses[:, 0], [0.4, 0.6, 0.6], atol=1e-6)
    assert "message 5: its encoding is 'odd'" in str(damaged.damage)
    data = VideoData(train=index, size=8, length=5, batch_size=2, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert tuple(batch.pose.shape) == (2, 5, 2)
    assert batch.reset[:, 0].all()
    np.testing.assert_allclose(batch.pose[..., 0] * 10, batch.frame, atol=1.01)  # 1: where the next stands in
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no ROS 2 bags"):
        RosBags(str(tmp_path / "none")).clips()
    with pytest.raises(DataError, match="of a bag expected TOPIC"):
        RosBags(str(tmp_path), pose="/po se").clips()
