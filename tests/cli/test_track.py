"""`tttstream track` writes masks, overlay and numbers; a mistake is reported in one line."""

import io
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tttstream.cli.given import Given
from tttstream.cli.main import main
from tttstream.errors import ConfigError, SourceError
from tttstream.io import mask_files
from tttstream.masks import MixtureConfig, MixtureModel
from tttstream.models.masks.target import TargetConfig, TargetModel
from tttstream.streams.windows import usual
from tttstream.views.masks import mask_image, palette

FRAMES, HEIGHT, WIDTH = 6, 36, 52


def read_mask(path: Path) -> Given:
    return Given.read([(0, path)])


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a model, a folder of frames, and masks of several kinds."""
    torch.manual_seed(0)
    model = MixtureModel(MixtureConfig(width=16, heads=2, head_width=8, placed=1, slots=96, size=32))
    model.save(tmp_path / "model")
    (tmp_path / "frames").mkdir()
    rng = np.random.default_rng(0)
    for t in range(FRAMES):
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
        image[8:20, 6 + 2 * t : 18 + 2 * t] = (250, 40, 40)
        image[22:34, 30 - t : 42 - t] = (40, 250, 40)
        Image.fromarray(image).save(tmp_path / "frames" / f"{t:03d}.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:20, 6:18] = 255
    Image.fromarray(mask).save(tmp_path / "grey.png")
    mask[8:20, 6:18] = 2
    mask[22:34, 30:42] = 7
    mask_image(mask, palette()).save(tmp_path / "palette.png")
    Image.fromarray(palette()[mask]).save(tmp_path / "colour.png")
    return tmp_path


def track(work: Path, *options: str) -> int:
    return main(["track", str(work / "frames"), "--model", str(work / "model"), "--out", str(work / "out"), *options])


def test_objects_keep_the_numbers_and_colours_of_their_mask(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert track(work, "--first-mask", str(work / "palette.png")) == 0
    out = work / "out"
    assert sorted(path.name for path in out.iterdir()) == ["frames.jsonl", "masks", "overlay.mp4", "summary.json"]
    written = sorted((out / "masks").iterdir())
    assert [path.name for path in written] == [f"{t:05d}.png" for t in range(FRAMES)]
    first = Image.open(written[0])
    assert first.mode == "P"
    assert np.array_equal(np.asarray(first), np.asarray(Image.open(work / "palette.png")))
    assert (first.getpalette() or [])[6:9] == [0, 128, 0]
    for path in written:
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 2, 7}
    lines = [json.loads(line) for line in (out / "frames.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(FRAMES))
    assert lines[0]["objects"][0]["object"] == 2
    assert lines[0]["objects"][0]["box"] == [6, 8, 18, 20]
    assert lines[0]["objects"][1]["share"] == pytest.approx(144 / (HEIGHT * WIDTH), rel=1e-5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["objects"] == [2, 7]
    assert (summary["frames"], summary["size"], summary["interrupted"]) == (FRAMES, 32, False)
    assert summary["crop"] is None
    assert "2 objects" in capsys.readouterr().out


def test_a_run_repeats_and_replaces_the_one_before(work: Path) -> None:
    runs = []
    for _ in range(2):
        assert track(work, "--first-mask", str(work / "grey.png"), "--no-overlay") == 0
        runs.append([path.read_bytes() for path in sorted((work / "out" / "masks").iterdir())])
    assert runs[0] == runs[1]
    assert not list(work.rglob("*.part"))


def test_a_run_continues_a_saved_one(work: Path) -> None:
    mask = ["--first-mask", str(work / "palette.png"), "--no-overlay"]
    assert track(work, *mask) == 0
    whole = [path.read_bytes() for path in sorted((work / "out" / "masks").iterdir())]
    assert track(work, *mask, "--max-frames", "3", "--save-state", str(work / "state")) == 0
    assert track(work, *mask, "--load-state", str(work / "state")) == 0
    names = sorted(path.name for path in (work / "out" / "masks").iterdir())
    assert names == [f"{t:05d}.png" for t in range(3, FRAMES)]
    assert [(work / "out" / "masks" / name).read_bytes() for name in names] == whole[3:]
    assert track(work, "--load-state", str(work / "state"), "--no-overlay") == 0
    summary = json.loads((work / "out" / "summary.json").read_text())
    assert summary["objects"] == [2, 7]  # the saved stream contains the numbers of its objects
    masks = [np.asarray(Image.open(work / "out" / "masks" / name)) for name in names]
    for name, mask in zip(names, masks, strict=True):
        with Image.open(io.BytesIO(whole[int(name[:5])])) as image:
            assert np.array_equal(mask, np.asarray(image))


def test_masks_and_boxes_keep_their_frame_after_a_damaged_one(work: Path) -> None:
    (work / "frames" / "001.png").write_bytes(b"damaged")
    given = ["--first-mask", str(work / "grey.png"), "--box", "3:5,6,20,20", "--no-overlay"]
    assert track(work, *given, "--max-frames", "3") == 0
    rows = [json.loads(line) for line in (work / "out" / "frames.jsonl").read_text().splitlines()]
    assert [row["objects"][1]["share"] > 0 for row in rows] == [False, False, True]  # images 0, 2 and 3


def test_a_resumed_stream_takes_only_what_is_new(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A box of a passed frame is not reported as unused; one for an object that is followed already is an error; the
    first mask of another source counts."""
    state, short = str(work / "state"), ["--no-overlay", "--max-frames", "2"]
    assert track(work, "--box", "0:5,6,20,20", *short, "--save-state", state) == 0
    capsys.readouterr()
    assert track(work, "--box", "0:5,6,20,20", *short, "--load-state", state) == 0
    assert "not used" not in capsys.readouterr().err
    assert track(work, "--box", "3:20,20,9,9", *short, "--load-state", state) == 2
    assert "--box 3 adds an object, but" in capsys.readouterr().err
    (work / "frames").rename(work / "others")
    words = ["--model", str(work / "model"), "--first-mask", str(work / "grey.png"), "--load-state", state, *short]
    assert main(["track", str(work / "others"), *words, "--out", str(work / "out")]) == 0
    first = json.loads((work / "out" / "frames.jsonl").read_text().splitlines()[0])
    assert first["objects"][0]["box"] == [6, 8, 18, 20]


