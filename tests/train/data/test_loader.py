"""The loader of lanes on real files: rows continue, workers change nothing, a run resumes anywhere, bad videos."""

from __future__ import annotations

import os
import pickle
import re
import signal
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from tttstream.errors import DataError
from tttstream.train.data import (
    BadVideoWarning,
    Batch,
    Decord,
    Index,
    LaneLoader,
    MovingDigits,
    PyAV,
    VideoData,
    Videos,
    Walks,
    Window,
)
from tttstream.train.data.loader import lost

Numbers = Callable[[Tensor], list[int]]
LENGTHS = {"0.mp4": 7, "1.mp4": 9, "2.mp4": 11, "3.mp4": 13, "4.mp4": 15}


def loader(index: Index, part: str = "train", **options: Any) -> LaneLoader:
    indices = {part: index, "train": index}
    settings = {"size": 32, "length": 4, "batch_size": 2, "workers": 0} | options
    return VideoData(**indices, **settings).loader(part)


def taken(loader: LaneLoader, count: int) -> list[Batch]:
    """This number of batches, over successive passes."""
    found: list[Batch] = []
    while len(found) < count:
        found += islice(loader, count - len(found))
    loader.close()
    return found


def same(one: Batch, other: Batch) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def test_rows_go_on_from_batch_to_batch(folder: Path, numbers: Numbers) -> None:
    data = VideoData(Videos(str(folder)), size=32, length=4, batch_size=2, workers=0)
    batches = taken(data.loader("train"), 30)
    lengths = [LENGTHS[Path(clip.name).name] for clip in data.clips("train")]
    for row in range(2):
        frames, reset, position, frame, clip = (
            torch.cat([getattr(batch, name)[row] for batch in batches])
            for name in ("frames", "reset", "position", "frame", "clip")
        )
        assert numbers(frames) == frame.tolist() == position.tolist()
        assert torch.equal(reset, position == 0)
        assert reset[0]
        for t in range(1, len(reset)):
            if reset[t]:
                assert frame[t - 1] == lengths[clip[t - 1]] - 1
            else:
                assert (clip[t], frame[t]) == (clip[t - 1], frame[t - 1] + 1)
    shown = torch.cat([batch.clip.flatten() for batch in batches]).unique()
    assert len(shown) == 5
    assert all(bool(batch.valid.all()) and batch.mask is None and bool((batch.label == -1).all()) for batch in batches)


@pytest.mark.parametrize(
    ("index", "options"),
    [
        ("videos", {"decoder": Decord(), "window": Window(6), "batch_size": 3}),
        ("videos", {"decoder": PyAV(), "window": Window(stride=2), "batch_size": 3}),
        ("digits", {"transform": v2.RandomCrop(32)}),
        ("walk", {"steps": 5, "batch_size": 1}),
    ],
    ids=["decord", "pyav", "digits", "walk"],
)
def test_workers_and_a_restart_change_nothing(folder: Path, index: str, options: dict[str, Any]) -> None:
    indices = {"videos": Videos(str(folder)), "digits": MovingDigits(6, frames=7), "walk": Walks(2, size=32)}
    expected = taken(loader(indices[index], **options), 7)
    assert all(map(same, taken(loader(indices[index], **options, workers=2), 7), expected))
    for step in (1, 5):
        again = loader(indices[index], **options)
        first = loader(indices[index], **options)
        taken(first, step)
        again.load_state_dict(first.state_dict())
        assert all(map(same, taken(again, 7 - step), expected[step:]))


def test_workers_can_be_spawned(folder: Path) -> None:
    one = loader(Videos(str(folder)), transform=v2.RandomCrop(32))
    other = pickle.loads(pickle.dumps(one._make(2)))
    assert all(
        a.batch is not None and b.batch is not None and same(a.batch, b.batch)
        for a, b in zip(islice(one._make(2), 3), islice(other, 3), strict=True)
    )


def test_the_seed_decides(folder: Path) -> None:
    one, other, again = (taken(loader(Videos(str(folder)), seed=seed), 5) for seed in (0, 1, 0))
    assert all(map(same, one, again))
    assert not all(map(same, one, other))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_shows_each_frame_once(folder: Path, numbers: Numbers, workers: int) -> None:
    evaluation = loader(Videos(str(folder)), "val", batch_size=3, workers=workers)
    for _ in range(2):
        batches = list(evaluation)
        assert len(batches) == len(evaluation)
        shown = sorted(
            (clip, frame)
            for batch in batches
            for clip, frame in zip(batch.clip[batch.valid].tolist(), batch.frame[batch.valid].tolist(), strict=True)
        )
        assert shown == [(clip, frame) for clip, length in enumerate(LENGTHS.values()) for frame in range(length)]
        for batch in batches:
            assert numbers(batch.frames[batch.valid]) == batch.frame[batch.valid].tolist()
            assert not batch.frames[~batch.valid].any()
            assert bool((batch.clip[~batch.valid] == -1).all())
    evaluation.close()


