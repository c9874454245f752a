"""The embedded walk: repeatable, seekable, with complete events, fair to frame difference, with constant memory."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.photographs import photograph
from tttstream.sources.walk import Scene, Walk


def test_frames() -> None:
    with open_source("walk") as source:
        frames = list(itertools.islice(source, 3))
        assert (source.name, source.fps, source.frames, source.live) == ("walk", 30, None, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.time_s for frame in frames] == [0, 1 / 30, 2 / 30]
    assert all(frame.image.shape == (128, 128, 3) and frame.image.dtype == np.uint8 for frame in frames)


@pytest.mark.parametrize("size", [16, 75])
def test_any_size(size: int) -> None:
    walk = Walk(size=size, seed=5)
    assert {walk.frame(index).image.shape for index in range(0, 900, 45)} == {(size, size, 3)}
    assert walk.events(900)


def test_a_seed_repeats_bit_for_bit_and_another_differs() -> None:
    one, two, other = Walk(size=48, seed=1), Walk(size=48, seed=1), Walk(size=48, seed=2)
    for index in range(0, 1500, 37):
        np.testing.assert_array_equal(one.frame(index).image, two.frame(index).image)
    differences = [np.abs(one.frame(i).image.astype(int) - other.frame(i).image).mean() for i in range(0, 600, 50)]
    assert min(differences) > 8
    assert one.events(3000) == two.events(3000) != other.events(3000)


def test_seeking_is_exact() -> None:
    source = Walk(size=48)
    whole = [frame.image for frame in itertools.islice(source, 700)]
    for index in (0, 1, 239, 500, 699):
        again = Walk(size=48)
        for _ in itertools.islice(again, index):
            pass
        position = json.loads(json.dumps(again.position()))
        fresh = Walk(size=48)
        fresh.seek(position)
        frame = next(iter(fresh))
        assert frame.index == index
        np.testing.assert_array_equal(frame.image, whole[index])
    with pytest.raises(SourceError, match="seed 0 and size 48"):
        Walk(size=64).seek(source.position())
    far = Walk(size=48)
    far.seek({"source": "walk", "index": 10**9, "seed": 0, "size": 48})
    assert next(iter(far)).index == 10**9


def test_events_do_not_depend_on_the_limit() -> None:
    everything = Walk(seed=3).events(5000)
    assert everything == sorted(everything, key=lambda event: event.start)
    for until in (0, 1, 700, 2345, 5000):
        assert Walk(seed=3).events(until) == [event for event in everything if event.start < until]
    kinds = [event.kind for event in everything]
    assert kinds.count("scene") in range(23, 26)
    assert 3 <= kinds.count("revisit") <= 15
    assert 8 <= kinds.count("object") <= 22
    revisits = {event.start for event in everything if event.kind == "revisit"}
    assert revisits < {event.start for event in everything if event.kind == "scene"}


def quiet(walk: Walk, index: int, *, novel: bool) -> NDArray[np.generic]:
    """A frame of the walk with its novel or its usual objects taken out."""
    number = walk._number(index)
    scene = walk._scene(number)
    bare: Scene = scene._replace(passes=tuple(item for item in scene.passes if item.novel != novel))
    original = walk._scene
    walk._scene = lambda asked: bare if asked == number else original(asked)  # type: ignore[method-assign,assignment]
    image = walk.frame(index).image
    walk._scene = original  # type: ignore[method-assign]
    return image


def test_novel_objects_are_seen_exactly_when_the_events_say() -> None:
    walk = Walk(size=96, seed=1)
    events = [event for event in walk.events(2500) if event.kind == "object"]
    assert len(events) >= 5
    for event in events:
        for index in range(event.start - 3, event.stop + 3):
            shows = bool((walk.frame(index).image != quiet(walk, index, novel=True)).any())
            assert shows == (event.start <= index < event.stop), (event, index)


def test_cuts_are_the_largest_changes_and_match_the_events() -> None:
    walk = Walk(size=48, seed=4)
    images = [quiet(walk, index, novel=False).astype(int) for index in range(1500)]
    steps = np.array([np.abs(late - early).mean() for early, late in itertools.pairwise(images)])
    cuts = [event.start for event in walk.events(1500) if event.kind == "scene"]
    assert sorted(np.argsort(steps)[-len(cuts) :] + 1) == cuts


def test_a_revisit_shows_the_same_place_and_a_cut_another_one() -> None:
    walk = Walk(seed=6)
    scenes = [walk._scene(number) for number in range(150)]
    known: set[int] = set()
    for before, scene in itertools.pairwise(scenes):
        known.add(before.place)
        assert scene.known == (scene.place in known)
        assert walk._photograph(scene.place) != walk._photograph(before.place)
        assert scene.start == before.stop
        assert 100 <= scene.stop - scene.start <= 300
    assert 0.25 < np.mean([scene.known for scene in scenes]) < 0.55


def test_usual_objects_return_and_novel_ones_are_new() -> None:
    walk = Walk(seed=7)
    passes = [[(item.key, item.novel) for item in walk._scene(number).passes] for number in range(60)]
    assert not any(novel for scene in passes[:2] for _, novel in scene)
    usual = [key for scene in passes for key, novel in scene if not novel]
    novel = [key for scene in passes for key, new in scene if new]
    assert len(set(usual)) == 4
    assert len(set(novel)) == len(novel) > 20
    assert not set(usual) & set(novel)


def test_frame_difference_does_not_tell_novel_from_usual_objects() -> None:
    walk = Walk(size=40, seed=0)
    change: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2, 40):
        scene = walk._scene(number)
        for item in scene.passes:
            middle = scene.start + (item.start + item.stop) // 2
            early, late = walk.frame(middle).image.astype(int), walk.frame(middle + 1).image.astype(int)
            change[item.novel].append(float(np.abs(late - early).mean()))
    novel, usual = np.array(change[True]), np.array(change[False])
    assert len(novel) > 15
    wins = (novel[:, None] > usual[None]).mean()
    assert 0.3 < wins < 0.7


def test_motion_is_smooth_and_the_light_changes() -> None:
    walk = Walk(size=64, seed=2)
    images = [quiet(walk, index, novel=False) for index in range(80)]
    steps = [np.abs(late.astype(int) - early).mean() for early, late in itertools.pairwise(images)]
    assert max(steps) < 2.5 * np.median(steps)
    assert np.abs(images[79].astype(int) - images[0]).mean() > 1.5 * np.median(steps)
    brightness = [float(image.mean()) for image in images]
    assert max(brightness) - min(brightness) > 3


def test_speed() -> None:
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    source = iter(Walk())
    next(source)
    start = time.process_time()
    for _ in itertools.islice(source, 300):
        pass
    rate = 300 / (time.process_time() - start)
    cv2.setNumThreads(threads)
    assert rate > 200  # about 900 on an idle core; the promise is 400


def test_memory_is_flat(resident_mb: Callable[[], float]) -> None:
    source = iter(Walk(size=32))
    for _ in itertools.islice(source, 1500):
        pass
    before = resident_mb()
    for _ in itertools.islice(source, 6000):
        pass
    assert resident_mb() - before < 5


def test_each_photograph_is_read_once() -> None:
    walk = Walk(size=32, seed=8)
    misses = photograph.cache_info().misses
    for index in range(0, 8000, 20):
        walk.frame(index)
    assert photograph.cache_info().misses == misses


def test_refused_arguments() -> None:
    for size in (0, 15, -1, 100_000):
        with pytest.raises(SourceError, match="size is"):
            open_source("walk", size=size)
    with pytest.raises(SourceError, match="seed is -1"):
        open_source("walk", seed=-1)
