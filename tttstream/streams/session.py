"""Session, the base class of streams: the state of the memory, a clock, counters, and saved files."""

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
from tttstream.errors import CheckpointError, ConfigError, FrameError
from tttstream.frames import Frame
from tttstream.memory.ttt import TTTLayer
from tttstream.models.base import SavedModel
from tttstream.sources.base import Source
from tttstream_kernels import choose_backend

LONGEST = 32  # the longer side of a frame that is not cropped, over the shorter


def choose_device(name: str) -> torch.device:
    """The device with this name; "auto" is the GPU if there is one. Raises ConfigError for an unavailable device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}: expected auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} is not available: PyTorch finds no CUDA GPU; use --device cpu")
    try:
        torch.zeros(1, device=device).cpu()
    # The exception depends on what PyTorch was built without
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from error
    return device


def place(layers: Iterable[TTTLayer], backend: str, device: torch.device) -> None:
    """Set the backend of all layers. Raises BackendError if it cannot run."""
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
    state: of one row. learn: whether the memory learns from the frames; it can be switched at any time. frames: the
    number of frames so far. MODELS: the accepted classes of models. EMBEDS: whether results can have embeddings. VIEWS:
    whether there is an option for the side of a view. KEY: the key of this kind of stream in the metadata of a saved
    file.
    """

    MODELS: ClassVar[tuple[type[SavedModel], ...]]
    EMBEDS: ClassVar[bool] = False
    VIEWS: ClassVar[bool] = False
    KEY: ClassVar[str] = "stream"
    model: Any
    state: Any
    size: int
    surprises = True
    """Whether results have a surprise."""

    def __init__(self, model: Any, device: str, *, learn: bool) -> None:
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.size = int(model.config.size)
        self.learn = learn
        self.reset()
        self.frames = 0

    @property
    def state_bytes(self) -> int:
        """Bytes of the state of the memory; constant."""
        return int(self.state.nbytes)

    def _arrived(self, frame: Frame | NDArray[np.generic]) -> tuple[float, Frame]:
        """The current time in seconds, and the frame; an array becomes a Frame with the next number."""
        return time.perf_counter(), frame if isinstance(frame, Frame) else Frame(frame, index=self.frames)

    def picture(self, frame: Frame | NDArray[np.generic]) -> Tensor:
        """The picture [3, h, w] in 0..1 that the model sees of a frame, on the stream's device. Raises FrameError for a
        frame that cannot be used."""
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

    def _scaled(self, height: int, width: int, cell: int) -> tuple[int, int]:
        """Multiples of `cell` in about the proportions of the frame, the shorter about `size`. Raises FrameError for a
        frame that is so long that the result would not fit into memory."""
        if max(height, width) > LONGEST * min(height, width):
            known = f"expected sides of which one is at most {LONGEST} times the other; cut or pad it"
            raise FrameError(f"a frame of {width}x{height} pixels is too long: {known}")
        share = self.size / min(height, width)
        high, wide = (max(cell, round(side * share / cell) * cell) for side in (height, width))
        return high, wide

    def _fitted(self, pixels: Tensor, sides: tuple[int, int]) -> Tensor:
        """Pictures [n, 3, H, W] resized to these sides."""
        return pixels if pixels.shape[-2:] == sides else F.interpolate(pixels, sides, mode="bilinear", antialias=True)

    def begin(self, source: Source) -> None:
        """Prepare for the frames of a source."""

    def reset(self) -> None:
        """Reset the memory and the counters, as at the start of a stream."""
        self.state = self._fresh()

    def copy(self: T) -> T:
        """An independent copy of the stream, with the same model."""
        return copy.deepcopy(self, {id(value): value for value in (self.model, self.state, self.device)})

    def _fresh(self) -> Any:
        return self.model.init_state(1)

    def _more(self) -> dict[str, Any]:
        """Further metadata that a kind of stream saves."""
        return {}

    def save(self, path: str | os.PathLike[str], source: Source | None = None) -> None:
        """Write the state that is needed to continue bit for bit: memory, counters, and the position of the source.
        Raises OutputError if the file cannot be written."""
        about = None if source is None else {"name": source.name, "position": source.position()}
        states.save(self.state, path, **self.notes(about))

    def notes(self, source: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The metadata that `save` writes with the state. source: its "name" and "position"."""
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
        """Restore the stream that `save` wrote. The model must be the same; a given source is moved to the saved
        position.

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
        """The state in a file with matching metadata."""
        return states.load(path, self._fresh())

    def _go_on(self, meta: dict[str, Any]) -> None:
        """Restore the metadata of `_more`."""


class Saved:
    """The metadata of a saved stream. source: the name of its source, None if it had none. size: side of its pictures,
    None if the file does not contain it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        texts = states.metadata(path)
        meta: dict[str, Any] = json.loads(texts.get("stream") or texts.get("masks") or texts.get("taught") or "{}")
        source = meta.get("source")
        self.source = None if source is None else str(source["name"])
        self.size: int | None = meta.get("size")
