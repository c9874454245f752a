"""A classifier of frames with a memory: the model with the names of its classes, and its results for a stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream.encoders import VisionTokens
from tttstream.errors import ConfigError
from tttstream.frames import Label
from tttstream.models.backbone import Backbone, Losses, ModelState
from tttstream.models.base import SavedModel
from tttstream.models.frame import Glance, ModelConfig
from tttstream.models.tokens import PatchTokens

FITTINGS = ("crop", "squeeze")
TOP = 5  # number of labels in a result


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pretrained backbone before the memory, instead of the model's own patch tokens; see `VisionTokens`."""

    name: str
    weights: str = "none"
    frozen: bool = True


class Said(NamedTuple):
    """logits: [B, T, classes] of every frame. losses: of the memory, None if it has none.

    mean: [B, T, dim], the input of the linear layer for the logits.
    """

    logits: Tensor
    losses: Losses | None
    mean: Tensor


class Classifier(SavedModel):
    """Tokens of a frame, blocks of mixing and memory, and logits of every frame from the mean of its tokens.

    Called as `said, state = model(frames [B, T, 3, size, size], state=None, reset=None)`.

    names: of the classes, by default their numbers. fitting: how a stream makes pictures square: "crop" uses the
    central square, like training data by default, "squeeze" resizes the whole picture.
    """

    FORMAT = "tttstream.classifier/1"
    CONFIG = ModelConfig

    def __init__(
        self,
        config: ModelConfig,
        classes: int,
        encoder: Encoder | None = None,
        *,
        names: Sequence[str] = (),
        fitting: str = "crop",
    ) -> None:
        super().__init__()
        if names and len(names) != classes:
            raise ConfigError(f"classifier: got {len(names)} names for {classes} classes")
        if fitting not in FITTINGS:
            raise ConfigError(f"classifier: fitting is {fitting!r}, expected {' or '.join(FITTINGS)}")
        self.config, self.encoder = config, encoder and encoder.name
        self.names, self.fitting = [str(name) for name in names] or [str(n) for n in range(classes)], fitting
        self.rows = 1 if config.registers else config.side
        self.tokens: nn.Module
        if encoder is None:
            self.tokens = PatchTokens(config.size, config.patch, config.dim, config.registers)
        elif config.registers:
            raise ConfigError("classification: registers go with the model's own patches; with an encoder set 0")
        else:
            self.tokens = VisionTokens(
                encoder.name, config.size, config.dim, weights=encoder.weights, frozen=encoder.frozen
            )
            self.rows = self.tokens.side
        side = config.side if encoder is None else self.rows
        self.backbone = Backbone(
            config.dim, config.depth, config.heads, side, config.registers, config.memory, config.mlp_ratio,
            config.options,
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(config.dim), nn.Linear(config.dim, classes)

    def init_state(self, batch: int) -> ModelState:
        """A fresh state of `batch` streams, all zeros."""
        return self.backbone.init_state(batch)

    def forward(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Said, ModelState]:
        frames = frames.to(self.head.weight.dtype) / (255.0 if frames.dtype == torch.uint8 else 1.0)
        x, state, losses = self.backbone(self.tokens(frames), state, reset, learn)
        mean = self.norm(x).mean(2)
        return Said(self.head(mean), losses, mean), state

    def glance(
        self, frames: Tensor, state: ModelState, *, learn: bool, embed: bool, predict: bool = False
    ) -> tuple[Glance, ModelState]:
        """See FrameModel.glance; a classifier makes no prediction."""
        said, state = self(frames, state, learn=learn)
        return Glance(said.losses, F.normalize(said.mean, dim=-1) if embed else None, said.logits), state

    def watched(self, state: ModelState) -> ModelState:
        """The complete state, because logits need every block."""
        return state

    def fitted(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, H, W], uint8 or float, made square by `fitting`, as in training data: [n, 3, size, size]."""
        from torchvision.transforms.v2 import functional as transforms  # takes a second to import

        side = self.config.size
        if self.fitting == "squeeze":
            return transforms.resize(pixels, [side, side], antialias=True)
        return transforms.center_crop(transforms.resize(pixels, [side], antialias=True), [side, side])

    def description(self) -> dict[str, Any]:
        """The entries of config.json: names, encoder, fitting and the configuration of the model."""
        return {
            "names": self.names,
            "encoder": self.encoder,
            "fitting": self.fitting,
            "model": dataclasses.asdict(self.config),
        }

    @classmethod
    def described(cls, description: dict[str, Any]) -> Classifier:
        names, encoder = description["names"], description["encoder"]
        config = ModelConfig(**description["model"])
        model = cls(config, len(names), encoder and Encoder(encoder), names=names, fitting=description["fitting"])
        model.fitted(torch.zeros(1, 3, 2, 2))  # so that its imports do not delay the first frame
        return model

    @classmethod
    def shape(cls, description: dict[str, Any]) -> dict[str, Any]:
        return {**description["model"], "classes": len(description["names"]), "encoder": description["encoder"]}

    @classmethod
    def resized(cls, description: dict[str, Any], size: int) -> dict[str, Any]:
        return {**description, "model": {**description["model"], "size": size}}


class Opinion:
    """The results of a classifier for a stream: for each frame, and for all frames since the last reset.

    so_far: the classes by the mean of their log probabilities over these frames, as for clips in the task
    classification. Constant memory.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._sums = torch.zeros(len(names), dtype=torch.float64)
        self._frames = 0

    def push(self, logits: Tensor) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
        """Logits [classes] of a frame -> the most probable classes of the frame, and of the frames so far."""
        logs = logits.detach().cpu().double().log_softmax(-1)
        self._sums, self._frames = self._sums + logs, self._frames + 1
        return self._top(logs), self._top((self._sums / self._frames).log_softmax(-1))

    def _top(self, logs: Tensor) -> tuple[Label, ...]:
        values, places = logs.exp().topk(min(TOP, len(self.names)))
        pairs = zip(places.tolist(), values.tolist(), strict=True)
        return tuple(Label(self.names[place], value) for place, value in pairs)

    def state(self) -> dict[str, Any]:
        """The values that `restore` needs (JSON-able)."""
        return {"sums": self._sums.tolist(), "frames": self._frames}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the values of `state()`."""
        self._sums, self._frames = torch.tensor(state["sums"], dtype=torch.float64), int(state["frames"])