def test_another_mask_than_the_one_it_began_with_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--no-overlay", "--max-frames", "2"]
    assert track(work, "--first-mask", str(work / "palette.png"), *words, "--save-state", str(work / "state")) == 0
    assert track(work, "--first-mask", str(work / "colour.png"), *words, "--load-state", str(work / "state")) == 2
    assert "show the objects [1, 2], the stream" in capsys.readouterr().err


def test_objects_are_added_and_corrected_on_the_way(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    later = np.zeros((HEIGHT, WIDTH), np.uint8)
    later[22:34, 27:39] = 9
    mask_image(later, palette()).save(work / "later.png")
    words = ["--mask", f"3:{work / 'later.png'}", "--box", "4:5,6,20,20", "--no-overlay"]
    assert track(work, "--first-mask", str(work / "palette.png"), *words) == 0
    masks = [np.asarray(Image.open(path)) for path in sorted((work / "out" / "masks").iterdir())]
    assert ((masks[3] == 9) == (later == 9)).all()
    assert not any((mask == 9).any() for mask in masks[:3])
    assert not any((mask == 10).any() for mask in masks[:4])
    ys, xs = np.nonzero(masks[4] == 10)
    assert len(ys) > 0
    assert 6 <= ys.min() <= ys.max() < 26
    assert 5 <= xs.min() <= xs.max() < 25
    summary = json.loads((work / "out" / "summary.json").read_text())
    assert summary["objects"] == [2, 7, 9, 10]
    assert summary["boxes"] == [[4, 5, 6, 20, 20]]
    assert track(work, "--box", "0:5,6,20,20", "--no-overlay") == 0
    assert json.loads((work / "out" / "summary.json").read_text())["objects"] == [1]
    capsys.readouterr()


BOXES = (np.s_[8:20, 6:18], np.s_[22:34, 30:42])


def boxes(one: Any, two: Any, ground: Any = 0, dtype: Any = np.uint8) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH, *np.shape(one)), dtype)
    pixels[:] = ground
    pixels[BOXES[0]], pixels[BOXES[1]] = one, two
    return pixels


