"""Lists of videos in common formats: their interpretation, and refused lists, whose errors name the row."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tttstream.errors import DataError
from tttstream.train.data import ClassFolders, Decord, ImagesClip, Mixture, PathList, PyAV, VideoData, Videos, Window

FILES = ["a.mp4", "b.mp4", "c.mp4", "my videos/b c.mp4", "run/x.mp4", "sit/y.mp4", "Smith, John.mp4", "c/1.jpg"]
FILES += [f"frames/{folder}/{number}.jpg" for folder in ("f1", "f2") for number in range(3)]


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., PathList]:
    """given(text or bytes, options): a list beside the files above."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")

    def make(text: str | bytes, **options: Any) -> PathList:
        path = tmp_path / "list.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return PathList(str(path), **options)

    return make


def read(index: PathList) -> tuple[list[tuple[str, int]], list[str]]:
    clips = index.clips()
    root = Path(index.file).parent
    return [(Path(clip.name).relative_to(root).as_posix(), clip.label) for clip in clips], list(index.classes)


NUMBERS = [("a.mp4", 0), ("my videos/b c.mp4", 11)]
NAMES = [("a.mp4", 1), ("my videos/b c.mp4", 0)]


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 0\nmy videos/b c.mp4 11\n",
        "path label\na.mp4 0\nmy videos/b c.mp4 11\n",
        "# twelve classes\na.mp4 0\n\n  # more\nmy videos/b c.mp4 11\n",
        "#path label\na.mp4 0\nmy videos/b c.mp4 11",
        "a.mp4    0\nmy videos/b c.mp4  11  \n",
        "a.mp4\t0\nmy videos/b c.mp4\t 11\n",
        "path,label\r\na.mp4,0\r\nmy videos/b c.mp4,11\r\n",
        "a.mp4, 0\rmy videos/b c.mp4, 11\r",
        "\ufeffFile;Class\r\na.mp4;0\r\nmy videos/b c.mp4;11\r\n",
        "\ufeffa.mp4;0\n\ufeffmy videos/b c.mp4;11\n",
        "sep=;\r\npath;label\r\na.mp4;0\r\nmy videos/b c.mp4;11\r\n",
        "a.mp4|0|\nmy videos/b c.mp4|11|\n",
        '"a.mp4";"0"\n"my videos/b c.mp4";"11"\n',
        "'a.mp4' 0\n'my videos/b c.mp4' 11\n",
        "a.mp4 0.0\nmy videos/b c.mp4 11.0\n",
        "a.mp4 0 # looked at twice\nmy videos/b c.mp4 11\n",
        "label,fps,video_path\n0,25,a.mp4\n11,30,my videos/b c.mp4\n",
        ",path,label\n0,a.mp4,0\n1,my videos/b c.mp4,11\n",
        "a.mp4 0\nmy videos\\b c.mp4 11\n",
        "path\tlabel\na.mp4\t0\nmy videos/b c.mp4\t11\n".encode("utf-16"),
    ],
)
def test_numbers_in_every_dialect(given: Callable[..., PathList], text: str | bytes) -> None:
    assert read(given(text)) == (NUMBERS, [])


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4 Sitting down\nmy videos/b c.mp4 Riding a bike\n",
        "path label\na.mp4 Sitting down\nmy videos/b c.mp4 Riding a bike\n",
        'a.mp4 "Sitting down"\nmy videos/b c.mp4 "Riding a bike"\n',
        "a.mp4,Sitting down\nmy videos/b c.mp4,Riding a bike\n",
        "label;path\nSitting down;a.mp4\nRiding a bike;my videos/b c.mp4\n",
        "label_id,label,path\n1,Sitting down,a.mp4\n0,Riding a bike,my videos/b c.mp4\n",
        "file\tnum_frames\tclass_name\na.mp4\t12\tSitting down\nmy videos/b c.mp4\t9\tRiding a bike\n",
    ],
)
def test_names_of_several_words(given: Callable[..., PathList], text: str) -> None:
    assert read(given(text)) == (NAMES, ["Riding a bike", "Sitting down"])


