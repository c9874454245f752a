"""Files of poses: their formats, the pose of a frame, and the errors of rows that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tttstream.errors import SourceError
from tttstream.poses import PoseMissing, Track

Write = Callable[..., Path]
HALF = np.sqrt(0.5)
EYE = "1 0 0 {} 0 1 0 0 0 0 1 0"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, name: str = "poses.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


class TestClocks:
    def test_one_row_a_frame(self, write: Write) -> None:
        track = Track(write("x,y\n1,2\n3,4\n"))
        assert track.pose(1, 99.0).tolist() == [3, 4]
        assert track.text == "poses.csv: csv, 2 rows one a frame: x, y"
        with pytest.raises(PoseMissing, match=r"frame 2: poses.csv has no row 2 \(after line 3, its last one\)"):
            track.pose(2, 0.0)

    @pytest.mark.parametrize("name", ["frame", "index", "Frame", "frameIdx", "frame_num", ""])
    def test_by_number(self, write: Write, name: str) -> None:
        track = Track(write(f"{name},x\n0,5\n1,6\n2,9\n"))
        assert track.clock == "frame"
        assert track.pose(2, 0.0).tolist() == [9]

    def test_a_hole_in_the_numbers(self, write: Write) -> None:
        track = Track(write("frame;x\n0;5\n4;9\n"))
        assert track.pose(4, 0.0).tolist() == [9]
        with pytest.raises(PoseMissing, match=r"no frame 2 .after line 2"):
            track.pose(2, 0.0)

    @pytest.mark.parametrize(
        ("name", "unit"),
        [
            ("time_s", 1),
            ("timestamp", 1),
            ("t", 1),
            ("time_ms", 1000),
            ("timestamp [ns]", 1e9),
            ("timestampMs", 1000),
            ("time(millisecond)", 1000),
            ("timestamp_nanoseconds", 1e9),
            ("time_stamp", 1),
        ],
    )
    def test_by_time(self, write: Write, name: str, unit: float) -> None:
        track = Track(
            write(
                f"{name},x\n0,0\n{0.5 * unit:.0f},10\n{unit:.0f},20\n" if unit > 1 else f"{name},x\n0,0\n0.5,10\n1,20\n"
            )
        )
        assert track.clock == "time"
        assert track.tolerance == 0.5
        assert track.pose(None, 0.25).tolist() == [5]
        assert track.pose(None, 1.0).tolist() == [20]

    def test_the_number_of_a_frame_has_precedence_over_its_time(self, write: Write) -> None:
        track = Track(write("time_s,frame,x\n0,0,7\n0.5,1,8\n"))
        assert track.clock == "frame"
        assert track.pose(1, 0.0).tolist() == [8]

    def test_late_frames(self, write: Write) -> None:
        track = Track(write("t,x\n1,0\n2,1\n3,2\n9,8\n"), tolerance=0.25)
        assert track.pose(0, 0.75).tolist() == [0]  # before the first row, within the tolerance
        assert track.pose(0, 9.25).tolist() == [8]
        assert track.pose(0, 3.25).tolist() == [2.25]
        for moment, line in ((0.7, 2), (3.3, 4), (5.5, 4), (9.3, 5)):
            with pytest.raises(
                PoseMissing, match=f"{moment} s: the nearest row of poses.csv, line {line}, is .* 0.25 s"
            ):
                track.pose(0, moment)

    def test_the_usual_interval_is_the_tolerance(self, write: Write) -> None:
        assert Track(write("t,x\n0,0\n1,1\n2,2\n30,3\n")).tolerance == 1
        assert Track(write("t,x\n0,0\n0.01,1\n0.02,2\n")).tolerance == 0.05
        assert "within 1 s of a row" in Track(write("t,x\n0,0\n1,1\n")).text

    def test_a_start(self, write: Write) -> None:
        epoch = write("t,x\n1305031102.25,1\n1305031103.25,3\n")
        track = Track(epoch, start=1305031102.75)
        track.begin(None, 1.0)
        assert track.pose(0, 0.25).tolist() == [2.5]
        track = Track(epoch)
        track.begin(1305031102.75, 1.0)  # as a source reports it
        assert track.pose(0, 0.25).tolist() == [2.5]
        rows = Track(write("x\n1\n2\n3\n"), start=1)
        assert rows.pose(1, 0.0).tolist() == [3]

    @pytest.mark.parametrize("length_s", [None, 60.0])
    def test_no_common_time(self, write: Write, length_s: float | None) -> None:
        track = Track(write("t,x\n1305031102.25,1\n1305031103.25,3\n"))
        with pytest.raises(SourceError, match=r"1305031102.25 to 1305031103.25 s, .* --pose-start 1305031102.25"):
            track.begin(None, length_s)
        with pytest.raises(SourceError, match="frames begin at 50"):
            Track(write("t,x\n1,1\n2,2\n"), start=50).begin(None, length_s)

    def test_frames_from_1_are_refused_without_a_start(self, write: Write) -> None:
        path = write("frame,x\n1,5\n2,6\n")
        with pytest.raises(SourceError, match=r"begins with frame 1.*--pose-start 1"):
            Track(path)
        assert Track(path, start=1).pose(0, 0).tolist() == [5]
        assert Track(path, start=0).pose(1, 0).tolist() == [5]


class TestFormats:
    def test_tum(self, write: Write) -> None:
        text = "# ground truth trajectory\n# timestamp tx ty tz qx qy qz qw\n"
        text += f"0 1 2 3 0 0 0 1\n2 3 2 3 0 0 {HALF} {-HALF}\n"
        for track in (Track(write(text, "t.txt")), Track(write(text.replace("# timestamp", "#t").replace("#", "//")))):
            np.testing.assert_allclose(track.pose(0, 0.0), [1, 2, 3, 1, 0, 0, 0, 1, 0], atol=1e-9)
            c, s = np.cos(np.deg2rad(-45)), np.sin(np.deg2rad(-45))  # half of a right angle to the right
            np.testing.assert_allclose(track.pose(0, 1.0), [2, 2, 3, c, s, 0, -s, c, 0], atol=1e-9)
        assert track.form.directions == (3, 4, 5, 6, 7, 8)
        assert Track(write(text, "t.txt")).text.startswith(
            "t.txt: TUM trajectory, 2 rows by time, 0 to 2 s, within 2 s"
        )

    def test_kitti(self, write: Write) -> None:
        track = Track(write("\n".join(EYE.format(x) for x in (5, 6, 7)), "00.txt"))
        assert track.pose(1, 0.0).tolist() == [6, 0, 0, 1, 0, 0, 0, 1, 0]
        assert "KITTI poses, 3 rows one a frame" in track.text
        numbered = Track(write("\n".join(f"{i} {EYE.format(i)}" for i in (0, 5)), "poses.txt"))
        assert numbered.pose(5, 0.0)[0] == 5

    def test_a_quaternion_among_columns_by_name(self, write: Write) -> None:
        head = "#timestamp [ns], p_RS_R_x [m], q_RS_w [], q_RS_x [], q_RS_y [], q_RS_z [], v [m s^-1]\n"
        track = Track(write(head + "1000000000, 4, 1, 0, 0, 0, 9\n2000000000, 5, 1, 0, 0, 0, 9\n"))
        assert track.pose(0, 1.5).tolist() == [4.5, 1, 0, 0, 0, 1, 0, 9]

    def test_columns_are_chosen_and_declared(self, write: Write) -> None:
        path = write("file,x,y,yaw,speed\na.png,1,2,180,3\nb.png,2,3,270,4\n")
        with pytest.raises(SourceError, match="yaw seems to be an angle"):
            Track(path)
        track = Track(path, "yaw:deg,x")
        assert track.pose(1, 0).tolist() == [0, -1, 2]
        assert track.text.endswith("yaw (in deg, as cosine and sine), x; not used: file, y, speed")
        assert Track(path, "x,y,yaw:number,speed").pose(0, 0).tolist() == [1, 2, 180, 3]
        with pytest.raises(SourceError, match="no column 'z'; it has file, x, y, yaw, speed"):
            Track(path, "x,z")

    def test_angles_wrap_between_rows(self, write: Write) -> None:
        track = Track(write("time_s\tpan_deg\ttilt_rad\n0\t350\t0\n1\t10\t0\n"))
        np.testing.assert_allclose(track.pose(0, 0.5), [1, 0, 1, 0], atol=1e-12)

    def test_numbered_columns_of_pandas(self, write: Write) -> None:
        """A row of numbers from 0 is a header, and no frame."""
        for index in ("", ","):
            rows = [f"{i}," * len(index) + EYE.format(5 + i).replace(" ", ",") for i in range(3)]
            track = Track(write("\n".join([index + ",".join(map(str, range(12))), *rows])))
            assert [track.pose(i, 0.0)[0] for i in range(3)] == [5, 6, 7]
            assert "KITTI poses, 3 rows" in track.text
        track = Track(write(",0,1,2,3,4,5,6\n0,9,0,0,0,0,0,1\n1,8,0,0,0,0,0,1\n"))
        assert track.pose(1, 0.0).tolist() == [8, 0, 0, 0, 0, 0, 1]  # no TUM trajectory
        assert Track(write("# t x y\n0 1 2\n")).pose(0, 0.0).tolist() == [1, 2]

    def test_a_frame_id_that_is_a_word(self, write: Write) -> None:
        track = Track(write("stamp,frame_id,x\n0,odom,1\n1,odom,2\n"))
        assert track.pose(None, 0.5).tolist() == [1.5]

    def test_how_spreadsheets_write(self, write: Write) -> None:
        track = Track(write('\ufeff"x","y",\r\n"1","2",\r\n3,4,\r\n'))
        assert track.pose(1, 0).tolist() == [3, 4]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "has no rows"),
            ("# only a comment\n", "has no rows"),
            ("x,y\n", "a header and no rows"),
            ("1 2 3\n", "rows of 3 numbers without a header"),
            ("x,x\n1,2\n", "two columns of the name 'x'"),
            ("time_s\n1\n", "no column of poses"),
            ("file\na.png\n", "no column of poses"),
            ("x,,y\n1,2,3\n", "column 2 has no name"),
            (",".join(f"a{i}" for i in range(65)) + "\n" + ",".join("1" * 65) + "\n", "65 numbers: expected 1 to 64"),
            ("timestamp,x\n1403636579763555584,1\n", "timestamp_ns"),
            ("elapsed_time,x\n0,1\n", "elapsed_time seems to be a time"),
            ("header.stamp.secs,header.stamp.nsecs,x\n0,5,1\n", r"header\.stamp\.secs seems to be a time"),
            ("frameCount,x\n0,1\n", "frameCount seems to be a time or the number of a frame"),
            ("t;x\n0,0;1,5\n", "1,5 has a decimal comma, write 1.5|0,0 has a decimal comma, write 0.0"),
            ("0,1,2,3,4,5,6,7\n", "a header and no rows"),
            ("x\nnan\n", "no row that can be used; line 2"),
        ],
    )
    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_files_that_cannot_be_understood(self, write: Write, text: str, said: str, on_error: str) -> None:
        path = write(text)
        if "no row that" in said and on_error == "raise":
            said = "line 2"
        with pytest.raises(SourceError, match=said) as caught:
            Track(path, on_error=on_error)
        assert "\n" not in str(caught.value)

    def test_no_file_and_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="there is no file of poses"):
            Track(tmp_path / "absent.csv")
        (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
        with pytest.raises(SourceError, match=r"picture.png is no text"):
            Track(tmp_path / "picture.png")
        with pytest.raises(SourceError, match="cannot be read"):
            Track(tmp_path)


BAD = {
    "not finite": ("t,x\n0,0\n1,nan\n2,2\n3,3\n", "x is 'nan'"),
    "infinite": ("t,x\n0,0\n1,inf\n2,2\n3,3\n", "x is 'inf'"),
    "empty": ("t,x\n0,0\n1,\n2,2\n3,3\n", "x is empty"),
    "words": ("t,x\n0,0\n1,lost\n2,2\n3,3\n", "x is 'lost'"),
    "python's underscores": ("t,x\n0,0\n1,1_0\n2,2\n3,3\n", "x is '1_0'"),
    "short": ("t,x\n0,0\n1\n2,2\n3,3\n", "it has 1 values, expected 2"),
    "long": ("t,x\n0,0\n1,2,3\n2,2\n3,3\n", "it has 3 values, expected 2"),
    "no time": ("t,x\n0,0\nnan,1\n2,2\n3,3\n", "t is 'nan'"),
    "the same time again": ("t,x\n0,0\n0,1\n2,2\n3,3\n", "its time is 0, not after"),
    "no quaternion": ("t,qx,qy,qz,qw\n0,0,0,0,1\n1,0,0,0,0\n2,0,0,0,1\n3,0,0,0,1\n", "length of 0"),
}


class TestRows:
    @pytest.mark.parametrize("case", BAD)
    def test_a_bad_row_is_named(self, write: Write, case: str) -> None:
        text, said = BAD[case]
        with pytest.raises(SourceError, match=f"poses.csv line 3: .*{said}"):
            Track(write(text))

    @pytest.mark.parametrize("case", BAD)
    def test_or_left_out_and_counted(self, write: Write, case: str) -> None:
        text, said = BAD[case]
        track = Track(write(text), on_error="skip")
        assert list(track.faults) == [3]
        assert said in track.text
        assert "1 of 4 rows left out, first line 3" in track.text
        assert track.pose(0, 3.0).shape == track.pose(0, 0.0).shape

    def test_a_bad_row_leaves_the_others_where_they_are(self, write: Write) -> None:
        track = Track(write("x\n0\nlost\n\n2\n"), on_error="skip")
        assert track.pose(2, 0).tolist() == [2]
        with pytest.raises(PoseMissing, match=r"frame 1: poses.csv line 3: x is 'lost'"):
            track.pose(1, 0)

    @pytest.mark.parametrize("row", ["2,1", "1.5,1", "-1,1"])
    def test_numbers_of_frames(self, write: Write, row: str) -> None:
        with pytest.raises(SourceError, match="line 5: its frame is"):
            Track(write(f"frame,x\n0,0\n1,0\n2,0\n{row}\n"))

    def test_unused_columns_may_hold_anything(self, write: Write) -> None:
        track = Track(write("x,fix\n1,nan\n2,3\n"), "x")
        assert track.pose(0, 0).tolist() == [1]

    def test_no_number_without_a_place(self, write: Write) -> None:
        with pytest.raises(PoseMissing, match="nobody knows"):
            Track(write("x\n1\n")).pose(None, 0.0)
