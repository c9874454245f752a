"""Generated objects: a frame depends only on the seed and its number, and masks show the visible parts."""

from pathlib import Path

import numpy as np
import pytest

from tttstream.errors import DataError
from tttstream.train.data import PyAV, VideoData
from tttstream.train.data.objects import MovingObjects, ObjectsClip
from tttstream.train.data.sprites import near, streak


def clip(seed: int, **options: object) -> ObjectsClip:
    return ObjectsClip("objects", seed=seed, **{"size": 64, "frames": 8, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_a_frame_depends_on_the_seed_and_its_number_alone(seed: int) -> None:
    whole = clip(seed).open(PyAV()).read(np.arange(8))
    again = clip(seed).open(PyAV()).read(np.array([2, 5]))
    assert np.array_equal(again.frames, whole.frames[[2, 5]])
    assert whole.masks is not None
    assert again.masks is not None
    assert np.array_equal(again.masks, whole.masks[[2, 5]])
    assert not np.array_equal(clip(seed + 1).open(PyAV()).read(np.arange(1)).frames, whole.frames[:1])


def test_the_first_frame_shows_every_tracked_object_and_things_move() -> None:
    changed, two = 0, 0
    for seed in range(30):
        shot = clip(seed).open(PyAV()).read(np.array([0, 7]))
        assert shot.frames.shape == (2, 64, 64, 3)
        assert shot.frames.dtype == np.uint8
        assert shot.masks is not None
        assert shot.masks.dtype == np.uint8
        shown = set(np.unique(shot.masks[0]).tolist()) - {0}
        assert shown in ({1}, {1, 2}), seed
        assert set(np.unique(shot.masks[1]).tolist()) <= {0, *shown}
        for number in shown:
            assert 0.01 < (shot.masks[0] == number).mean() < 0.55
        changed += int((shot.masks[0] != shot.masks[1]).any())
        two += len(shown) == 2
    assert changed > 25
    assert 5 < two < 30


def test_the_requested_number_of_objects() -> None:
    for seed in range(8):
        masks = clip(seed, objects=1).open(PyAV()).read(np.arange(1)).masks
        assert masks is not None
        assert masks.max() == 1


def test_unrest_changes_the_motion_and_not_the_scene() -> None:
    """The first frame shows the same objects with or without blur; later ones differ, and objects stay in view."""
    calm_area = wild_area = 0
    for seed in range(12):
        calm, wild = (clip(seed, unrest=unrest).open(PyAV()).read(np.array([0, 7])) for unrest in (0.0, 1.0))
        assert calm.masks is not None
        assert wild.masks is not None
        moved = (calm.masks[0] > 0).sum() - (wild.masks[0] > 0).sum()
        assert abs(int(moved)) < 60
        assert not np.array_equal(calm.frames[1], wild.frames[1])
        calm_area, wild_area = calm_area + int(calm.masks[1].any()), wild_area + int(wild.masks[1].any())
    assert wild_area >= calm_area
    with pytest.raises(DataError, match="unrest"):
        MovingObjects(count=1, unrest=1.5).clips()


def test_paths_stay_near_and_smears_are_as_long_as_the_shift() -> None:
    path = np.linspace(-90, 90, 19, dtype=np.float32)
    bent = near(path, 20.0)
    assert np.abs(bent).max() <= 20
    assert (np.diff(bent) >= 0).all()
    assert bent[9] == 0
    kernel = streak(np.array([6.0, 0.0], np.float32))
    assert kernel.sum() == pytest.approx(1.0)
    assert (kernel.sum(0) > 0).sum() == 7
    assert (kernel.sum(1) > 0).sum() == 1


def test_frames_of_videos_are_used(shared_videos: Path) -> None:
    videos = (str(shared_videos / "people" / "carphone.mp4"),)
    one = clip(3, videos=videos).open(PyAV()).read(np.arange(8))
    other = clip(3, videos=videos).open(PyAV()).read(np.arange(8))
    assert np.array_equal(one.frames, other.frames)
    assert not np.array_equal(one.frames, clip(3).open(PyAV()).read(np.arange(8)).frames)


def test_the_index_lists_clips_by_their_seeds_and_parts_videos_by_file(tmp_path: Path) -> None:
    clips = MovingObjects(count=3, seed=7, size=32, frames=5).clips()
    assert [part.seed for part in clips if isinstance(part, ObjectsClip)] == [7, 8, 9]
    assert all(part.masked and part.count(PyAV()) == 5 for part in clips)
    for number in range(40):
        (tmp_path / f"{number}.mp4").write_bytes(b"")
    parts = {}
    for part in ("train", "test", "all"):
        first = MovingObjects(count=1, folders=[str(tmp_path)], part=part).clips()[0]
        assert isinstance(first, ObjectsClip)
        parts[part] = set(first.videos)
    assert parts["train"] | parts["test"] == parts["all"]
    assert not parts["train"] & parts["test"]
    assert len(parts["train"]) > len(parts["test"]) > 0


def test_sequences_have_the_size_of_the_data() -> None:
    train = MovingObjects(count=1, frames=2)
    data = VideoData(train, MovingObjects(count=1, frames=2, size=48), size=48, length=2, batch_size=1, workers=0)
    for part in ("train", "val"):
        assert next(iter(data.clips(part)[0].open(PyAV()).read(np.arange(1)).frames)).shape == (48, 48, 3)
    assert train.size is None
    with pytest.raises(DataError, match=r"drawn at 48 pixels for data of 64; leave size out"):
        VideoData(MovingObjects(count=1, size=48), size=64)


def test_an_invalid_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 1"):
        MovingObjects(count=0).clips()
    with pytest.raises(DataError, match="expected train, test or all"):
        MovingObjects(folders=[str(tmp_path)], part="val").clips()
    with pytest.raises(DataError, match="nowhere"):
        MovingObjects(folders=[str(tmp_path / "nowhere")]).clips()


def test_an_object_leaves_the_view_and_returns() -> None:
    """The scene is the same but for one object, which the first frames show, later ones do not, and the last do."""
    gone = back = 0
    for seed in range(10):
        here, lost = (clip(seed, frames=24, unrest=0.5, lost=chance).open(PyAV()) for chance in (0.0, 1.0))
        indices = np.arange(24)
        calm, other = here.read(indices), lost.read(indices)
        assert calm.masks is not None
        assert other.masks is not None
        assert np.array_equal(calm.frames[:3], other.frames[:3])
        for number in (1, 2):
            there, seen = (masks == number for masks in (calm.masks, other.masks))
            away = there.any((1, 2)) & ~seen.any((1, 2))
            if away.sum() > 1:
                gone += 1
                back += bool(seen[int(np.flatnonzero(away)[-1]) + 1 :].any())
    assert gone >= 5
    assert back >= 4
    with pytest.raises(DataError, match="lost"):
        MovingObjects(count=1, lost=-0.1).clips()


def test_frames_have_the_requested_sharpness() -> None:
    """At a larger short side the same scene has more detail in the background."""
    fine, coarse = (
        np.mean(
            [
                np.abs(
                    np.diff(clip(seed, size=160, short=short).open(PyAV()).read([0]).frames[0].astype(int), axis=1)
                ).mean()
                for seed in range(6)
            ]
        )
        for short in (300, 60)
    )
    assert fine > 1.15 * coarse
    with pytest.raises(DataError, match="short"):
        MovingObjects(count=1, short=0).clips()
