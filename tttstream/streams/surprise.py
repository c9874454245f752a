"""Stream: one frame in, one result with its surprise out, for ever."""

from __future__ import annotations

import os
import time
from typing import Any

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
from tttstream.models.frame import FrameModel
from tttstream.streams.normaliser import Normaliser
from tttstream.streams.session import Session, choose_device, place


class Stream(Session):
    """A model that watches one stream.

    model: a FrameModel, with a memory that has an inner loss (any ttt one), or a Classifier with any memory.
    device: "auto", "cpu", "cuda".
    backend: "auto", "torch", "triton". learn: whether the memory learns from the frames; may be switched any time.
    embed: whether results carry an embedding, for good. Without, what only embeddings need is neither computed nor kept
        (of the shipped base the last block, its memory and the search for motion); the surprise is the same.

    >>> stream = Stream(tttstream.models.load("base", size=128))
    >>> for frame in tttstream.open_source("walk"):
    ...     result = stream.push(frame)
    """

    MODELS = (FrameModel, Classifier)
    EMBEDS = True

    def __init__(
        self,
        model: FrameModel | Classifier,
        *,
        device: str = "auto",
        backend: str = "auto",
        learn: bool = True,
        embed: bool = True,
    ) -> None:
        layers = [module for module in model.modules() if isinstance(module, TTTLayer)]
        if not isinstance(model, self.MODELS):
            raise ConfigError(f"Stream takes a FrameModel or a Classifier, got {type(model).__name__}")
        if not layers and not isinstance(model, Classifier):
            raise ConfigError(f"a stream needs a memory with an inner loss (ttt_…), got {model.config.memory!r}")
        place(layers, backend, choose_device(device))
        self._embed, self.surprises = embed, bool(layers)
        super().__init__(model, device, learn=learn)

    @property
    def embed(self) -> bool:
        """Whether results carry an embedding."""
        return self._embed

    def push(self, frame: Frame | NDArray[np.generic]) -> Result:
        """Look at one frame, learn from it, and say what came of it.

        frame: a Frame, or an RGB array [H, W, 3] of any size, uint8 or float in 0..1. It is resized to a square.
        Raises FrameError for another shape or type, or for pixels that are not finite or as floats far from 0..1; the
        stream is unchanged then.
        """
        arrived, frame = self._arrived(frame)
        picture = self.picture(frame)
        with torch.no_grad():
            seen, state = self.model.glance(picture[None, None], self.state, learn=self.learn, embed=self._embed)
        losses = seen.losses or Losses(*picture.new_zeros(2, 1, 1, self.model.rows))
        embedding = np.empty(0, np.float32) if seen.embedding is None else seen.embedding[0, 0].float().cpu().numpy()
        before = losses.before[0, 0].double()
        loss, after = float(before.mean()), float(losses.after[0, 0].double().mean())
        if not np.isfinite(loss) or (seen.logits is not None and not bool(seen.logits.isfinite().all())):
            raise FrameError(
                f"frame {frame.index}: the memory's loss is {loss}; reset the stream or load its last state"
            )
        self.state = state
        self.frames += 1
        score = self.normaliser.push(loss) if self.surprises else 0.0
        labels: tuple[Label, ...] = ()
        so_far: tuple[Label, ...] = ()
        if self._opinion is not None:
            labels, so_far = self._opinion.push(seen.logits[0, 0])
        return Result(
            index=frame.index,
            time_s=frame.time_s,
            surprise=score,
            loss=loss,
            learned=(loss - after) / loss if loss > 0 else 0.0,
            surprise_map=self._map(before),
            embedding=embedding,
            latency_ms=(time.perf_counter() - arrived) * 1e3,
            labels=labels,
            so_far=so_far,
        )

    def _map(self, losses: Tensor) -> NDArray[np.float32]:
        return losses.view(self.model.rows, -1).float().cpu().numpy()

    def _fitted(self, pixels: Tensor, sides: tuple[int, int]) -> Tensor:
        return self.model.fitted(pixels) if isinstance(self.model, Classifier) else super()._fitted(pixels, sides)

    def reset(self) -> None:
        """See Session."""
        super().reset()
        self.normaliser = Normaliser()
        self._opinion = Opinion(self.model.names) if isinstance(self.model, Classifier) else None

    def _fresh(self) -> ModelState:
        state = self.model.init_state(1)
        return state if self._embed else self.model.watched(state)

    def _more(self) -> dict[str, Any]:
        opinion = None if self._opinion is None else self._opinion.state()
        return {"normaliser": self.normaliser.state(), "embed": self._embed, "opinion": opinion}

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> ModelState:
        """See Session. A stream without embeddings goes on from one with them; the other way round what embeddings are
        made of would have missed the frames."""
        if set(meta["normaliser"]) != set(self.normaliser.state()):
            raise CheckpointError(
                f"{path} was saved by a version with another scale of surprise: begin the stream anew"
            )
        embedded = meta.get("embed", True)  # files that do not say so had embeddings
        if self._embed and not embedded and self.model.config.surprise:
            raise CheckpointError(
                f"{path} was saved without embeddings, and the memory behind them has not seen those frames: go on "
                "without them (embed=False, no --embeddings)"
            )
        whole = self.model.init_state(1)
        state: ModelState = states.load(path, whole if embedded else self.model.watched(whole))
        return state if self._embed else self.model.watched(state)

    def _go_on(self, meta: dict[str, Any]) -> None:
        self.normaliser.restore(meta["normaliser"])
        if self._opinion is not None:
            self._opinion.restore(meta["opinion"])
