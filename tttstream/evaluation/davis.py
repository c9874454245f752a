"""Region similarity J and contour accuracy F as DAVIS defines them, and their statistics over a sequence.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 5.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import ShapeError

TOLERANCE = 0.008
"""The largest distance between matching contours, as a share of the picture's diagonal."""

Mask = NDArray[Any]


class Score(NamedTuple):
    """mean over the frames; recall, the share of frames above 0.5; decay, first quarter minus last quarter."""

    mean: float
    recall: float
    decay: float


def region_similarity(mask: Mask, truth: Mask, void: Mask | None = None) -> float:
    """J: intersection over union of two masks [H, W]; 1 if both are empty. void [H, W]: ignored pixels."""
    mask, truth = _pair(mask, truth, void)
    union = np.count_nonzero(mask | truth)
    return 1.0 if union == 0 else float(np.count_nonzero(mask & truth) / union)


def contour_accuracy(mask: Mask, truth: Mask, tolerance: float = TOLERANCE, void: Mask | None = None) -> float:
    """F: harmonic mean of precision and recall of the contour pixels of two masks [H, W].

    A contour pixel is right if the other contour, dilated by a disk, covers it. The disk's radius is the tolerance
    times the diagonal, rounded up to whole pixels; a tolerance of 1 or more is the radius itself. void [H, W]: pixels
    that belong to neither mask, as in the benchmark.
    """
    mask, truth = _pair(mask, truth, void)
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(*mask.shape))
    ours, theirs = contour(mask), contour(truth)
    count, wanted = np.count_nonzero(ours), np.count_nonzero(theirs)
    if count == 0 or wanted == 0:  # precision of an empty prediction and recall of an empty ground truth are 1
        return float(count == wanted)
    precision = np.count_nonzero(ours & _dilate(theirs, radius)) / count
    recall = np.count_nonzero(theirs & _dilate(ours, radius)) / wanted
    return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def contour(mask: Mask) -> NDArray[np.bool_]:
    """Pixels [H, W] that differ from the one to the right, the one below, or the one between these two.

    The last row and column are repeated outside of the picture, so the picture's edge is no contour.
    """
    mask = np.asarray(mask, dtype=bool)
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, across = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.asarray((mask ^ right) | (mask ^ below) | (mask ^ across))


def summarise(values: Sequence[float]) -> Score:
    """Mean, recall and decay of one sequence's values, frame after frame.

    DAVIS leaves out the first frame, whose mask is given, and the last; the caller must do so too.
    """
    if len(values) == 0:
        raise ShapeError("expected the values of at least one frame, got none")
    found = np.asarray(values, dtype=np.float64)
    ends = np.round(np.linspace(1, len(found), 5) + 1e-10).astype(int) - 1
    first, last = found[ends[0] : ends[1] + 1], found[ends[3] : ends[4] + 1]
    return Score(float(found.mean()), float((found > 0.5).mean()), float(first.mean() - last.mean()))


def evaluate(masks: Sequence[Mask], truths: Sequence[Mask], voids: Sequence[Mask] | None = None) -> tuple[Score, Score]:
    """J and F of one object over a sequence of masks [H, W], the first and the last frame left out.

    voids: for each frame the unknown pixels [H, W], which are ignored.
    """
    if len(masks) != len(truths) or len(masks) < 3:
        raise ShapeError(f"expected two sequences of at least 3 masks alike, got {len(masks)} and {len(truths)}")
    if voids is not None and len(voids) != len(masks):
        raise ShapeError(f"expected void pixels for each of {len(masks)} masks, got {len(voids)}")
    unknown: Sequence[Mask | None] = [None] * len(masks) if voids is None else voids
    triples = list(zip(masks, truths, unknown, strict=True))[1:-1]
    return (
        summarise([region_similarity(mask, truth, void) for mask, truth, void in triples]),
        summarise([contour_accuracy(mask, truth, void=void) for mask, truth, void in triples]),
    )


def _pair(mask: Mask, truth: Mask, void: Mask | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    mask, truth = np.asarray(mask, dtype=bool), np.asarray(truth, dtype=bool)
    if mask.ndim != 2 or mask.shape != truth.shape:
        raise ShapeError(f"expected two masks [H, W] of one size, got {list(mask.shape)} and {list(truth.shape)}")
    if void is None:
        return mask, truth
    known = ~np.asarray(void, dtype=bool)
    if known.shape != mask.shape:
        raise ShapeError(f"expected void pixels {list(mask.shape)} as the masks, got {list(known.shape)}")
    return mask & known, truth & known


def _dilate(points: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """Every pixel within the radius of a point: dilation by a disk."""
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~points) <= radius)
