"""Calibrate the surprise of a trained map with its errors on streams where nothing has changed."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from tttstream.evaluation.spliced import THRESHOLD
from tttstream.models.map import MapModel, MapOutput
from tttstream.models.map.model import View
from tttstream.sources.places import Places
from tttstream.streams.map import LEAST, Compared, MapStream
from tttstream.train.data.generated import TRAINED_ON

SEEDS = (700, 701, 702)  # of the streams
FRAMES = 3000  # of each stream
AROUND = 30  # frames before and after an event that are left out
LEAST_CELLS = 1000
FAMILIAR = 0.9  # least familiarity of a cell whose residual is used
RARE = 0.999  # share of the frames without changes whose surprise stays below THRESHOLD


class _Recorded(MapStream):
    """A stream that keeps its latest comparison."""

    now: Compared

    def _compare(self, picture: Tensor, pose: Tensor, view: View) -> Compared:
        self.now = super()._compare(picture, pose, view)
        return self.now


@torch.no_grad()
def calibrate(model: MapModel, *, seeds: Sequence[int] = SEEDS, frames: int = FRAMES) -> None:
    """Measure a trained map on `places` with the photographs for training, and set three things in place.

    1. `model.gain`: the least-squares factor of each code from the predictions for familiar cells to their codes. A
       memory recalls contrasts too weakly, because this minimises the error if it is uncertain.
    2. `model.precision`: the inverse covariance of the remaining residuals, scaled so that the mean score is unchanged.
    3. `model.config.usual`: the mean of the logarithm of the loss of frames without changes, and its deviation, or more
       if more than 1 in 1,000 of these frames would be above THRESHOLD.

    seeds, frames: of the streams. If the memory knows fewer than LEAST_CELLS cells well, there is a warning, and
    nothing is changed.
    """
    seen = [one for seed in seeds for one in _quiet(model, seed, frames)]
    known = [(codes[said.familiar > FAMILIAR], said.codes[said.familiar > FAMILIAR]) for codes, said in seen]
    none = model.precision[:0]
    codes = torch.cat([none, *(codes for codes, _ in known)]).double()
    told = torch.cat([none, *(told for _, told in known)]).double()
    if len(codes) < LEAST_CELLS:
        what = f"it knows {len(codes)} cells well, {LEAST_CELLS} are needed"
        warnings.warn(f"the map is not calibrated: {what}", stacklevel=2)
        return
    gain = (codes * told).sum(0) / told.square().sum(0).clamp(min=1e-12)
    residual = codes - told * gain
    covariance = residual.mT @ residual / len(residual)
    usual = covariance.diagonal().mean()
    covariance += 1e-4 * usual * torch.eye(len(gain), dtype=covariance.dtype)
    model.gain.copy_(gain)
    model.precision.copy_(torch.linalg.inv(covariance) * usual)
    scores = [model.score(codes, said).max() for codes, said in seen]
    losses = (torch.stack(scores) + LEAST).log()
    rare = (losses.quantile(RARE) - losses.mean()) / THRESHOLD
    model.config = replace(model.config, usual=(float(losses.mean()), max(float(losses.std()), float(rare), 0.05)))


def _quiet(model: MapModel, seed: int, frames: int) -> list[tuple[Tensor, MapOutput]]:
    """For every frame of a stream without changes: the codes [n, C] of the cells with a score, and their
    predictions."""
    stream, source = _Recorded(model, device="cpu"), Places(size=model.config.size, seed=seed, photographs=TRAINED_ON)
    quiet = torch.ones(frames, dtype=torch.bool)
    for event in source.events(frames):
        quiet[max(0, event.start - AROUND) : event.stop + AROUND] = False
    kept = []
    for index in tqdm(range(frames), f"calibration on stream {seed}", leave=False, disable=None):
        stream.push(source.frame(index))
        counts = stream.now.counts
        if quiet[index] and counts.any():
            kept.append((stream.now.cells.codes[0, 0][counts], MapOutput(*(p[counts] for p in stream.now.said))))
    return kept
