"""`tttstream teach`: folders of examples, boxes and saved states; a mistake is reported in one line."""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tttstream.cli import examples
from tttstream.cli.main import main
from tttstream.cli.teach import Keys, Told
from tttstream.sources.photographs import photograph
from tttstream.streams import TeachResult
from tttstream.streams.teach import Found
from tttstream.views.teach import TeachOverlay, guide


def cat() -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(photograph("chelsea.png")[60:260, 120:320], (90, 90)), np.uint8)


def coffee() -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(photograph("coffee.png")[60:380, 150:470], (90, 90)), np.uint8)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Folders of examples, and a folder of six frames with a cat in the last three."""
    for name, image in (("cat", cat()), ("coffee", coffee())):
        (tmp_path / "examples" / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(image[:, :: 1 - 2 * number]).save(tmp_path / "examples" / name / f"{number}.png")
    (tmp_path / "mixed" / "cat").mkdir(parents=True)
    Image.fromarray(cat()).save(tmp_path / "mixed" / "beside.png")
    Image.new("RGB", (300, 4)).save(tmp_path / "long.png")
    (tmp_path / "frames").mkdir()
    ground = cv2.resize(photograph("gravel.png"), (240, 160))
    for number in range(6):
        image = ground.copy()
        if number >= 3:
            image[30:120, 100:190] = cat()
        Image.fromarray(image).save(tmp_path / "frames" / f"{number:03d}.png")
    return tmp_path


def teach(work: Path, *options: str) -> int:
    return main(["teach", *options, "--size", "160", "--out", str(work / "out")])


def lines(work: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (work / "out" / "frames.jsonl").read_text().splitlines()]


def test_examples_are_found_in_a_source(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert teach(work, str(work / "examples"), str(work / "frames")) == 0
    names = sorted(path.name for path in (work / "out").iterdir())
    assert names == ["frames.jsonl", "overlay.mp4", "summary.json"]
    found = [[thing["label"] for thing in line["found"]] for line in lines(work)]  # type: ignore[attr-defined]
    assert found == [[], [], [], ["cat"], ["cat"], ["cat"]]
    summary = json.loads((work / "out" / "summary.json").read_text())
    assert summary["taught"] == {"cat": 2, "coffee": 2}
    assert summary["in_view"] == {"cat": 3, "coffee": 0}
    assert "cat in 3" in capsys.readouterr().out


def test_a_state_is_saved_used_and_forgotten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = str(work / "taught.safetensors")
    assert main(["teach", str(work / "examples"), "--size", "160", "--save-state", saved]) == 0
    assert "cat (2), coffee (2)" in capsys.readouterr().out
    assert teach(work, str(work / "frames"), "--load-state", saved, "--forget", "cat", "--no-overlay") == 0
    assert not any(line["found"] for line in lines(work))
    assert json.loads((work / "out" / "summary.json").read_text())["taught"] == {"coffee": 2}


def test_a_box_teaches_in_the_middle_of_a_source(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged frame is skipped, and a box in it is reported."""
    (work / "frames" / "005.png").write_bytes(b"damaged")
    boxes = ["--box", "3:100,30,90,90=my cat", "--box", "5:100,30,90,90=my cat"]
    assert teach(work, str(work / "frames"), *boxes, "--no-overlay") == 0
    assert "frame 5 was not read: its --box was not used" in capsys.readouterr().err
    assert [line["taught"] for line in lines(work)] == [[], [], [], ["my cat"], []]
    assert [bool(line["found"]) for line in lines(work)] == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["frames"], "nothing to find: give"),
        (["examples"], "give a SOURCE, or --save-state"),
        (["mixed"], "mixed is no folder of examples, because beside.png is beside the folders"),
        (["mixed", "frames"], "mixed is no folder of examples, because beside.png is beside the folders"),
        (["frames", "frames", "--box", "0:1,1,9,9=x"], "one source, got 2"),
        (["frames", "--box", "0:1,1,9,9=x", "--no-learn"], "--no-learn forbids it"),
        (["frames", "--labels", "a,b"], "--labels needs --show"),
        (["frames", "--box", "0:500,1,9,9=x"], "outside the frame"),
        (["long.png", "--box", "0:1,1,9,3=x"], "--box 0:…=x: a frame of 300x4 pixels is too long"),
        (["frames", "--box", "6:1,1,9,9=x"], "--box 6: frames has 6 frames, from 0 on"),
        (["examples", "frames", "--forget", "dog"], "'dog' was not taught"),
        (["examples", "frames", "--model", "mask"], "expected a TeachModel"),
    ],
)
def test_a_mistake_is_one_line(
    work: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work)
    assert main(["teach", *options, "--out", "out"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not (work / "out").exists()


def test_every_image_and_video_of_a_thing_is_an_example(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also images in folders below, images beside a video, and a folder whose name is a number; other files of DIR are
    ignored."""
    (work / "examples" / "notes.txt").write_text("two things")
    for name in ("coffee/back/2.png", "5/0.png"):
        (work / "examples" / name).parent.mkdir()
        Image.fromarray(coffee()).save(work / "examples" / name)
    writer = cv2.VideoWriter(str(work / "examples/cat/turn.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (90, 90))
    for _ in range(11):
        writer.write(cat())
    writer.release()
    monkeypatch.chdir(work / "examples")
    assert examples.holds(".")
    assert [label for label, _ in examples.read(".", "raise")] == ["5", *["cat"] * 4, *["coffee"] * 3]


def test_boxes_are_read() -> None:
    assert Told.parse("12: 1,2.5,30,40 = my mug") == Told(12, (1, 2.5, 30, 40), "my mug")
    for wrong in ("1,2,3,4=x", "0:1,2,3=x", "0:1,2,3,4", "a:1,2,3,4=x"):
        with pytest.raises(argparse.ArgumentTypeError, match="FRAME"):
            Told.parse(wrong)


def test_a_key_teaches_its_name_while_it_is_held() -> None:
    pressed = iter(["", "2", "9", "q"])

    class Window:
        def show(self, picture: NDArray[np.uint8], wait_ms: int) -> str:
            return next(pressed)

    keys = Keys(Window(), ["mug", "keys"])  # type: ignore[arg-type]
    names = []
    for _ in range(4):
        keys.show(np.zeros((2, 2, 3), np.uint8))
        names.append(keys.name)
    assert names == [None, "keys", None, None]


def test_the_overlay_marks_found_things() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    overlay = TeachOverlay(keys=["mug"])
    empty = overlay.draw(image, TeachResult(0, 0.0, (), 1.0, 0.0), {"mug": 1})
    found = overlay.draw(image, TeachResult(1, 0.1, (Found("mug", 0.9, (20, 40, 60, 50)),), 0.1, 0.0), {"mug": 1})
    assert empty.shape == found.shape == (126, 200, 3)
    changed = (empty != found).any(-1)
    assert changed[40:90, 20].all()
    assert changed[89, 20:80].all()
    assert not changed[40:90, 90:].any()
    left, top, wide, tall = guide(100, 200)
    assert (left, top, wide, tall) == (75, 25, 50, 50)
    assert empty[int(top), int(left)].any()
