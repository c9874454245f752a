"""Encoder, the base class of pretrained encoders: from frames to maps of features at chosen strides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as most weights expect
PROBE = 64  # pixels: the side of the frame that determines strides and channels


class Encoder(nn.Module):
    """A pretrained network, which returns the last map of each chosen stride.

    Called with frames [n, 3, H, W] in 0..1, it returns one map [n, width, ceil(H / stride), ceil(W / stride)] for each
    of `strides`, in their order. It is frozen: its weights have no gradients, and it is always in evaluation mode.
    Stages after the last requested map do not run. Frames and maps are channels_last.

    model: stages [n, c, h, w] -> [n, c', h', w'] that run one after another. strides: pixels of a frame along the side
    of a feature. mean, deviation: of colours in 0..1, as the weights expect them. whole: keep the stages after the last
    requested map. widths: channels of each map. Raises ConfigError for a stride that no stage has.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        model: nn.Module,
        strides: Sequence[int],
        mean: Iterable[float] = MEAN,
        deviation: Iterable[float] = DEVIATION,
        *,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last).requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor([*mean]).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([*deviation]).view(3, 1, 1), persistent=False)
        with torch.no_grad():
            maps = list(self.maps(torch.zeros(1, 3, PROBE, PROBE)))
        last = {PROBE // x.shape[-1]: number for number, x in enumerate(maps) if x.dim() == 4}
        if not strides or any(stride not in last for stride in strides):
            known = ", ".join(map(str, sorted(last))) or "none"
            raise ConfigError(f"encoder: strides are {list(strides)}, expected some of those it has: {known}")
        self.strides = tuple(strides)
        self._numbers = [last[stride] for stride in strides]
        if isinstance(self.model, nn.Sequential) and not whole:
            self.model = self.model[: max(self._numbers) + 1]
        self.widths = tuple(maps[number].shape[1] for number in self._numbers)

    def train(self, mode: bool = True) -> Encoder:
        """Stays in evaluation mode."""
        return super().train(False)

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The maps of all stages; each is computed when it is requested. x: frames after `normalised`."""
        for stage in self.model.children():
            x = stage(x)
            yield x

    def normalised(self, frames: Tensor) -> Tensor:
        """Frames as the weights expect them, channels_last."""
        return ((frames - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        found: dict[int, Tensor] = {}
        for number, x in enumerate(self.maps(self.normalised(frames))):
            found[number] = x
            if number == max(self._numbers):
                break
        return tuple(found[number] for number in self._numbers)
