"""Stream: watches an endless stream and returns one result with a surprise for each frame."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tttstream import state as states
from tttstream.errors import CheckpointError, ConfigError, FrameError
from tttstream.frames import Frame, Label, Result
from tttstream.memory.ttt import TTTLayer
from tttstream.models.backbone import Losses, ModelState
from tttstream.models.classifier import Classifier, Opinion
from tttstream.models.features import FeatureModel
from tttstream.models.frame import FrameModel, Glance
from tttstream.streams.normaliser import Normaliser
from tttstream.streams.session import Session, choose_device, painted, place


class _Row(NamedTuple):
    """A frame in a batch: its position in the call, its stream, its arrival time, the picture for the model."""

    at: int
    stream: Stream
    frame: Frame
    arrived: float
    picture: Tensor


class Stream(Session):
    """A model that watches one stream.

    model: a FrameModel, with a memory that has an inner loss (any ttt one), a FeatureModel, or a Classifier. device:
    "auto", "cpu", "cuda". backend: "auto", "torch", "triton". learn: whether the memory learns from the frames; it can
    be switched at any time. embed: whether results have an embedding; it cannot be switched. Without it, parts that
    only embeddings need are neither computed nor stored (in the shipped base the last block, its memory and the
    estimation of motion); the surprise is the same. predict: whether results have the expected picture, the prediction
    from the frame before; it costs as much as an embedding. FrameModels only. A saved file does not contain this
    prediction: the first frame after `load` has none.

    >>> stream = Stream(tttstream.models.load("base", size=128))
    >>> for frame in tttstream.open_source("walk"):
    ...     result = stream.push(frame)
    """

    MODELS = (FrameModel, FeatureModel, Classifier)
    EMBEDS = True
    normaliser: Normaliser
    _opinion: Opinion | None
    _expected: NDArray[np.uint8] | None

    def __init__(
        self,
        model: FrameModel | FeatureModel | Classifier,
        *,
        device: str = "auto",
        backend: str = "auto",
        learn: bool = True,
        embed: bool = True,
        predict: bool = False,
    ) -> None:
        layers = [module for module in model.modules() if isinstance(module, TTTLayer)]
        if not isinstance(model, self.MODELS):
            raise ConfigError(f"Stream takes a FrameModel, FeatureModel or Classifier, got {type(model).__name__}")
        if not layers and not isinstance(model, Classifier):
            raise ConfigError(f"a stream needs a memory with an inner loss (ttt_…), got {model.config.memory!r}")
        if predict and not isinstance(model, FrameModel):
            raise ConfigError(f"predict: a {type(model).__name__} predicts no pictures, leave it out")
        place(layers, backend, choose_device(device))
        self._embed, self._predict, self.surprises = embed, predict, bool(layers)
        super().__init__(model, device, learn=learn)

    @property
    def embed(self) -> bool:
        """Whether results have an embedding."""
        return self._embed

    def push(self, frame: Frame | NDArray[np.generic]) -> Result:
        """Process one frame, learn from it, and return its result.

        frame: a Frame, or an RGB array [H, W, 3] of any size, uint8 or float in 0..1. It is resized to a square. Raises
        FrameError for another shape or type, for pixels that are not finite, and for floats far outside 0..1; the
        stream is then unchanged.
        """
        (said,) = self.push_rows([self], [frame])
        if isinstance(said, FrameError):
            raise said
        return said

    @classmethod
    def push_rows(
        cls, streams: Sequence[Stream], frames: Sequence[Frame | NDArray[np.generic]]
    ) -> list[Result | FrameError]:
        """Process one frame for each of several streams; streams of one model with the same settings share a batch.

        Returns for each stream the result of `push`, up to the rounding of a batch, or the FrameError that `push`
        raises. The `latency_ms` of a result is that of its batch.
        """
        said: list[Any] = [None] * len(frames)
        groups: dict[Any, list[_Row]] = {}
        for at, (stream, frame) in enumerate(zip(streams, frames, strict=True)):
            try:
                arrived, frame = stream._arrived(frame)
                row = _Row(at, stream, frame, arrived, stream.picture(frame))
            except FrameError as error:
                said[at] = error
            else:
                # Growing caches may have different sizes
                sizes = tuple(leaf.shape[1:] for leaf in stream.state.tensors())
                alike = id(stream.model), stream.learn, stream._embed, stream._predict, sizes
                groups.setdefault(alike, []).append(row)
        for rows in groups.values():
            first = rows[0].stream
            with torch.no_grad():
                seen, state = first.model.glance(
                    torch.stack([row.picture for row in rows])[:, None],
                    states.join([row.stream.state for row in rows]),
                    learn=first.learn,
                    embed=first._embed,
                    predict=first._predict,
                )
            for number, row in enumerate(rows):
                try:
                    said[row.at] = row.stream._take(row, seen, number, state[number] if len(rows) > 1 else state)
                except FrameError as error:
                    said[row.at] = error
        return said

    def _take(self, row: _Row, seen: Glance, number: int, state: ModelState) -> Result:
        """Make the result of one row of a model's output, and update the stream with it."""
        frame = row.frame
        losses = seen.losses or Losses(*row.picture.new_zeros(2, number + 1, 1, self.model.rows))
        embedding = (
            np.empty(0, np.float32) if seen.embedding is None else seen.embedding[number, 0].float().cpu().numpy()
        )
        before = losses.before[number, 0].double()
        loss, after = float(before.mean()), float(losses.after[number, 0].double().mean())
        logits = None if seen.logits is None else seen.logits[number, 0]
        if not np.isfinite(loss) or (logits is not None and not bool(logits.isfinite().all())):
            raise FrameError(
                f"frame {frame.index}: the memory's loss is {loss}; reset the stream or load its last state"
            )
        self.state = state
        self.frames += 1
        score = self.normaliser.push(loss) if self.surprises else 0.0
        labels: tuple[Label, ...] = ()
        so_far: tuple[Label, ...] = ()
        if self._opinion is not None and logits is not None:
            labels, so_far = self._opinion.push(logits)
        expected = self._expected
        self._expected = None if seen.prediction is None else painted(seen.prediction[number, 0])
        return Result(
            index=frame.index,
            time_s=frame.time_s,
            surprise=score,
            loss=loss,
            learned=(loss - after) / loss if loss > 0 else 0.0,
            surprise_map=self._map(before),
            embedding=embedding,
            latency_ms=(time.perf_counter() - row.arrived) * 1e3,
            expected=expected,
            labels=labels,
            so_far=so_far,
        )

    def _map(self, losses: Tensor) -> NDArray[np.float32]:
        return losses.view(self.model.rows, -1).float().cpu().numpy()

    def _fitted(self, pixels: Tensor, sides: tuple[int, int]) -> Tensor:
        return self.model.fitted(pixels) if isinstance(self.model, Classifier) else super()._fitted(pixels, sides)

    def reset(self) -> None:
        super().reset()
        self._expected = None
        self.normaliser = Normaliser()
        self._opinion = Opinion(self.model.names) if isinstance(self.model, Classifier) else None

    def _fresh(self) -> ModelState:
        state = self.model.init_state(1)
        return state if self._whole else self.model.watched(state)

    @property
    def _whole(self) -> bool:
        """Whether the state contains all blocks."""
        return self._embed or self._predict

    def _more(self) -> dict[str, Any]:
        opinion = None if self._opinion is None else self._opinion.state()
        return {"normaliser": self.normaliser.state(), "embed": self._whole, "opinion": opinion}

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> ModelState:
        """See Session. A stream without embeddings can continue one with them, but not vice versa: the blocks for
        embeddings would have missed the earlier frames."""
        if set(meta["normaliser"]) != set(self.normaliser.state()):
            raise CheckpointError(f"{path} was saved by a version with another scale of surprise: start a new stream")
        embedded = meta.get("embed", True)  # files that do not say so had embeddings
        whole = self.model.init_state(1)
        watched = self.model.watched(whole)
        if self._whole and not embedded and len(watched.blocks) < len(whole.blocks):
            what, without = "embeddings", "embed=False, no --embeddings"
            if not self._embed:
                what, without = "predictions", "predict=False"
            raise CheckpointError(
                f"{path} was saved without {what}, and their memory has not seen those frames: continue without them "
                f"({without})"
            )
        state: ModelState = states.load(path, whole if embedded else watched)
        return state if self._whole else self.model.watched(state)

    def _go_on(self, meta: dict[str, Any]) -> None:
        self._expected = None
        self.normaliser.restore(meta["normaliser"])
        if self._opinion is not None:
            self._opinion.restore(meta["opinion"])
