"""TeachStream: what was shown is found again, what was not is unknown, and a saved stream continues bit for bit."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import tttstream
from tttstream.errors import CheckpointError, ConfigError, FrameError, ShapeError
from tttstream.frames import Frame
from tttstream.models import load
from tttstream.models.teach import TeachConfig, TeachModel, everywhere, means, seen, windows
from tttstream.sources.photographs import photograph
from tttstream.state import pack
from tttstream.streams import TeachStream

Image = NDArray[np.uint8]
THINGS = {
    "cat": ("chelsea.png", 60, 120, 200),
    "cup": ("coffee.png", 60, 150, 320),
    "face": ("astronaut.png", 20, 150, 180),
}
HEIGHT, WIDTH, SIDE = 180, 260, 80


def piece(thing: str) -> Image:
    name, top, left, side = THINGS[thing]
    cut = photograph(name)[top : top + side, left : left + side]
    return np.asarray(cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def frame(ground: str, thing: str | None = None, left: int = 30, top: int = 40) -> Image:
    """A photograph of grass, gravel or brick with a thing on it."""
    image = cv2.resize(photograph(ground), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.uint8)
    if thing is not None:
        image[top : top + SIDE, left : left + SIDE] = piece(thing)
    return image


@pytest.fixture(scope="module")
def model() -> TeachModel:
    torch.set_num_threads(1)
    return load("teach", size=160)


@pytest.fixture
def taught(model: TeachModel) -> TeachStream:
    """A stream that was shown a cat and a cup on grass."""
    stream = TeachStream(model)
    for thing in ("cat", "cup"):
        for left in (30, 120):
            stream.teach(thing, frame("grass.png", thing, left), box=(left, 40, SIDE, SIDE))
    return stream


def test_what_was_shown_is_found_elsewhere_and_the_rest_is_unknown(taught: TeachStream) -> None:
    for thing, left, top in (("cat", 150, 70), ("cup", 20, 20), ("cup", 110, 80)):
        result = taught.push(Frame(frame("gravel.png", thing, left, top), 7, 0.5))
        assert (result.index, result.time_s) == (7, 0.5)
        assert result.label == thing
        assert [found.label for found in result.found] == [thing]
        x, y, wide, tall = result.found[0].box
        assert abs(x + wide / 2 - left - SIDE / 2) < SIDE / 2
        assert abs(y + tall / 2 - top - SIDE / 2) < SIDE / 2
        assert result.unknown == pytest.approx(1 - result.found[0].probability)
    nothing = taught.push(frame("gravel.png"))
    assert (nothing.label, nothing.found) == ("unknown", ())
    assert taught.push(frame("gravel.png", "face", 120, 60)).label == "unknown"


def test_a_forgotten_thing_is_unknown_and_its_place_is_free_again(taught: TeachStream) -> None:
    shown = frame("gravel.png", "cat", 120, 60)
    assert taught.push(shown).label == "cat"
    taught.forget(" cat ")
    assert taught.labels == ("cup",)
    assert taught.push(shown).label != "cat"
    taught.teach("face", frame("grass.png", "face"), box=(30, 40, SIDE, SIDE))
    assert (taught.examples("face"), taught.examples("cup")) == (1, 2)
    assert taught.push(frame("gravel.png", "face", 120, 60)).label == "face"
    taught.reset()
    assert taught.labels == ()
    assert taught.push(shown).unknown == 1.0


def test_a_mask_counts_as_the_box_around_it(model: TeachModel) -> None:
    image = frame("brick.png", "cup", 50, 60)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[60 : 60 + SIDE, 50 : 50 + SIDE] = np.eye(SIDE, dtype=bool)
    by_mask, by_box = TeachStream(model), TeachStream(model)
    by_mask.teach("cup", image, mask=mask)
    by_box.teach("cup", image, (50, 60, SIDE, SIDE))
    assert torch.equal(pack(by_mask.state), pack(by_box.state))


def test_frames_change_nothing_and_the_state_does_not_grow(taught: TeachStream) -> None:
    before, size = pack(taught.state), taught.state_bytes
    for number in range(4):
        taught.push(frame("gravel.png", "cat", 10 * number))
    assert torch.equal(pack(taught.state), before)
    for number in range(3):
        taught.teach(f"thing {number}", frame("brick.png"))
    assert taught.state_bytes == size
    assert taught.frames == 4


def test_mistakes_change_nothing(model: TeachModel, taught: TeachStream) -> None:
    before, image = pack(taught.state), frame("grass.png", "cat")
    for wrong in ("", " ", "Unknown", "x" * 65, "a\nb"):
        with pytest.raises(ConfigError):
            taught.teach(wrong, image)
    for box in ((10, 10, 0, 5), (300, 10, 20, 20), (1, 2, 3), (0, 0, np.nan, 5), "abcd"):
        with pytest.raises(ShapeError):
            taught.teach("cat", image, box)  # type: ignore[arg-type]
    for mask in (np.full((HEIGHT, WIDTH), np.nan), np.full((HEIGHT, WIDTH), "cat")):
        with pytest.raises(ShapeError, match="finite numbers"):
            taught.teach("cat", image, mask=mask)
    with pytest.raises(FrameError, match="660x20 pixels is too long"):
        taught.push(np.zeros((20, 660, 3), np.uint8))
    with pytest.raises(ShapeError, match="shows nothing"):
        taught.teach("cat", image, mask=np.zeros((HEIGHT, WIDTH)))
    with pytest.raises(ShapeError, match="frame's size"):
        taught.teach("cat", image, mask=np.ones((5, 5)))
    with pytest.raises(ShapeError, match="not both"):
        taught.teach("cat", image, (1, 2, 30, 40), np.ones((HEIGHT, WIDTH)))
    with pytest.raises(FrameError, match="not finite"):
        taught.teach("dog", np.full((40, 40, 3), np.nan))
    with pytest.raises(ConfigError, match="taught are: cat, cup"):
        taught.forget("dog")
    taught.learn = False
    with pytest.raises(ConfigError, match="learning is off"):
        taught.teach("cat", image)
    assert torch.equal(pack(taught.state), before)
    assert taught.labels == ("cat", "cup")
    with pytest.raises(ConfigError, match="certain"):
        TeachStream(model, certain=1.5)
    with pytest.raises(ConfigError, match="size"):
        TeachStream(model, size=8)


def test_composed_and_decomposed_accents_are_one_name() -> None:
    stream = TeachStream(TeachModel(TeachConfig(size=64, labels=2, keys=8)))
    for name in ("Lo\u0308ffel", "L\u00f6ffel"):
        stream.teach(name, frame("grass.png"))
    assert stream.labels == ("L\u00f6ffel",)
    assert stream.examples(unicodedata.normalize("NFD", " Löffel")) == 2
    stream.forget(unicodedata.normalize("NFD", "Löffel"))
    assert stream.labels == ()


def test_a_full_memory_raises_an_error() -> None:
    stream = TeachStream(TeachModel(TeachConfig(size=64, labels=2, keys=8)))
    for name in ("a", "b", "a"):
        stream.teach(name, frame("grass.png"))
    with pytest.raises(ConfigError, match="all 2 labels"):
        stream.teach("c", frame("grass.png"))


PROGRAM = """
import sys
import torch
import tttstream
torch.set_num_threads(1)
stream = tttstream.TeachStream(tttstream.models.load("teach", size=160))
stream.load(sys.argv[1])
source = tttstream.open_source("walk", size=160, seed=3)
for _, frame in zip(range(3), source):
    stream.teach("place", frame, (20, 30, 60, 70))
    result = stream.push(frame)
    print(result.unknown.hex(), *(found.label + found.probability.hex() for found in result.found))