def test_an_evaluation_has_no_more_lanes_than_clips(folder: Path) -> None:
    (batch, *_) = list(loader(Videos(str(folder)), "val", batch_size=64, eval_steps=1))
    assert batch.frames.shape == (5, 4, 3, 32, 32)


def test_windows_of_a_fixed_length(folder: Path, numbers: Numbers) -> None:
    batches = taken(loader(Videos(str(folder)), window=Window(3, stride=2), length=3, batch_size=5), 8)
    starts = set()
    for batch in batches:
        assert torch.equal(batch.position, torch.arange(3).expand(5, 3))
        assert torch.equal(batch.reset, batch.position == 0)
        assert numbers(batch.frames) == batch.frame.flatten().tolist()
        assert bool((batch.frame.diff(dim=1) == 2).all())
        starts |= set(batch.frame[:, 0].tolist())
    assert len(starts) > 4


def test_a_clip_shorter_than_its_window_is_shown_again(movie: Callable[..., Path], numbers: Numbers) -> None:
    path = movie("short.mp4", 3)
    (batch,) = taken(loader(Videos(str(path)), window=Window(7), length=7, batch_size=1), 1)
    assert numbers(batch.frames) == batch.frame[0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch.reset[0].tolist() == [True, False, False] * 2 + [True]


def test_in_an_evaluation_the_rest_of_its_window_is_not_valid(movie: Callable[..., Path], numbers: Numbers) -> None:
    movie("clips/short.mp4", 3)
    folder = movie("clips/whole.mp4", 9).parent
    (folder / "unreadable.mp4").write_bytes(b"no video")
    options: dict[str, Any] = {"window": None, "eval_window": Window(5, start="first"), "length": 5, "batch_size": 3}
    (batch,) = list(loader(Videos(str(folder)), "val", **options))
    assert batch.valid.sum(1).tolist() == [3, 0, 5]
    assert numbers(batch.frames[batch.valid]) == [0, 1, 2, 0, 1, 2, 3, 4]
    assert batch.frame[0].tolist() == [0, 1, 2, -1, -1]
    assert bool(batch.reset[~batch.valid].all())


def test_a_transform_is_the_same_for_all_frames_of_a_visit(folder: Path) -> None:
    transform = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip(), v2.RandomCrop(24)])
    batches = taken(loader(Videos(str(folder)), transform=transform, size=24, length=5, batch_size=1), 40)
    frames, reset = (torch.cat([getattr(batch, name)[0] for batch in batches]) for name in ("frames", "reset"))
    dark = frames.float().mean(1) < 14
    visit = reset.cumsum(0)
    looks = [dark[visit == number].float() for number in range(1, int(visit.max()))]
    for look in looks:
        assert float((look - look[0]).abs().mean()) < 0.05
    assert max(float((look[0] - looks[0][0]).abs().mean()) for look in looks) > 0.1


