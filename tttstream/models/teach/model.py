"""TeachModel: a frozen encoder, a projection of what it sees in a window to a key, and a memory of labelled keys."""

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

CELL = 32  # pixels: the sides of the picture that the encoder sees are multiples of it


@dataclass(frozen=True)
class TeachConfig:
    """size: short side of the picture that the encoder sees, in pixels. encoder: its name, see `tttstream.encoders`.
    strides: of its maps. keys: width of a key. labels: how many things can be known at the same time. horizon: examples
    after which a thing is known by the last ones. search: the evidence in the best of all windows of a frame with which
    a thing is as likely in view as not. certain: the probability from which a thing counts as in view."""

    size: int = 256
    encoder: str = "efficientnet_lite0"
    strides: tuple[int, ...] = (8, 16, 32)
    keys: int = 128
    labels: int = 128
    horizon: int = 1000
    search: float = 3.1
    certain: float = 0.5


class TeachModel(SavedModel):
    """What is in a window of a frame, as a key; and a memory that binds keys to labels (`Binding`).

    Features are means of the encoder's maps in and around the window (`seen`), standardised by `mean` and `deviation`,
    and of length 1 part by part and map by map. The encoder's weights are those of its package and no part of the saved
    model.
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
        """Nothing taught yet."""
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
        """Features of windows [n, C], see `seen`, to the input of the projection."""
        parts = ((features - self.mean) / self.deviation).split(self.widths, -1)
        return torch.cat([F.normalize(part, dim=-1) for part in parts], -1)

    def forward(
        self, keys: Tensor, labels: Tensor, state: BindingState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, BindingState]:
        """Streams of keys [B, T, D] with labels [B, T] (-1 for a question) -> the evidence [B, T, L] before each label,
        and the state; reset [B, T] as in `Memory`."""
        told = F.one_hot(labels.clamp(min=0), self.config.labels) * (labels >= 0)[..., None]
        y, state = self.memory(torch.cat([keys, told.to(keys.dtype)], -1), state, reset)
        return y[..., self.config.keys :], state
