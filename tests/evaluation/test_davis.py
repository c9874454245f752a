"""J and F as DAVIS 2016 defines them: by hand, by a literal definition, and their statistics over a sequence."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.morphology import dilation, disk

from tttstream.errors import ShapeError
from tttstream.evaluation.davis import (
    Mask,
    contour,
    contour_accuracy,
    evaluate,
    region_similarity,
    summarise,
)


def box(top: int, left: int, bottom: int, right: int, shape: tuple[int, int] = (480, 854)) -> Mask:
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_region_similarity_by_hand() -> None:
    truth = box(0, 0, 10, 10)
    assert region_similarity(truth, truth) == 1.0
    assert region_similarity(box(0, 5, 10, 15), truth) == 50 / 150
    assert region_similarity(box(20, 20, 30, 30), truth) == 0.0
    assert region_similarity(box(0, 0, 0, 0), truth) == 0.0
    assert region_similarity(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 1.0


def test_a_contour_lies_on_the_upper_left_side_of_a_change_and_not_on_the_edge_of_the_picture() -> None:
    drawn = contour(box(2, 2, 4, 4, (6, 6)))
    assert np.argwhere(drawn).tolist() == [
        [1, 1], [1, 2], [1, 3],
        [2, 1], [2, 3],
        [3, 1], [3, 2], [3, 3],
    ]  # fmt: skip
    assert not contour(np.ones((6, 6), bool)).any()
    assert np.argwhere(contour(box(0, 3, 6, 6, (6, 6)))).tolist() == [[row, 2] for row in range(6)]


def test_the_tolerance_is_a_share_of_the_diagonal_rounded_up() -> None:
    """0.008 * |(480, 854)| = 7.84: a contour that is 8 pixels off matches, one that is 9 off does not."""
    truth = box(0, 0, 480, 400)
    assert contour_accuracy(box(0, 0, 480, 408), truth) == 1.0
    assert contour_accuracy(box(0, 0, 480, 409), truth) == 0.0
    assert contour_accuracy(box(0, 0, 480, 403), truth, tolerance=2.0) == 0.0
    assert contour_accuracy(box(0, 0, 480, 402), truth, tolerance=2.0) == 1.0


def test_contour_accuracy_is_the_harmonic_mean_of_precision_and_recall() -> None:
    """A straight border found twice, once in its place and once far off: precision 1/2, recall 1, F = 2/3."""
    truth = box(0, 0, 480, 400)
    assert contour_accuracy(truth | box(0, 600, 480, 854), truth) == pytest.approx(2 / 3)
    assert contour_accuracy(truth, truth | box(0, 600, 480, 854)) == pytest.approx(2 / 3)


def test_empty_masks() -> None:
    nothing, something = box(0, 0, 0, 0), box(10, 10, 60, 60)
    assert contour_accuracy(nothing, nothing) == 1.0
    assert contour_accuracy(nothing, something) == 0.0
    assert contour_accuracy(something, nothing) == 0.0


def definition(mask: Mask, truth: Mask, radius: int) -> float:
    """F with the two contours dilated by scikit-image's disk and matched, as the benchmark's text says."""
    ours, theirs = contour(mask), contour(truth)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    precision = (ours & dilation(theirs, disk(radius))).sum() / ours.sum()
    recall = (theirs & dilation(ours, disk(radius))).sum() / theirs.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@settings(max_examples=40)
@given(arrays(bool, (12, 17)), arrays(bool, (12, 17)), st.integers(1, 4))
def test_contour_accuracy_equals_its_definition(mask: Mask, truth: Mask, radius: int) -> None:
    assert contour_accuracy(mask, truth, float(radius)) == pytest.approx(definition(mask, truth, radius))
    assert contour_accuracy(mask, truth, 0.05) == pytest.approx(
        definition(mask, truth, math.ceil(0.05 * math.hypot(12, 17)))
    )


def test_a_sequence_is_summarised_as_davis_does() -> None:
    """Quarters share their border frames: of eight values the first is 1 to 3 (places 0 .. 2), the last 6 to 8."""
    score = summarise([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    assert score.mean == pytest.approx(0.55)
    assert score.recall == 4 / 8  # above one half, not at it
    assert score.decay == pytest.approx(np.mean([0.9, 0.8, 0.7]) - np.mean([0.4, 0.3, 0.2]))
    assert summarise([0.6]) == (0.6, 1.0, 0.0)


def test_the_first_and_the_last_frame_do_not_count() -> None:
    good, bad = box(0, 0, 100, 100), box(200, 200, 300, 300)
    j, f = evaluate([bad, good, good, bad], [good, good, good, good])
    assert j == f == (1.0, 1.0, 0.0)


def test_void_pixels_do_not_count() -> None:
    """The upper half is void: pixels there are neither right nor wrong."""
    void = box(0, 0, 240, 854)
    truth, below = box(200, 100, 300, 200), box(240, 100, 300, 200)
    for wrong in (box(0, 0, 240, 854), box(0, 500, 200, 600), box(0, 0, 0, 0)):
        assert region_similarity(below | wrong, truth, void) == 1.0
        assert contour_accuracy(below | wrong, truth, void=void) == 1.0
    assert region_similarity(box(270, 100, 300, 200), truth, void) == 0.5
    assert region_similarity(void, box(100, 100, 200, 200), void) == 1.0
    nothing = box(0, 0, 0, 0)
    found, truths, voids = [below | void] * 4, [truth] * 4, [void, void, nothing, void]
    j, f = evaluate(found, truths, voids)
    assert j.mean == pytest.approx((1 + 100 * 100 / (240 * 854 + 60 * 100)) / 2)
    assert f.recall == 0.5
    with pytest.raises(ShapeError, match=r"void pixels \[480, 854\]"):
        region_similarity(truth, truth, np.zeros((4, 4), bool))
    with pytest.raises(ShapeError, match="void pixels for each of 4 masks, got 3"):
        evaluate(found, truths, voids[:3])


@pytest.mark.parametrize("other", [np.zeros((4, 5), bool), np.zeros((4, 4, 1), bool)])
def test_masks_of_other_sizes_are_refused(other: Mask) -> None:
    for measure in (region_similarity, contour_accuracy):
        with pytest.raises(ShapeError, match="of one size"):
            measure(np.zeros((4, 4), bool), other)
    with pytest.raises(ShapeError, match="at least 3"):
        evaluate([other], [other])
    with pytest.raises(ShapeError, match="at least one"):
        summarise([])
