"""TeachModel: a frozen encoder, a projection of its features in a window to a key, and a memory of labelled keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import encoders
from tttstream.errors import ConfigError
from tttstream.memory.binding import Binding, BindingState
from tttstream.models.base import SavedModel
from tttstream.models.teach.windows import PARTS, everywhere, seen

CELL = 32  # pixels: the sides of the encoder's input are multiples of it


@dataclass(frozen=True)
class TeachConfig:
    """size: short side of the encoder's input in pixels. encoder: its name, see `tttstream.encoders`. strides: of its
    maps. keys: width of a key. labels: the largest number of things. horizon: the number of latest examples that
    determine a thing. search: the evidence in the best window of a frame at which a thing is in view with probability
    1/2. certain: the probability from which a thing counts as in view."""

    size: int = 256
    encoder: str = "efficientnet_lite0"
    strides: tuple[int, ...] = (8, 16, 32)
    keys: int = 128
    labels: int = 128
    horizon: int = 1000
    search: float = 3.1
    certain: float = 0.5


class TeachModel(SavedModel):
    """Computes a key from the content of a window of a frame, and binds keys to labels in a memory (`Binding`).

    Features are means of the encoder's maps in and around the window (`seen`), standardised by `mean` and `deviation`;
    each part of each map is normalised to length 1. The saved model does not contain the encoder's weights, which are
    those of its package.
    """

    FORMAT, CONFIG = "tttstream.teach/2", TeachConfig
    USE = "teach VIDEO"
    SETTINGS = ("size", "horizon", "search", "certain")
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: TeachConfig) -> None:
        super().__init__()
        strides = tuple(config.strides)  # a list in config.json
        if config.size < CELL:
            raise ConfigError(f"teach: size is {config.size}, expected a short side of at least {CELL} pixels")
        self.config = config
        self._encoder = [encoders.load(config.encoder, strides)]  # in a list, so that it is no submodule
        self.widths = PARTS * self._encoder[0].widths
        width = sum(self.widths)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.project = nn.Linear(width, config.keys, bias=False)
        nn.init.orthogonal_(self.project.weight)
        self.memory = Binding(config.keys, config.labels, config.horizon)

    @cached_property
    def encoder(self) -> encoders.Encoder:
        """The encoder, on the device of the model."""
        return self._encoder[0].to(self.mean.device)

    def init_state(self, batch: int) -> BindingState:
        """A fresh state of `batch` rows, without taught things."""
        return self.memory.init_state(batch)

    def maps(self, picture: Tensor) -> tuple[Tensor, ...]:
        """picture [3, h, w] in 0..1 -> the encoder's maps [1, C, h / stride, w / stride]."""
        return self.encoder(picture[None])

    def keys(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """The keys [n, D] of boxes [n, 4]: left, top, right, bottom as shares of the frame's sides."""
        return self.project(self.standardised(seen(maps, boxes)))

    def everywhere(self, maps: Sequence[Tensor], height: int, width: int) -> Tensor:
        """The keys [n, D] of all `windows` of a frame of this size."""
        return self.project(self.standardised(everywhere(maps, height, width)))

    def standardised(self, features: Tensor) -> Tensor:
        """The input of the projection from features of windows [n, C], see `seen`."""
        parts = ((features - self.mean) / self.deviation).split(self.widths, -1)
        return torch.cat([F.normalize(part, dim=-1) for part in parts], -1)

    def forward(
        self, keys: Tensor, labels: Tensor, state: BindingState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, BindingState]:
        """Streams of keys [B, T, D] with labels [B, T] (-1 for a query) -> the evidence [B, T, L] before each label,
        and the state; reset [B, T] as in `Memory`."""
        told = F.one_hot(labels.clamp(min=0), self.config.labels) * (labels >= 0)[..., None]
        y, state = self.memory(torch.cat([keys, told.to(keys.dtype)], -1), state, reset)
        return y[..., self.config.keys :], state
