"""The video writer: pictures have their times in the file, and an incomplete file is removed."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream.errors import ConfigError, OutputError, ShapeError
from tttstream.views.writer import VideoWriter


def picture(value: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def read(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    with av.open(os.fspath(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("endless", [False, True])
def test_pictures_come_back_at_their_times(tmp_path: Path, endless: bool) -> None:
    times = [5.0, 5.04, 5.2, 5.24]
    with VideoWriter(tmp_path / "a.mp4", 25, endless=endless) as writer:
        for number, time_s in enumerate(times):
            writer.write(picture(60 * number), time_s)
    frames = read(tmp_path / "a.mp4")
    assert [round(time, 3) for time, _ in frames] == [0.0, 0.04, 0.2, 0.24]
    assert all(abs(int(image.mean()) - 60 * number) < 6 for number, (_, image) in enumerate(frames))
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_times_that_do_not_rise_go_on_at_the_nominal_pace(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 20) as writer:
        for time_s in (0.0, 0.05, 0.05, 0.01, None):
            writer.write(picture(0), time_s)
    assert [round(time, 3) for time, _ in read(tmp_path / "a.mp4")] == [0.0, 0.05, 0.1, 0.15, 0.2]


def test_the_nominal_rate_is_kept(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 30000 / 1001) as writer:
        for index in range(60):
            writer.write(picture(index), index * 1001 / 30000)
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(29.97, rel=1e-3)
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("fps", [1 / 3600, 1000.0, 1e6])
def test_any_rate_that_a_file_may_name_is_written(tmp_path: Path, fps: float) -> None:
    times = [0.0, 0.033, 0.067]
    with VideoWriter(tmp_path / "a.mp4", fps) as writer:
        for time_s in times:
            writer.write(picture(0), time_s)
    assert [round(time, 3) for time, _ in read(tmp_path / "a.mp4")] == times


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_rate_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ConfigError, match="expected a frame rate above 0, got"):
        VideoWriter(tmp_path / "a.mp4", fps)


def test_mpeg4_replaces_h264(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for number in range(3):
            writer.write(picture(60 * number), number / 25)
    frames = read(tmp_path / "a.mp4")
    assert [round(time, 3) for time, _ in frames] == [0.0, 0.04, 0.08]
    assert all(abs(int(image.mean()) - 60 * number) < 6 for number, (_, image) in enumerate(frames))
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_odd_sizes_lose_a_line_and_other_sizes_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        writer.write(picture(9, 65, 97))
        with pytest.raises(ShapeError, match=r"\(64, 96\).*\(32, 96\)"):
            writer.write(picture(9, 32, 96))
    assert read(tmp_path / "a.mp4")[0][1].shape == (64, 96, 3)


def test_no_file_exists_before_the_end_or_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4") as writer:  # noqa: PT012
        writer.write(picture(0))
        assert not (tmp_path / "a.mp4").exists()
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with pytest.raises(OutputError, match="there was no picture"), VideoWriter(tmp_path / "b.mp4"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_failure_leaves_the_earlier_file_alone(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("earlier")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4"):
        raise RuntimeError
    assert (tmp_path / "a.mp4").read_text() == "earlier"


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = VideoWriter(tmp_path / "a.mp4")
    writer.write(picture(0))

    def full(_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "_mux", full)
    with pytest.raises(OutputError, match=r"a\.mp4: the disk is full") as caught:
        writer.close()
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        VideoWriter(tmp_path / "none" / "a.mp4")
