"""The embedded places: repeatable, seekable, with exact poses and complete events of changes out of view."""

from __future__ import annotations

import itertools
import json
import math

import cv2
import numpy as np
import pytest

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.photographs import HELD_OUT, NAMES
from tttstream.sources.places import EXTENT, SIGHT, THING, UNSEEN, Places

CHANGES = ("exchanged", "vanished", "appeared", "moved")


def test_frames_carry_their_pose() -> None:
    with open_source("places") as source:
        frames = list(itertools.islice(source, 3))
        assert (source.name, source.fps, source.frames, source.live) == ("places", 30, None, False)
    assert [(frame.index, frame.time_s) for frame in frames] == [(0, 0.0), (1, 1 / 30), (2, 2 / 30)]
    assert all(frame.image.shape == (128, 128, 3) and frame.image.dtype == np.uint8 for frame in frames)
    assert all(frame.pose is not None and frame.pose.shape == (5,) for frame in frames)


def test_a_seed_repeats_bit_for_bit_and_another_differs() -> None:
    one, two, other = Places(size=48, seed=1), Places(size=48, seed=1), Places(size=48, seed=2)
    for index in range(0, 6000, 331):
        np.testing.assert_array_equal(one.frame(index).image, two.frame(index).image)
        np.testing.assert_array_equal(one.frame(index).pose, two.frame(index).pose)
    differences = [np.abs(one.frame(i).image.astype(int) - other.frame(i).image).mean() for i in range(0, 600, 50)]
    assert min(differences) > 5
    assert one.events(6000) == two.events(6000) != other.events(6000)


def test_seeking_is_exact_and_another_source_is_refused() -> None:
    whole = [frame.image for frame in itertools.islice(Places(size=32, seed=4), 40)]
    source = Places(size=32, seed=4)
    for _ in itertools.islice(source, 25):
        pass
    position = json.loads(json.dumps(source.position()))
    fresh = Places(size=32, seed=4)
    fresh.seek(position)
    frame = next(iter(fresh))
    assert frame.index == 25
    np.testing.assert_array_equal(frame.image, whole[25])
    with pytest.raises(SourceError, match=r"position is from seed 4 and size 32 and .* this source has seed 5"):
        Places(size=32, seed=5).seek(position)
    far = Places(size=32)
    far.seek({**far.position(), "index": 10**9})
    assert next(iter(far)).index == 10**9


def test_frames_do_not_depend_on_earlier_calls() -> None:
    indices = np.random.default_rng(0).permutation(np.arange(0, 9000, 450))
    jumping = Places(size=24, seed=7)
    for index in indices:
        np.testing.assert_array_equal(jumping.frame(int(index)).image, Places(size=24, seed=7).frame(int(index)).image)


def test_the_pose_is_the_position_of_the_picture_in_the_world() -> None:
    """Two views of the same point from different poses show the same pixels there."""
    places = Places(size=128, seed=3)
    straight = places.look(np.array([1.5, 1.5, 0.0, 0.0, 0.0]), 0)
    moved = places.look(np.array([1.75, 1.5, 0.0, 0.0, 0.0]), 0)
    np.testing.assert_allclose(straight[:, 32:], moved[:, :96], atol=1.0)  # a quarter of a view to the right
    wide = places.look(np.array([1.5, 1.5, math.log(2.0), 0.0, 0.0]), 0)
    small = cv2.resize(straight, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(wide[32:96, 32:96] - small).mean() < 6
    turned = places.look(np.array([1.5, 1.5, 0.0, math.pi / 2, 0.0]), 0)
    assert np.abs(turned - np.rot90(straight)).mean() < 2


def test_the_camera_stays_in_the_world_and_returns() -> None:
    places = Places(size=16, seed=5)
    poses = np.array([places.frame(index).pose for index in range(0, 1500, 5)])
    here = poses[poses[:, 4] == 0]
    reach = 0.5 * np.exp(here[:, 2]) * np.sqrt(2)
    assert (here[:, :2].T - reach > -0.3).all()
    assert (here[:, :2].T + reach < EXTENT + 0.3).all()
    cells = {(int(x * 2), int(y * 2)) for x, y in here[:, :2]}
    assert len(cells) >= 12  # of the 16 that the middle of a view can be in
    apart = np.abs(here[:, None, :2] - here[None, :, :2]).max(-1) < 0.2
    late = np.abs(np.subtract.outer(np.arange(len(here)), np.arange(len(here)))) > 40
    assert (apart & late).any(1).mean() > 0.8


def test_worlds_change_and_return() -> None:
    places = Places(size=16, seed=2)
    worlds = [places._visit(number).world for number in range(60)]
    assert all(a != b for a, b in itertools.pairwise(worlds))
    assert 0.15 < np.mean([world != number for number, world in enumerate(worlds)]) < 0.6
    events = places.events(60 * 2400)
    assert sum(event.kind == "scene" for event in events) in (58, 59, 60)


@pytest.mark.parametrize("seed", range(4))
def test_changes_are_out_of_view_at_spots_that_are_seen_before_and_after(seed: int) -> None:
    places = Places(size=64, seed=seed)
    events = [event for event in places.events(5000) if event.kind in CHANGES]
    assert len(events) >= 15
    assert {event.kind for event in events} == set(CHANGES)
    for event in events:
        assert event.where is not None
        assert event.since is not None
        assert event.since < event.start < event.stop
        spot = np.array(event.where[:2])
        for index in range(event.since - UNSEEN, event.start):
            pose = places.frame(index).pose if index % 8 == 0 else None
            if pose is not None and pose[4] == event.where[2]:
                offset = np.abs(spot - pose[:2]).max()
                assert offset > SIGHT * math.exp(pose[2]) or index == event.start
                if index <= event.since:
                    assert offset > 0.5 * math.exp(pose[2])
        pose = places.frame(event.start).pose
        assert pose is not None
        assert np.abs(spot - pose[:2]).max() < SIGHT * math.exp(pose[2])
        before, after = (places.things(index).get((spot[0], spot[1]), -1) for index in (event.since - 1, event.start))
        assert before != after
        if event.kind == "vanished":
            assert after == -1
        if event.kind == "appeared":
            assert before == -1
        if event.kind == "exchanged":
            assert min(before, after) >= 0


def test_a_change_is_seen_where_it_happened_and_nowhere_else() -> None:
    places = Places(size=96, seed=1)
    event = next(event for event in places.events(4000) if event.kind in ("appeared", "vanished"))
    assert event.where is not None
    assert event.since is not None
    x, y, world = event.where
    pose = np.array([x, y, 0.0, 0.0, world])
    shown = np.abs(places.look(pose, event.since) - places.look(pose, event.since - 1)).max(-1)
    assert shown[36:60, 36:60].mean() > 15
    border = round(96 * (0.5 - THING / 2)) - 3
    assert shown[:border].max() == shown[-border:].max() == 0


def test_events_do_not_depend_on_the_limit() -> None:
    everything = Places(seed=3).events(6000)
    for until in (0, 1, 700, 2345, 6000):
        assert Places(seed=3).events(until) == [event for event in everything if event.start < until]


def test_photographs_are_parted() -> None:
    assert set(HELD_OUT) < set(NAMES)
    assert Places().photographs == HELD_OUT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "seed is -1"),
        ({"photographs": ("coffee.png",)}, "expected 2 or more"),
        ({"photographs": ("coffee.png", "mine.png")}, "expected 2 or more of"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Places(**options)  # type: ignore[arg-type]