"""


def test_another_process_continues_bit_for_bit(taught: TeachStream, tmp_path: Path) -> None:
    taught.save(tmp_path / "state.safetensors")
    expected = []
    for _, frame in zip(range(3), tttstream.open_source("walk", size=160, seed=3), strict=False):
        taught.teach("place", frame, (20, 30, 60, 70))
        result = taught.push(frame)
        said = [result.unknown.hex(), *(found.label + found.probability.hex() for found in result.found)]
        expected.append(" ".join(said))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "state.safetensors")], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == expected
    with pytest.raises(CheckpointError, match="another model"):
        TeachStream(TeachModel(TeachConfig(size=160))).load(tmp_path / "state.safetensors")


def test_means_in_windows_are_exact() -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 3, 6, 10)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.2, 1 / 3, 0.5, 2 / 3], [0.25, 0.5, 0.35, 0.75]])
    found = means([features], boxes)[0]
    fine = features.repeat_interleave(4, 2).repeat_interleave(4, 3)[0]  # cells of 1/24 and 1/40
    for row, (left, top, right, bottom) in zip(found, boxes.tolist(), strict=True):
        inside = fine[:, round(24 * top) : round(24 * bottom), round(40 * left) : round(40 * right)]
        assert torch.allclose(row, inside.mean((1, 2)), atol=1e-5)
    with pytest.raises(ShapeError):
        means([features], torch.tensor([[0.5, 0.5, 0.5, 0.9]]))


@pytest.mark.parametrize(("height", "width"), [(432, 768), (500, 300), (64, 64)])
def test_all_windows_at_once_are_what_each_is(height: int, width: int) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 3, 8, 14), torch.randn(1, 5, 4, 7)]
    every, one_by_one = everywhere(maps, height, width), seen(maps, windows(height, width))
    assert every.shape == (len(windows(height, width)), 3 * 8)
    assert torch.allclose(every, one_by_one, atol=2e-5)


def test_windows_cover_the_frame() -> None:
    for height, width in ((432, 768), (768, 432), (50, 50)):
        found = windows(height, width)
        assert found[0].tolist() == [0, 0, 1, 1]
        assert (found >= 0).all()
        assert (found <= 1 + 1e-6).all()
        covered = torch.zeros(50, 50)
        for left, top, right, bottom in (50 * found[1:]).round().int().tolist():
            covered[top:bottom, left:right] += 1
        assert (covered > 3).all()