def test_a_transform_of_the_wrong_size(folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected uint8 frames \[3, 32, 32\] to come out, got .*24, 24"):
        taken(loader(Videos(str(folder)), transform=v2.CenterCrop(24), workers=2), 1)
    floats = v2.ToDtype(torch.float32, scale=True)
    with pytest.raises(DataError, match=r"got torch\.float32"):
        taken(loader(Videos(str(folder)), transform=floats), 1)


class TestBadVideos:
    @pytest.fixture
    def bad(self, folder: Path) -> Path:
        (folder / "0.mp4").write_bytes(b"no video" * 100)
        (folder / "1.mp4").write_bytes(b"")
        return folder

    @pytest.mark.parametrize("window", [Window(), Window(6)], ids=["whole", "windows"])
    def test_are_passed_over_and_listed(self, bad: Path, window: Window, numbers: Numbers) -> None:
        data = VideoData(Videos(str(bad)), size=32, length=6, batch_size=5, window=window, workers=2)
        batches = taken(data.loader("train"), 4)
        for batch in batches:
            assert numbers(batch.frames) == batch.frame.flatten().tolist()
            names = {Path(data.clips("train")[clip].name).name for clip in batch.clip.unique()}
            assert names <= {"2.mp4", "3.mp4", "4.mp4"}
        with pytest.warns(BadVideoWarning, match=r"2 videos .*: 0\.mp4 cannot be read.*; 1\.mp4 cannot"):
            data.teardown("fit")

    @pytest.mark.parametrize("window", [Window(), Window(6)], ids=["whole", "windows"])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_are_an_error_if_requested(self, bad: Path, window: Window, workers: int) -> None:
        with pytest.raises(DataError, match=r"[01]\.mp4.* cannot be read .*bad_video=skip") as caught:
            taken(loader(Videos(str(bad)), window=window, workers=workers, batch_size=5, bad_video="raise"), 1)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("window", [Window(), Window(6)], ids=["whole", "windows"])
    def test_not_one_good_video(self, bad: Path, window: Window) -> None:
        for path in bad.iterdir():
            path.write_bytes(b"no video")
        with pytest.raises(DataError, match=r"not one of 5 videos can be read: 0\.mp4") as caught:
            taken(loader(Videos(str(bad)), window=window), 1)
        assert "\n" not in str(caught.value)

    def test_a_damaged_video_is_read_up_to_the_damage(self, movie: Callable[..., Path], numbers: Numbers) -> None:
        damaged = movie("damaged.mp4", 40)
        data = bytearray(damaged.read_bytes())
        begin = data.index(b"mdat")
        end = data.index(b"moov")
        data[begin + (end - begin) // 2 : end - 8] = bytes(end - 8 - begin - (end - begin) // 2)
        damaged.write_bytes(data)
        for workers in (0, 1):
            options: dict[str, Any] = {"size": 32, "length": 40, "batch_size": 1, "window": Window(40)}
            module = VideoData(Videos(str(damaged)), **options, workers=workers)
            (batch,) = taken(module.loader("train"), 1)
            good = numbers(batch.frames).index(0, 1)
            assert 5 < good < 35
            assert numbers(batch.frames)[:good] == list(range(good))
            assert batch.reset[0].nonzero().flatten().tolist() == list(range(0, 40, good))
            with pytest.warns(BadVideoWarning, match=r"damaged\.mp4: .*(damaged frames|breaks off)"):
                module.teardown("fit")
            with pytest.raises(DataError, match=r"damaged\.mp4: .*(damaged frames|breaks off)"):
                taken(loader(Videos(str(damaged)), **options, workers=workers, bad_video="raise"), 1)


class Dying:
    """An iterator of torch whose worker is killed while it ends."""

    def _shutdown_workers(self) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Aborted.")


def test_a_loader_that_is_dropped_ends_its_workers_as_one_that_is_closed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dropped = loader(Videos(str(folder)))
    dropped._parts = Dying()  # type: ignore[assignment]
    del dropped
    assert "killed by signal" in caplog.text


def _workers(loader: LaneLoader) -> list[Any]:
    workers: list[Any] = loader._parts._workers  # type: ignore[union-attr]
    return workers


def _gone(pids: list[int], limit_s: float = 30.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not any(Path(f"/proc/{pid}").exists() and "Z" not in _status(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


class TestWorkers:
    """Frames so large that none fits into a pipe: a worker that is killed holds it while it writes."""

    @pytest.fixture
    def large(self, folder: Path) -> LaneLoader:
        return loader(Videos(str(folder)), size=256, length=16, workers=2)

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGBUS", "SIGSEGV"])
    def test_one_that_is_killed_ends_the_run(self, large: LaneLoader, name: str) -> None:
        batches = iter(large)
        next(batches)
        pids = [worker.pid for worker in _workers(large)]
        os.kill(pids[0], getattr(signal, name))
        with pytest.raises((DataError, RuntimeError)) as caught:  # RuntimeError if torch raises outside the loader
            taken(large, 1000)
        error = lost(caught.value) or caught.value
        assert re.match("a worker that reads data (was killed|ended)", str(error)), error
        assert "data.workers=0" in str(error)
        large.close()
        assert _gone(pids)

    def test_signals_to_the_group_leave_them(self, large: LaneLoader) -> None:
        batches = iter(large)
        next(batches)
        for worker in _workers(large):
            os.kill(worker.pid, signal.SIGINT)
            os.kill(worker.pid, signal.SIGTERM)
        pids = [worker.pid for worker in _workers(large)]
        assert [batch.frames.shape[0] for batch in taken(large, 4)] == [2] * 4
        assert _gone(pids)

    def test_workers_use_no_shared_memory(self, large: LaneLoader, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: Any) -> None:
            raise RuntimeError("unable to allocate shared memory")

        for name in ("_share_fd_cpu_", "_share_filename_cpu_"):
            monkeypatch.setattr(torch.UntypedStorage, name, full)  # forked workers have it too
        (batch,) = taken(large, 1)
        assert batch.frames.shape == (2, 16, 3, 256, 256)

    def test_they_end_with_their_parent(self, folder: Path) -> None:
        """Killed while the workers wait for room in the pipe."""
        import multiprocessing

        def parent(pipe: Any) -> None:
            large = loader(Videos(str(folder)), size=256, length=16, workers=2)
            next(iter(large))
            pipe.send([worker.pid for worker in _workers(large)])
            time.sleep(60)

        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=parent, args=(there,))
        process.start()
        pids = here.recv()
        process.kill()
        process.join()
        assert _gone(pids)