@pytest.mark.parametrize(
    ("name", "pixels", "numbers", "mode"),
    [
        ("grey.png", boxes(9, 4), [4, 9], "P"),
        ("16.png", boxes(300, 40_000, dtype=np.uint16), [300, 40_000], "I;16"),
        ("255.png", boxes(255, 3, dtype=np.uint16), [3, 255], "I;16"),
        ("32.tif", boxes(70_000, 5, dtype=np.int32), [5, 70_000], "I"),
        ("rgba.png", boxes((200, 0, 0, 255), (0, 90, 0, 9), (70, 80, 90, 0)), [1, 2], "P"),
        ("alpha.png", boxes((0, 0, 0, 255), (0, 0, 0, 255), (0, 0, 0, 0)), [1], "P"),
    ],
)
def test_written_masks_have_the_numbers_of_the_given_one(
    work: Path, name: str, pixels: np.ndarray, numbers: list[int], mode: str
) -> None:
    Image.fromarray(pixels).save(work / name)
    assert track(work, "--first-mask", str(work / name), "--no-overlay", "--max-frames", "2") == 0
    assert json.loads((work / "out" / "summary.json").read_text())["objects"] == numbers
    lines = [json.loads(line) for line in (work / "out" / "frames.jsonl").read_text().splitlines()]
    assert [entry["object"] for entry in lines[1]["objects"]] == numbers
    written = sorted((work / "out" / "masks").iterdir())
    assert [path.suffix for path in written] == [".tiff" if mode == "I" else ".png"] * 2
    with Image.open(written[0]) as image:
        assert image.mode == mode
    first = mask_files.read_mask(written[0]).labels
    assert np.array_equal(first, mask_files.read_mask(work / name).labels)  # the written mask equals the given one
    assert set(np.unique(mask_files.read_mask(written[1]).labels)) <= {0, *numbers}


