"""The schedule of lanes: a pure function of the seed that deals every clip, and can be entered at any step."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tttstream.errors import DataError
from tttstream.train.data.lanes import FOREVER, Piece, Schedule, Window

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=8)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 12), st.integers(0, 3))
def test_a_lane_can_be_entered_at_any_step(lengths: list[int], lanes: int, length: int, step: int, seed: int) -> None:
    schedule = Schedule(lengths, lanes, seed=seed)
    for lane in range(lanes):
        whole = list(islice(schedule.segments(lane, length), step + 5))
        assert list(islice(schedule.segments(lane, length, step), 5)) == whole[step:]
        assert all(sum(piece.stop - piece.start for piece in pieces) == length for pieces in whole)


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9), st.integers(0, 3))
def test_visits_are_shown_from_their_first_frame_to_their_last(
    lengths: list[int], lanes: int, length: int, seed: int
) -> None:
    pieces = [p for segment in islice(Schedule(lengths, lanes, seed=seed).segments(0, length), 20) for p in segment]
    for before, after in pairwise(pieces):
        if after.start:
            assert (after.visit, after.start) == (before.visit, before.stop)
        else:
            assert before.stop == lengths[before.visit.clip]
            assert after.visit.number == before.visit.number + lanes


@given(LENGTHS, st.integers(1, 5), st.integers(1, 9))
def test_each_clip_occurs_once_in_a_round(lengths: list[int], lanes: int, length: int) -> None:
    schedule = Schedule(lengths, lanes, shuffle=False, rounds=1)
    shown = [0] * len(lengths)
    for lane in range(lanes):
        steps = -(-schedule.frames(lane) // length)
        segments = schedule.segments(lane, length)
        for pieces in islice(segments, steps):
            for piece in pieces:
                shown[piece.visit.clip] += piece.stop - piece.start
        assert next(segments) == []
    assert shown == lengths


def test_each_round_is_shuffled_by_the_seed() -> None:
    def order(seed: int) -> list[int]:
        return [Schedule([1] * 6, 2, seed=seed).clip(number) for number in range(18)]

    rounds = np.array(order(0)).reshape(3, 6)
    assert all(sorted(row) == list(range(6)) for row in rounds)
    assert len({tuple(row) for row in rounds}) == 3
    assert order(0) == order(0) != order(1)
    assert [Schedule([1] * 3, 1, shuffle=False).clip(n) for n in range(5)] == [0, 1, 2, 0, 1]


def test_seeds_of_visits_differ() -> None:
    pieces = [piece for segment in islice(Schedule([4] * 3, 1).segments(0, 4), 9) for piece in segment]
    assert len({piece.visit.seed for piece in pieces}) == 9


def test_a_clip_that_never_ends_stays() -> None:
    segments = Schedule([FOREVER, FOREVER], 3).segments(2, 10, step=10**9)
    (piece,) = next(segments)
    assert (piece.visit.number, piece.start, piece.stop) == (2, 10**10, 10**10 + 10)


def test_windows() -> None:
    assert Window().length(10) == 10
    assert Window(stride=3).length(10) == 4
    assert Window().length(None) == FOREVER
    assert Window(5).length(3) == 5
    assert Window(5, start="centre").first(15, seed=0) == 5
    assert Window(5, stride=2, start="centre").first(15, seed=0) == 3
    assert Window(5).first(3, seed=0) == Window(5, start="first").first(50, seed=0) == Window().first(50, seed=0) == 0
    firsts = {Window(5, stride=2).first(12, seed) for seed in range(60)}
    assert firsts == set(range(4))
    assert Window(5).first(None, seed=1) > 0


@pytest.mark.parametrize("values", [{"frames": 0}, {"stride": 0}, {"start": "middle"}])
def test_invalid_windows(values: dict[str, int]) -> None:
    with pytest.raises(DataError, match="window"):
        Window(**values)  # type: ignore[arg-type]


def test_pieces_of_one_segment() -> None:
    first, second = next(Schedule([3, 9], 1, shuffle=False).segments(0, 5))
    assert isinstance(first, Piece)
    assert (first.visit.clip, first.start, first.stop) == (0, 0, 3)
    assert (second.visit.clip, second.start, second.stop) == (1, 0, 2)
