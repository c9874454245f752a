"""`tttstream track ROOT --davis`: folders as the servers of DAVIS and YouTube-VOS take them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tttstream.cli.main import main
from tttstream.masks import MixtureConfig, MixtureModel
from tttstream.views.masks import mask_image, palette

FRAMES, HEIGHT, WIDTH = 4, 36, 52


@pytest.fixture
def model(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = MixtureConfig(width=16, heads=2, head_width=8, placed=1, slots=96, size=32)
    MixtureModel(config).save(tmp_path / "model")
    return str(tmp_path / "model")


def label(t: int, number: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    if number == 1:
        mask[8:20, 6 + 2 * t : 18 + 2 * t] = 1
    else:
        mask[22:34, 30 - t : 42 - t] = number
    return mask


def images(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for t, name in enumerate(names):
        image = rng.integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
        image[label(t, 1) > 0], image[label(t, 2) > 0] = (250, 40, 40), (40, 250, 40)
        Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)


def write(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_image(mask, palette()).save(path)


def test_davis_reads_the_first_mask_and_writes_palette_images_with_the_names_of_the_frames(
    tmp_path: Path, model: str
) -> None:
    names = [f"{t:05d}" for t in range(FRAMES)]
    for sequence in ("swan", "goat", "bear"):
        images(tmp_path / "DAVIS" / "JPEGImages" / "480p" / sequence, names)
        for t, name in enumerate(names):  # the others are ground truth, and wrong here: they must not be read
            mask = label(0, 1) + label(0, 3) if t == 0 else np.full((HEIGHT, WIDTH), 9, np.uint8)
            write(tmp_path / "DAVIS" / "Annotations" / "480p" / sequence / f"{name}.png", mask)
    words = ["track", str(tmp_path / "DAVIS"), "--davis", "--model", model, "--out", str(tmp_path / "out")]
    assert main([*words, "--sequences", "swan", "goat"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["goat", "swan"]
    for sequence in ("goat", "swan"):
        found = sorted((tmp_path / "out" / sequence).iterdir())
        assert [path.name for path in found] == [f"{name}.png" for name in names]
        for path in found:
            with Image.open(path) as image:
                assert (image.mode, image.size) == ("P", (WIDTH, HEIGHT))
                assert (image.getpalette() or [])[:12] == palette()[:4].flatten().tolist()
                assert set(np.unique(np.asarray(image))) <= {0, 1, 3}
        first = np.asarray(Image.open(found[0]))
        assert np.array_equal(first, label(0, 1) + label(0, 3))
        last = np.asarray(Image.open(found[-1]))
        truth = label(3, 1) > 0
        assert ((last == 1) & truth).sum() / ((last == 1) | truth).sum() > 0.3
    assert main(words) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_youtube_vos_shows_new_objects_where_they_come_in(tmp_path: Path, model: str) -> None:
    names = [f"{5 * t:05d}" for t in range(FRAMES)]
    root = tmp_path / "valid"
    images(root / "JPEGImages" / "0a7b27fde9", names)
    write(root / "Annotations" / "0a7b27fde9" / "00000.png", label(0, 1))
    later = label(2, 2)
    later[:4, :4] = 1  # object 1 is followed already: this is no correction
    write(root / "Annotations" / "0a7b27fde9" / "00010.png", later)
    words = ["track", str(root), "--davis", "--model", model, "--out", str(tmp_path / "out"), "--no-learn"]
    assert main(words) == 0
    found = sorted((tmp_path / "out" / "Annotations" / "0a7b27fde9").iterdir())
    assert [path.name for path in found] == [f"{name}.png" for name in names]
    masks = [np.asarray(Image.open(path)) for path in found]
    assert not any((mask == 2).any() for mask in masks[:2])
    assert np.array_equal(masks[2] == 2, label(2, 2) == 2)
    assert (masks[2] == 1).sum() > 40
    assert not (masks[2][:4, :4] == 1).all()


def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tmp_path / "DAVIS"
    images(tree / "JPEGImages" / "480p" / "swan", ["00000"])
    (tree / "Annotations" / "480p" / "swan").mkdir(parents=True)
    words = ["--model", model, "--out", str(tmp_path / "out")]
    for more, says in (
        ([str(tmp_path / "nowhere"), "--davis"], "no folder"),
        ([str(tmp_path), "--davis"], "no DAVIS or YouTube-VOS tree"),
        ([str(tree), "--davis"], "no mask of the first frame"),
        ([str(tree), "--davis", "--sequences", "goat"], "no sequence goat"),
        ([str(tree), "--davis", "--box", "0:1,1,5,5"], "leave --box out"),
        ([str(tree), "--davis", "--out", str(tree)], "the data set itself"),
        ([str(tree), "--sequences", "swan"], "belongs to --davis"),
    ):
        assert main(["track", *words, *more]) == 2
        said = capsys.readouterr().err.strip()
        assert says in said
        assert "\n" not in said
        assert not (tmp_path / "out").exists()
