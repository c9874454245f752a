"""The shipped model `track`: an object that goes out of sight has a low confidence, and is found again."""

import numpy as np

from tttstream import models
from tttstream.evaluation.davis import region_similarity
from tttstream.evaluation.detection import auroc
from tttstream.streams import MaskStream
from tttstream.train.data import PyAV
from tttstream.train.data.objects import ObjectsClip


def test_confidence_says_when_an_object_is_lost_and_it_is_found_again() -> None:
    """Generated scenes over photographs; in each an object that takes up 3% of the picture or more is out of sight for
    some frames and comes back elsewhere. Smaller ones are often not found again at this size."""
    model, size = models.load("track"), 160
    here, away, again, before = [], [], [], []
    for seed in range(700, 716):
        clip = ObjectsClip("lost", seed=seed, size=size, frames=24, objects=1, short=200, unrest=0.3, lost=1.0)
        shot = clip.open(PyAV()).read(np.arange(24))
        assert shot.masks is not None
        if shot.masks[0].mean() < 0.03:
            continue
        stream = MaskStream(model, objects=1, size=size)
        results = [stream.push(image, shot.masks[0] if t == 0 else None) for t, image in enumerate(shot.frames)]
        there = shot.masks.any((1, 2))
        sure = np.array([float(result.confidence[0]) for result in results])
        here += sure[1:][there[1:]].tolist()
        away += sure[1:][~there[1:]].tolist()
        overlap = np.array(
            [region_similarity(r.mask == 1, mask == 1) for r, mask in zip(results, shot.masks, strict=True)]
        )
        gone = np.flatnonzero(~there)
        if len(gone) and gone[-1] < 19 and there[gone[-1] + 1 :].all():
            before.append(overlap[1 : gone[0]].mean())
            again.append(overlap[gone[-1] + 3 :].mean())
    assert len(away) > 20
    assert len(again) >= 3
    assert auroc(-np.array(away), -np.array(here)) > 0.85
    assert np.mean(np.array(again) > 0.5 * np.array(before)) >= 0.6