def test_labels_before_paths(given: Callable[..., PathList]) -> None:
    assert read(given("0 a.mp4\n11 run/x.mp4\n"))[0] == [("a.mp4", 0), ("run/x.mp4", 11)]
    found = read(given("Sitting down a.mp4\nRiding a bike run/x.mp4\nSitting missing.mp4\n"))[0]
    assert found == [("a.mp4", 2), ("run/x.mp4", 0), ("missing.mp4", 1)]
    with pytest.raises(DataError, match=r"line 2 .*the end of its path is not clear"):
        given("1 a.mp4\n2 my videos/b c.mp4\n").clips()  # there is a c.mp4 too


def test_names_with_marks_in_them(given: Callable[..., PathList]) -> None:
    found, classes = read(given('"Smith, John.mp4","Clean, jerk"\na.mp4,"Say ""no"""\nb.mp4,2 people\n'))
    assert found == [("Smith, John.mp4", 1), ("a.mp4", 2), ("b.mp4", 0)]
    assert classes == ["2 people", "Clean, jerk", 'Say "no"']
    assert read(given("a.mp4 Don't\nb.mp4 Don't\n")) == ([("a.mp4", 0), ("b.mp4", 0)], ["Don't"])
    assert read(given("run/x.mp4,run\nsit/y.mp4,sit\n"))[0] == [("run/x.mp4", 0), ("sit/y.mp4", 1)]
    assert read(given("run run/x.mp4\nsit sit/y.mp4\n"))[0] == [("run/x.mp4", 0), ("sit/y.mp4", 1)]


def test_folders_of_images_with_their_numbers_of_frames(given: Callable[..., PathList]) -> None:
    text = "frames/f1 3 1\nframes/f2 3 0\n"
    assert read(given(text))[0] == [("frames/f1", 1), ("frames/f2", 0)]
    with pytest.raises(DataError, match=r"line 1 \(frames/f1 30 1\): 3 columns .* without names"):
        read(given(text.replace("3 ", "30 ")))
    index = given("frames/f1 1 2 1\nframes/f2 0 1 0\n", columns=["path", "start", "frames", "label"])
    clips = index.clips()
    assert [(clip.start, clip.stop, clip.label) for clip in clips if isinstance(clip, ImagesClip)] == [
        (1, 3, 1),
        (0, 1, 0),
    ]
    assert [clip.count(PyAV()) for clip in clips] == [2, 1]


