"""Session: what every stream has, the memory's state, the scale of surprise, the counters, and its saved files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream import state as states
from tttstream.errors import CheckpointError, ShapeError
from tttstream.frames import Frame
from tttstream.memory.ttt import TTTLayer
from tttstream.streams.normaliser import Normaliser
from tttstream_kernels import choose_backend

if TYPE_CHECKING:
    from tttstream.sources.base import Source


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ShapeError(f"unknown device {name!r}: expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ShapeError(f"device {name!r} is not here: PyTorch finds no CUDA GPU; use --device cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # by what PyTorch was built without
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise ShapeError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from error
    return device


def place(layers: Iterable[TTTLayer], backend: str, device: torch.device) -> None:
    """Let layers run on a backend. Raises BackendError where it cannot."""
    for layer in layers:
        choose_backend(
            backend, layer.inner, layer.causal, update=layer.update, width=layer.width, mini_batch=layer.tokens,
            dtype=layer.state_dtype, device=device,
        )  # fmt: skip
        layer.backend = backend


class Session:
    """What every stream has: a model on a device, the memory's state, the scale of surprise, the counter, and files.

    model: on its device, not in training. state: of one row. learn: whether the memory learns from the frames; may be
    switched any time. frames: how many came.
    """

    model: Any
    state: Any
    surprises = True
    """Whether there is a surprise at all."""

    def __init__(self, model: Any, device: str, *, learn: bool) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.learn = learn
        self.reset()
        self.frames = 0

    @property
    def size(self) -> int:
        """Side in pixels of the square picture that the model sees."""
        return int(self.model.config.size)

    @property
    def state_bytes(self) -> int:
        """Bytes of the memory, the same for ever."""
        return int(self.state.nbytes)

    def picture(self, frame: Frame) -> Tensor:
        """The picture that the model sees: [3, size, size] in 0..1, on the stream's device."""
        image = np.require(frame.pixels(), requirements=("C", "W"))  # arrays that Pillow lends can only be read
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        scale = 1.0 / 255.0 if image.dtype == np.uint8 else 1.0
        return self._square(pixels)[0].float() * scale

    def _square(self, pixels: Tensor) -> Tensor:
        """Pictures [n, 3, H, W] at the model's size."""
        side = (self.size, self.size)
        return pixels if pixels.shape[-2:] == side else F.interpolate(pixels, side, mode="bilinear", antialias=True)

    def reset(self) -> None:
        """Forget everything that was learned from the stream, as if it began now."""
        self.state = self._fresh()
        self.normaliser = Normaliser()

    def _fresh(self) -> Any:
        return self.model.init_state(1)

    def _more(self) -> dict[str, Any]:
        """What a kind of stream saves besides."""
        return {}

    def save(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Write all that is needed to go on bit for bit: memory, normaliser, counters, and the source's position."""
        meta = {
            "fingerprint": self.model.fingerprint(),
            "size": self.size,
            "frames": self.frames,
            "learn": self.learn,
            "normaliser": self.normaliser.state(),
            "source": None if source is None else {"name": source.name, "position": source.position()},
            **self._more(),
        }
        states.save(self.state, path, stream=json.dumps(meta))

    def load(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Go on where `save` was called. The model must be the same; a source given here is moved to its position.

        Raises CheckpointError for another model's stream, and for a file that is no saved stream.
        """
        meta = _metadata(path)
        if meta["fingerprint"] != self.model.fingerprint():
            raise CheckpointError(
                f"{path} was saved by another model: load it with the model, size and seed that wrote it"
            )
        if set(meta["normaliser"]) != set(self.normaliser.state()):
            raise CheckpointError(
                f"{path} was saved by a version with another scale of surprise: begin the stream anew"
            )
        state = self._restored(path, meta)
        if source is not None and meta["source"] is not None:
            source.seek(meta["source"]["position"])
        self.state = state
        self.frames, self.learn = int(meta["frames"]), bool(meta["learn"])
        self.normaliser.restore(meta["normaliser"])

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> Any:
        """The state in a file whose metadata fit."""
        return states.load(path, self.model.init_state(1))


def _metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    text = states.metadata(path).get("stream")
    if text is None:
        raise CheckpointError(f"{path} is the state of a memory, not a saved stream")
    values: dict[str, Any] = json.loads(text)
    return values
