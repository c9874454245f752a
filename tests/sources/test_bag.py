"""ROS 2 bags as sources: topics, clocks, damage, resuming, training. The bags are written by the tests."""

from pathlib import Path
from types import SimpleNamespace as Made

import numpy as np
import pytest

from tttstream import open_source
from tttstream.cli.main import main
from tttstream.errors import SourceError
from tttstream.sources.listing import expand

pytest.importorskip("mcap_ros2", reason="needs the extra robots")
from tests.sources.bags import START, S, by_log, image, images, picture_of, poses, write
from tttstream.sources.robots.bag import Bag


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


def test_a_topic_is_chosen(tmp_path: Path) -> None:
    text = ("/said", "std_msgs/msg/String", START, Made(data="hello"))
    path = write(tmp_path / "a.mcap", by_log([*images(2), *images(3, topic="/other"), text]))
    with pytest.raises(
        SourceError, match=r"which topic has the images\? It contains /camera/image \(sensor_msgs/msg/Image\), /other"
    ):
        open_source(path)
    assert open_source(path, topic="/other").frames == 3
    with pytest.raises(SourceError, match="has no topic /none; it contains /camera/image"):
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
    assert "4 images were not later than those before them: try --clock header" in source.remarks()
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


def test_continues_at_its_position(tmp_path: Path) -> None:
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
        said = "has changed" if options else "uses another clock"
        with pytest.raises(SourceError, match=said):
            open_source(path, clock="log", **options).seek(position)
    with pytest.raises(SourceError, match="continue with the same --poses"):
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


def test_files_that_are_no_bags(tmp_path: Path) -> None:
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
    turned = RosBags(str(tmp_path), pose="/pose:x,y,yaw").clips()[0].form
    assert turned is not None
    assert turned.names == ("x", "y", "cos yaw", "sin yaw")
    reader = clips[0].open(PyAV())
    assert reader.frames == 9
    for numbers in ([4, 5], [0, 3], [8], [2, 4, 6]):  # forward and back
        shot = reader.read(np.array(numbers))
        np.testing.assert_array_equal(shot.frames, [picture_of(n) for n in numbers])
        np.testing.assert_allclose(shot.poses, [[n / 10, n / 5] for n in numbers], atol=1e-6)
    assert len(reader.read(np.array([7, 8, 9])).frames) == 2
    damaged = clips[1].open(PyAV())
    shot = damaged.read(np.array([4, 5, 6]))
    np.testing.assert_array_equal(shot.frames, [picture_of(n) for n in (4, 6, 6)])  # the next one replaces it
    np.testing.assert_allclose(shot.poses[:, 0], [0.4, 0.6, 0.6], atol=1e-6)
    assert "message 5: its encoding is 'odd'" in str(damaged.damage)
    data = VideoData(train=index, size=8, length=5, batch_size=2, workers=0)
    batch = next(iter(data.train_dataloader()))
    assert tuple(batch.pose.shape) == (2, 5, 2)
    assert batch.reset[:, 0].all()
    np.testing.assert_allclose(batch.pose[..., 0] * 10, batch.frame, atol=1.01)  # 1: replaced by the next one
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no ROS 2 bags"):
        RosBags(str(tmp_path / "none")).clips()
    with pytest.raises(DataError, match="for a bag expected TOPIC"):
        RosBags(str(tmp_path), pose="/po se").clips()
