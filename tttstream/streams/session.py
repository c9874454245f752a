"""Session: what every stream has, the memory's state, a clock, the counters, and its saved files."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tttstream import state as states
from tttstream.errors import CheckpointError, ConfigError
from tttstream.frames import Frame
from tttstream.memory.ttt import TTTLayer
from tttstream.models.base import SavedModel
from tttstream.sources.base import Source
from tttstream_kernels import choose_backend


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU where there is one. Raises ConfigError for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}: expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} is not here: PyTorch finds no CUDA GPU; use --device cpu")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # by what PyTorch was built without
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from error
    return device


def place(layers: Iterable[TTTLayer], backend: str, device: torch.device) -> None:
    """Let layers run on a backend. Raises BackendError where it cannot."""
    for layer in layers:
        choose_backend(
            backend, layer.inner, layer.causal, update=layer.update, width=layer.width, mini_batch=layer.tokens,
            dtype=layer.state_dtype, device=device,
        )  # fmt: skip
        layer.backend = backend


def painted(picture: Tensor) -> NDArray[np.uint8]:
    """A picture [3, H, W] in about 0..1 -> [H, W, 3]."""
    return np.ascontiguousarray((picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).cpu().numpy())


T = TypeVar("T", bound="Session")


class Session:
    """The base class of streams: a model on a device, the memory's state, a frame counter, and files.

    model: a SavedModel, on its device, not in training. size: side of the picture that the model sees, in pixels.
    state: of one row. learn: whether the memory learns from the frames; may be switched any time. frames: how many
    came. MODELS: the classes of models that it takes. EMBEDS: whether results can carry embeddings. VIEWS: whether it
    takes the side of a view. KEY: the name under which a saved file describes a stream of this kind.
    """

    MODELS: ClassVar[tuple[type[SavedModel], ...]]
    EMBEDS: ClassVar[bool] = False
    VIEWS: ClassVar[bool] = False
    KEY: ClassVar[str] = "stream"
    model: Any
    state: Any
    size: int
    surprises = True
    """Whether there is a surprise at all."""

    def __init__(self, model: Any, device: str, *, learn: bool) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.size = int(model.config.size)
        self.learn = learn
        self.reset()
        self.frames = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the memory, the same for ever."""
        return int(self.state.nbytes)

    def _arrived(self, frame: Frame | NDArray[np.generic]) -> tuple[float, Frame]:
        """The time now in seconds, and the frame; an array gets the next number."""
        return time.perf_counter(), frame if isinstance(frame, Frame) else Frame(frame, index=self.frames)

    def picture(self, frame: Frame | NDArray[np.generic]) -> Tensor:
        """The picture [3, h, w] in 0..1 that the model sees, on the stream's device."""
        frame = frame if isinstance(frame, Frame) else Frame(frame)
        image = frame.pixels()
        return self._prepared(image, self._sides(*image.shape[:2]))

    def _prepared(self, image: NDArray[np.generic], sides: tuple[int, int]) -> Tensor:
        """The picture [3, *sides] in 0..1 of an image, or of a part of one, [H, W, 3]."""
        image = np.require(image, requirements=("C", "W"))  # arrays that Pillow lends can only be read
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None]
        scale = 1.0 / 255.0 if image.dtype == np.uint8 else 1.0
        return self._fitted(pixels, sides)[0].float() * scale

    def _sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the picture that the model sees of a frame."""
        return self.size, self.size

    def _fitted(self, pixels: Tensor, sides: tuple[int, int]) -> Tensor:
        """Pictures [n, 3, H, W] at these sides."""
        return pixels if pixels.shape[-2:] == sides else F.interpolate(pixels, sides, mode="bilinear", antialias=True)

    def begin(self, source: Source) -> None:
        """Prepare for the frames of a source."""

    def reset(self) -> None:
        """Forget everything that was learned from the stream, as if it began now."""
        self.state = self._fresh()

    def copy(self: T) -> T:
        """A stream that goes on from here by itself, with the same model."""
        return copy.deepcopy(self, {id(value): value for value in (self.model, self.state, self.device)})

    def _fresh(self) -> Any:
        return self.model.init_state(1)

    def _more(self) -> dict[str, Any]:
        """Further metadata that a kind of stream saves."""
        return {}

    def save(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Write all that is needed to go on bit for bit: memory, counters, and the source's position."""
        about = None if source is None else {"name": source.name, "position": source.position()}
        states.save(self.state, path, **self.notes(about))

    def notes(self, source: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What `save` writes beside the state. source: its "name" and "position"."""
        meta = {
            "fingerprint": self.model.fingerprint(),
            "size": self.size,
            "frames": self.frames,
            "learn": self.learn,
            "source": source,
            **self._more(),
        }
        return {self.KEY: json.dumps(meta)}

    def load(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Go on where `save` was called. The model must be the same; a source given here is moved to its position.

        Raises CheckpointError for another model's stream, and for a file that is not a saved stream of this kind.
        """
        text = states.metadata(path).get(self.KEY)
        if text is None:
            raise CheckpointError(f"{path} is not a saved stream of a {type(self).__name__}")
        meta: dict[str, Any] = json.loads(text)
        if meta["fingerprint"] != self.model.fingerprint():
            raise CheckpointError(
                f"{path} was saved by another model: load it with the model, size and seed that wrote it"
            )
        state = self._restored(path, meta)
        if source is not None and meta["source"] is not None:
            source.seek(meta["source"]["position"])
        self.state = state
        self.frames, self.learn = int(meta["frames"]), bool(meta["learn"])
        self._go_on(meta)

    def _restored(self, path: str | os.PathLike[str], meta: dict[str, Any]) -> Any:
        """The state in a file whose metadata fit."""
        return states.load(path, self._fresh())

    def _go_on(self, meta: dict[str, Any]) -> None:
        """Take over what `_more` saved."""


class Saved:
    """The metadata of a saved stream. source: the name of what it watched, None where it had none. size: side of the
    pictures that it saw, None where the file does not say."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        texts = states.metadata(path)
        meta: dict[str, Any] = json.loads(texts.get("stream") or texts.get("masks") or texts.get("taught") or "{}")
        source = meta.get("source")
        self.source = None if source is None else str(source["name"])
        self.size: int | None = meta.get("size")