@pytest.mark.parametrize("decoder", [PyAV(), Decord()])
def test_pieces_of_videos(
    movie: Callable[..., Path], tmp_path: Path, numbers: Callable[..., list[int]], decoder: Any
) -> None:
    movie("one.mp4", 20)
    (tmp_path / "list.csv").write_text("video,start_frame,stop_frame,label\none.mp4,3,9,0\none.mp4,12,,1\n")
    data = VideoData(PathList(str(tmp_path / "list.csv")), size=32, length=4, batch_size=2, workers=0, decoder=decoder)
    data = VideoData(val=data._indices["train"], size=32, length=8, batch_size=2, workers=0, decoder=decoder)
    (batch,) = data.loader("val")
    assert numbers(batch.frames[0, :6]) == list(range(3, 9))
    assert numbers(batch.frames[1]) == list(range(12, 20))
    assert [batch.label[row][batch.valid[row]].tolist() for row in (0, 1)] == [[0] * 6, [1] * 8]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.mp4 0\nb.mp4 1,2\n", r"line 2 \(b.mp4\): several labels '1,2' for one video"),
        ("a.mp4 [0, 1]\nb.mp4 [1, 0]\n", r"line 1 .*several labels '\[0, 1\]'"),
        ('a.mp4,"1 2"\nb.mp4,3\n', "line 1 .*several labels '1 2'"),
        ("a.mp4 run,sit\nb.mp4 run\n", "line 1 .*'run,sit': several labels, or one"),
        ("a.mp4\trun\nb.mp4\tsit\nc.mp4\trun,sit\n", "line 3 .*several labels 'run,sit'"),
        ("a.mp4 3\nb.mp4 run\nc.mp4 4\n", r"line 2 \(b.mp4\): the label 'run' among numbers"),
        ("a.mp4 run\nb.mp4 sit\nc.mp4 4\n", r"line 3 \(c.mp4\): the label '4' among names"),
        ("a.mp4 0.73\nb.mp4 1.0\n", "line 1 .*label 0.73 is no class"),
        ("a.mp4,1\nb.mp4,nan\n", "line 2 .*label nan may mean none"),
        ("a.mp4 120 3\nb.mp4 99 1\n", "line 1 .*3 columns .* columns:"),
        ("a.mp4 0 10 1\nb.mp4 5 9 0\n", "line 1 .*4 columns .* columns:"),
        ("a.mp4 3 jumps\nb.mp4 4 steps\n", "line 1 .*3 columns"),
        ("a.mp4 one\nb.mp4 3 jumps\nc.mp4 two\n", "line 2 .*it has 3 columns, other lines 2"),
        ("path,label,start,end\na.mp4,run,0,3\n", "line 1 .*'start' may count frames or seconds"),
        ("path,label,time_start\na.mp4,run,0\n", "line 1 .*'time_start' may count frames or seconds"),
        ("path,label,category\na.mp4,run,x\nb.mp4,sit,y\n", "line 1 .*'label' and 'category' may both be the label"),
        ("Datei;Klasse\na.mp4;run\nb.mp4;sit\n", "line 1 .*'Datei' is no video; if this line names columns"),
        ("Datei Klasse\na.mp4 run\nb.mp4 sit\n", "line 1 .*no video is named in it"),
        ("a.mp4,run\nb.mp4\nc.mp4,sit\n", "line 2 .*it has 1 columns, other lines 2"),
        ("a.mp4,run\nb.mp4,sit,x\nc.mp4,sit\n", "line 2 .*it has 3 columns"),
        ("a.mp4,run\nnothing,sit\nc.mp4,sit\n", "line 2 .*'nothing' is no video"),
        ("a.mp4 0\nb.mp4 1\n./a.mp4 1\n", r"line 3 \(./a.mp4\): its label is another one on line 1"),
        ("a.mp4 Run\nb.mp4 run\n", "line 2 .*'run' and 'Run' differ in their case"),
        ("a.mp4 caf\u00e9\nb.mp4 cafe\u0301\n", "line 2 .*look alike"),
        ("a.mp4,run\nb.mp4,run\u200b\n", r"line 2 .*'run\\u200b' and 'run' look alike"),
        ("a.mp4,run fast\nb.mp4,run  fast\n", "line 2 .*look alike"),
        ("path,label\na.mp4,\"['run', 'sit']\"\nb.mp4,\"['run']\"\n", "line 2 .*several labels"),
        ("a.mp4 run+sit\nb.mp4 run\nc.mp4 sit\n", r"line 1 .*several labels 'run\+sit'"),
        ("a.mp4 010\nb.mp4 100\nc.mp4 001\n", "line 1 .*'010': a digit for each class, or a number"),
        ("path,label\na.mp4,run\nb.mp4,N/A\n", "line 3 .*label N/A may mean none"),
        ("a.mp4,run\nb.mp4,none\n", "line 2 .*label none may mean none"),
        ("| path | label |\n|---|---|\n| a.mp4 | run |\n| b.mp4 | sit |\n", "line 2 .*'---' is no video"),
        ('{"path": "a.mp4", "label": 3}\n', "is JSON"),
        ("a.mp4 1\nb.mp4 4000000000\n", "line 2 .*larger than any class"),
        ("a.mp4 0\nb.mp4 1\nfolder/../a.mp4 1\n", r"line 3 \(folder/../a.mp4\): its label is another one on line 1"),
        ("a.mp4 Song # 1\nb.mp4 Song # 2\n", "line 1 .*a comment, or a part of the label"),
        ("id,label,name\n0,run,a.mp4\n0,sit,b.mp4\n", ""),
        ("label_id,label,path\n0,run,a.mp4\n0,sit,b.mp4\n", "line 3 .*0 and 'sit' differ from the pairs"),
        ("path,label\n", "names its columns and no video"),
        ("path,label,split\na.mp4,run,train\nb.mp4,sit,val\n", "lists the parts train, val: choose one with part"),
        ("missing1.mp4 1\nmissing2.mp4 2\n", "not one of 2 videos listed .*missing1.mp4; check the root"),
        (b"a.mp4 caf\xe9\n", "cannot be read as text.*save it as UTF-8"),
        ("a.mp4,b.mp4\nb.mp4,c.mp4\n", "line 1 .*two columns may be paths"),
    ],
)
def test_ambiguous_lists_are_refused(given: Callable[..., PathList], text: str | bytes, says: str) -> None:
    if not says:  # a name beside the path is no path
        assert read(given(text))[0] == [("a.mp4", 0), ("b.mp4", 1)]
        return
    with pytest.raises(DataError, match=says) as caught:
        given(text).clips()
    assert "\n" not in str(caught.value)


