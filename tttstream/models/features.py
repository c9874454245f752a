"""FeatureModel: the surprise of each frame from pretrained features, with a memory that learns them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import encoders
from tttstream.errors import ConfigError, StateError
from tttstream.memory.ttt import TTTLayer
from tttstream.models.backbone import Losses, ModelState
from tttstream.models.base import SavedModel, check_frames, check_numbers
from tttstream.models.frame import Glance

LEAST = 32  # pixels: the shortest side of a picture


@dataclass(frozen=True)
class FeatureConfig:
    """encoder: a name of `tttstream.encoders`. stride: pixels of the picture along the side of a feature. dim, heads:
    of the memory. inner: its inner model, see TTTLayer. size: side of the square picture in pixels."""

    encoder: str = "efficientnet_lite0"
    stride: int = 16
    dim: int = 128
    heads: int = 4
    inner: str = "linear"
    size: int = 128

    def __post_init__(self) -> None:
        check_numbers(self, "features")
        if self.size < LEAST:
            raise ConfigError(f"features: size is {self.size!r}, expected at least {LEAST} pixels")
        if self.dim % self.heads != 0:
            raise ConfigError(f"features: dim must be a multiple of heads, got dim={self.dim}, heads={self.heads}")

    @property
    def side(self) -> int:
        """Features along one side of the picture."""
        return -(-self.size // self.stride)


class FeatureModel(SavedModel):
    """A TTT layer in frame mode over the features of a pretrained encoder; its inner loss is the surprise.

    Each feature of length 1 is projected to a token. The projection and the initial weights of the layer may be random:
    the inner model learns the features of the stream. The model makes no prediction; the embedding is the mean of the
    features, with length 1. The saved model does not contain the encoder's weights, which are those of its package.
    """

    FORMAT = "tttstream.features/1"
    CONFIG = FeatureConfig

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        self._encoder = [encoders.load(config.encoder, (config.stride,))]  # in a list, so that it is no submodule
        self.project = nn.Linear(self._encoder[0].widths[0], config.dim)
        grid = (config.side, config.side)
        self.memory = TTTLayer(config.dim, config.heads, config.inner, causal="frame", grid=grid)

    @property
    def encoder(self) -> encoders.Encoder:
        """The encoder, with the device and type of the model."""
        encoder, weight = self._encoder[0], self.project.weight
        here = (encoder.mean.device, encoder.mean.dtype) == (weight.device, weight.dtype)
        return encoder if here else encoder.to(weight)

    @property
    def rows(self) -> int:
        """The number of rows of the surprise map."""
        return self.config.side

    def init_state(self, batch: int) -> ModelState:
        """A fresh state of `batch` streams, all zeros."""
        return ModelState((self.memory.init_state(batch),))

    def watched(self, state: ModelState) -> ModelState:
        """The complete state: an embedding needs no more."""
        return state

    def forward(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Glance, ModelState]:
        """frames [B, T, 3, size, size] in 0..1 or uint8, reset bool [B, T] -> losses and embeddings of each frame, and
        the state. With `learn=False` the memory is read and not changed."""
        check_frames(frames, self.config.size, reset)
        if state is not None and (not isinstance(state, ModelState) or len(state.blocks) != 1):
            raise StateError("model: expected the state of a FeatureModel")
        features = self.features(frames)
        tokens = self.project(features * features.shape[3] ** 0.5)
        tokens = F.layer_norm(tokens, (self.config.dim,)).flatten(1, 2)
        if reset is not None:
            first = torch.arange(features.shape[2], device=frames.device) == 0
            reset = (reset[:, :, None] & first).flatten(1)
        _, after, loss = self.memory(
            tokens, None if state is None else state.blocks[0], reset, return_loss=True, learn=learn
        )
        losses = Losses(*(part.mean(1).unflatten(1, (frames.shape[1], -1)) for part in loss))
        return Glance(losses, F.normalize(features.mean(2), dim=2)), ModelState((after,))

    def features(self, frames: Tensor) -> Tensor:
        """The features [B, T, N, C] of frames [B, T, 3, size, size], each with length 1, in reading order."""
        pixels = frames.to(self.project.weight.dtype) / (255.0 if frames.dtype == torch.uint8 else 1.0)
        (maps,) = self.encoder(pixels.flatten(0, 1))
        return F.normalize(maps.flatten(2).mT, dim=2).unflatten(0, frames.shape[:2])

    def watch(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Losses | None, ModelState]:
        """The losses of `forward`."""
        seen, state = self(frames, state, reset, learn=learn)
        return seen.losses, state

    def glance(
        self, frames: Tensor, state: ModelState, *, learn: bool, embed: bool, predict: bool = False
    ) -> tuple[Glance, ModelState]:
        """See FrameModel.glance; there is no prediction."""
        seen, state = self(frames, state, learn=learn)
        return (seen if embed else seen._replace(embedding=None)), state