def test_void_is_no_object(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = boxes(1, 2)
    mask[20:22, 4:44], mask[8:20, 18] = 255, 255
    Image.fromarray(mask).save(work / "void.png")
    mask_image(mask, palette()).save(work / "void-palette.png")
    for name in ("void", "void-palette"):
        assert track(work, "--first-mask", str(work / f"{name}.png"), "--no-overlay", "--max-frames", "2") == 0
        assert "255 is void" in capsys.readouterr().err
        assert json.loads((work / "out" / "summary.json").read_text())["objects"] == [1, 2]
        with Image.open(work / "out" / "masks" / "00000.png") as image:
            assert np.array_equal(np.asarray(image), np.where(mask == 255, 0, mask))


def test_objects_of_a_colour_mask_keep_their_colours(work: Path) -> None:
    red, green = (250, 20, 10), (10, 200, 20)
    Image.fromarray(boxes(red, green)).save(work / "mask.png")
    assert track(work, "--first-mask", str(work / "mask.png"), "--max-frames", "2") == 0
    with Image.open(work / "out" / "masks" / "00000.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), boxes(red, green))
    with av.open(str(work / "out" / "overlay.mp4")) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    middles = [first[13:15, 11:13].mean((0, 1)), first[27:29, 35:37].mean((0, 1))]  # on red and green ground
    assert middles[0][0] > 180 > 90 > middles[0][1]
    assert middles[1][1] > 150 > 90 > middles[1][0]


def test_masks_of_all_kinds_say_the_same(work: Path) -> None:
    indexed, coloured, grey = (read_mask(work / f"{name}.png") for name in ("palette", "colour", "grey"))
    (_, numbers), (_, colours), (_, one) = (given.masks[0] for given in (indexed, coloured, grey))
    assert np.array_equal(numbers > 0, colours > 0)
    assert indexed.numbers == [2, 7]
    assert coloured.numbers == [1, 2]
    assert grey.numbers == [1]
    assert np.array_equal(one == 1, numbers == 1)


def test_images_that_are_no_masks(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(SourceError, match="there is no file"):
        read_mask(path)
    path.write_text("not an image")
    with pytest.raises(SourceError, match="cannot be read"):
        read_mask(path)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with pytest.raises(ConfigError, match="shows no object"):
        read_mask(path)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    with pytest.raises(SourceError, match="63 values"):
        read_mask(path)
    Image.fromarray(np.full((8, 8), 255, np.uint16)).save(path)
    assert read_mask(path).numbers == [255]
    many = np.kron(np.arange(256).reshape(16, 16) + 1, np.ones((2, 2))).astype(np.uint16)
    Image.fromarray(many).save(path)
    with pytest.raises(ConfigError, match="shows 256 objects, at most 255"):
        read_mask(path)
    both = np.zeros((8, 8, 2), np.uint8)
    both[:4] = 255, 0
    Image.fromarray(both).save(path)
    with pytest.raises(ConfigError, match="shows no object"):
        read_mask(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give --first-mask"),
        (["--box", "0:60,60,5,5"], "--box 0: the box 60, 60, 5, 5 (x, y, width, height) has no pixel"),
        (["--box", "0:5,6,9,9", "--box", "0:5,6,9,9"], "--box 0:5,6,9,9: other objects given in this frame cover"),
        (["--mask", "9:grey.png"], "frame 9 has a mask or box"),
        (["--mask", "0:grey.png", "--first-mask", "grey.png"], "frame 0 has two masks"),
        (["--first-mask", "small.png"], "the frames are 52x36"),
        (["--first-mask", "turned.png"], "before its rotation?"),
        (["--first-mask", "mask.jpg"], "keep masks as PNG"),
        (["--first-mask", "nowhere.png"], "there is no file"),
        (["--first-mask", "grey.png", "--size", "8"], "at least 16"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.chdir(work)
    Image.fromarray(np.ones((8, 8), np.uint8)).save("small.png")
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save("turned.png")
    Image.fromarray(boxes(255, 255)).save("mask.jpg")
    assert track(work, *options) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("tttstream: error:")
    assert "\n" not in error
    assert not (work / "out").exists()


@pytest.mark.parametrize("options", [["--mask", "grey.png"], ["--mask", "x:grey.png"], ["--box", "0:1,2,3"]])
def test_frames_and_boxes_that_cannot_be_read(
    work: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        track(work, *options)
    assert "expected FRAME:" in capsys.readouterr().err


def test_watch_points_to_track(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(work / "model"), "--out", str(work / "out")]
    assert main(["watch", str(work / "frames"), *words]) == 2
    assert "is a model of masks: use `tttstream track`" in capsys.readouterr().err
    assert not (work / "out").exists()


def test_a_model_of_frames_follows_no_mask(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--first-mask", str(work / "grey.png"), "--model", "base", "--out", str(work / "out")]
    assert main(["track", str(work / "frames"), *words]) == 2
    assert "base is a FrameModel, expected a Propagator such as mask or track" in capsys.readouterr().err


def test_the_palette_is_that_of_davis() -> None:
    assert palette()[:6].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert len(np.unique(palette(), axis=0)) == 256


def test_a_model_that_takes_parts_of_frames_gets_windows_unless_a_size_is_given() -> None:
    def target(size: int) -> TargetModel:
        return TargetModel(TargetConfig(key=8, hidden=8, channels=8, inside=8, outside=16, size=size))

    assert usual(target(96), None, None) == (144, 115)
    assert usual(target(96), None, 100) == (144, 100)
    assert usual(target(96), 64, None) == (64, None)
    assert usual(target(96), 64, 100) == (64, 100)
    assert usual(target(48), None, None) == (None, None)  # its windows would be too small
    assert usual(MixtureModel(MixtureConfig(size=96)), None, None) == (None, None)