def test_columns_resolve_an_ambiguous_list(given: Callable[..., PathList]) -> None:
    both = [("a.mp4", 1), ("b.mp4", 0)]
    assert read(given("a.mp4 120 1\nb.mp4 99 0\n", columns=["path", "frames", "label"]))[0] == both
    assert read(given("Datei Klasse\na.mp4 1\nb.mp4 0\n", columns=["path", "label"]))[0] == both
    assert read(given("a.mp4;x;1\nb.mp4;y;0\n", columns=["path", "-", "label"]))[0] == both
    text = "a.mp4 9 Riding a bike\nb.mp4 7 2 people\n"
    assert read(given(text, columns=["path", "frames", "label"])) == (both, ["2 people", "Riding a bike"])
    for columns, says in (
        (["path", "class"], "expected some of path, label"),
        (["label"], "expected one of them to be path"),
        (["path", "label", "frames", "start"], "3 columns .*not"),
    ):
        with pytest.raises(DataError, match=says):
            given("a.mp4,120,1\nb.mp4,99,0\n", columns=columns).clips()
    with pytest.raises(DataError, match=r"line 2 .*the frames \[4, 4\) are none"):
        given("a.mp4 0 9 1\nb.mp4 4 4 0\n", columns=["path", "start", "stop", "label"]).clips()


def test_parts_of_one_list_have_one_order_of_classes(given: Callable[..., PathList]) -> None:
    text = "path,label,split\na.mp4,run,training\nb.mp4,sit,train\nc.mp4,sit,validation\nrun/x.mp4,jump,test\n"
    for part, found in (("train", [("a.mp4", 1), ("b.mp4", 2)]), ("val", [("c.mp4", 2)]), ("test", [("run/x.mp4", 0)])):
        assert read(given(text, part=part)) == (found, ["jump", "run", "sit"])
    with pytest.raises(DataError, match="no row of the part 'dev'; it has train, val, test"):
        given(text, part="dev").clips()


def test_other_lists_take_the_classes_of_train(given: Callable[..., PathList], tmp_path: Path) -> None:
    def listed(name: str, text: str) -> PathList:
        (tmp_path / name).write_text(text)
        return PathList(str(tmp_path / name))

    given("")
    train = listed("train.txt", "a.mp4 run\nb.mp4 sit\nc.mp4 jump\n")
    data = VideoData(train, listed("val.csv", "path,label\nrun/x.mp4,sit\n"), listed("test.txt", "sit/y.mp4 stand\n"))
    assert [clip.label for clip in data.clips("val")] == [2]
    with pytest.raises(DataError, match=r"test\.txt line 1: unknown class 'stand'; .*as train has them"):
        data.clips("test")
    with pytest.raises(DataError, match="its labels are numbers, those of train names"):
        VideoData(train, listed("val.txt", "run/x.mp4 2\n")).clips("val")
    with pytest.raises(DataError, match="val has 1 classes that are not the 0 of train"):
        VideoData(listed("n.txt", "a.mp4 0\n"), listed("val.txt", "run/x.mp4 run\n")).clips("val")


def test_a_mixture_has_one_order_of_classes(given: Callable[..., PathList], tmp_path: Path) -> None:
    for name in ("one/run/1.mp4", "one/sit/2.mp4", "two/sit/3.mp4", "three/jump/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    one, two, three = (ClassFolders(str(tmp_path / name)) for name in ("one", "two", "three"))
    mixture = Mixture([one, two, Videos(str(tmp_path / "one"))])
    assert [clip.label for clip in mixture.clips()] == [0, 1, 1, -1, -1]
    assert mixture.classes == ["run", "sit"]
    with pytest.raises(DataError, match="'jump' is not one of the 2 classes"):
        Mixture([one, three]).clips()
    with pytest.raises(DataError, match="its labels are numbers, those of train names"):
        Mixture([one, given("a.mp4 1\n")]).clips()
    with pytest.raises(DataError, match="some parts have labels with names, others numbers"):
        Mixture([given("a.mp4 1\n"), ClassFolders(str(tmp_path / "one"))]).clips()


def test_one_line_describes_the_interpretation(
    given: Callable[..., PathList], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tttstream")
    index = given("# mine\npath,fps,label\na.mp4,25,sit\nb.mp4,25,run\nc.mp4,25,\na.mp4,25,sit\n")
    index.clips()
    index.clips()
    (line,) = caplog.messages
    assert line.endswith(
        "list.txt: 4 videos (1 of them repeated), separated by commas, columns path, -, label, header on line 2 "
        "(fps not used), 1 line of comments; 2 classes (run: 1, sit: 2), 1 without a label; "
        "first row: a.mp4 → 'sit' (1)"
    )


def test_videos_of_train_among_those_of_val(
    given: Callable[..., PathList], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, val = given("a.mp4 0\nb.mp4 1\n"), tmp_path / "val.txt"
    (tmp_path / "link.mp4").symlink_to(tmp_path / "b.mp4")
    val.write_text("c.mp4 0\nmy videos/../a.mp4 0\nlink.mp4 1\n")
    data = VideoData(train, PathList(str(val)))
    data.clips("train")
    data.clips("val")
    assert [m for m in caplog.messages if "2 videos of val are among those of train too, such as" in m]


def test_no_text_is_a_traceback(given: Callable[..., PathList]) -> None:
    draw = random.Random(0)
    atoms = ["a.mp4", "b.mp4", "my videos/b c.mp4", "frames/f1", "path", "label", "run", "1", "2.5", "é", "x y"]
    marks = [" ", "  ", "\t", ",", ";", "|", '"', "'", "#", "\n", "\n", "\r\n", "\\", "\x00", "\x0b"]
    for _ in range(400):
        text = "".join(draw.choice(atoms if draw.random() < 0.6 else marks) for _ in range(draw.randrange(1, 24)))
        with suppress(DataError):
            given(text).clips()


def test_windows_of_a_piece_stay_inside(movie: Callable[..., Path], tmp_path: Path) -> None:
    movie("one.mp4", 20)
    (tmp_path / "list.csv").write_text("video,start_frame,stop_frame,label\none.mp4,3,9,0\n")
    data = VideoData(
        PathList(str(tmp_path / "list.csv")), size=32, length=4, batch_size=1, workers=0, window=Window(4), steps=12
    )
    seen = {int(n) for _, batch in zip(range(12), data.loader("train"), strict=False) for n in batch.frame.flatten()}
    assert seen <= set(range(6))
    assert len(seen) > 4
