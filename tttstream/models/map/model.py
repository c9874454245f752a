"""MapModel: frames and poses go in, and out comes what memory expects at any pose."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tttstream.errors import CheckpointError, ShapeError
from tttstream.io import weights
from tttstream.models.map.codes import PatchCodes
from tttstream.models.map.place_memory import PlaceMemory
from tttstream.models.map.points import NUMBERS, PointFeatures, WorldSigns, complete, patch_points

FORMAT = "tttstream.map/1"
WEIGHTS = Path(__file__).parents[2] / "weights"


@dataclass(frozen=True)
class MapConfig:
    """Everything that decides a map's shape.

    size: side of the square picture in pixels. patch: side of a patch. codes: components of a patch's code.
    features: random Fourier features of a point, scales: their lengths in sides of a view. where, what: widths of the
    two parts of a token. memory, heads, options: of the memory, see `tttstream.memory.build`. usual: mean
    and deviation of the logarithm of a stream's loss where nothing has changed, which give the surprise its scale.
    """

    size: int = 64
    patch: int = 16
    codes: int = 32
    features: int = 128
    scales: tuple[float, ...] = (0.3, 0.15)
    where: int = 96
    what: int = 64
    memory: str = "ttt_mlp"
    heads: int = 4
    options: dict[str, Any] = field(default_factory=lambda: {"rotary": False})
    usual: tuple[float, float] = (0.0, 0.4)

    def __post_init__(self) -> None:
        for name in ("size", "patch", "codes", "features", "where", "what", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ShapeError(f"map: {name} must be a whole number of at least 1, got {value!r}")
        if self.size % self.patch or self.patch % 2:
            raise ShapeError(f"map: size must be a multiple of patch, an even one, got {self.size} and {self.patch}")
        if self.codes > 3 * self.patch**2:
            raise ShapeError(f"map: a patch of {self.patch} pixels has {3 * self.patch**2} codes at most: {self.codes}")
        scales = tuple(self.scales)  # JSON and YAML give lists
        if not scales or min(scales) <= 0 or self.features % len(scales):
            raise ShapeError(f"map: scales are lengths above 0 that share the features evenly, got {self.scales}")
        object.__setattr__(self, "scales", scales)
        object.__setattr__(self, "usual", tuple(self.usual))

    @property
    def side(self) -> int:
        """Patches along a side of the picture."""
        return self.size // self.patch


class MapOutput(NamedTuple):
    """What memory says of points.

    codes: [..., C] what is there. error: [...] the squared error to be expected of that, mean over codes.
    familiar: [...] the probability that the point was ever in view.
    """

    codes: Tensor
    error: Tensor
    familiar: Tensor


class MapModel(nn.Module):
    """Learns what is seen where, and says what is to be seen at a pose.

    Called as (frames [B, T, 3, S, S] uint8 or float 0..1, poses [B, T, 2 to 5], state, reset bool [B, T]) ->
    (MapOutput [B, T, n * n, …], state): what memory says of the frames' own points right after it learned them. With
    `ask` [B, T, n * n, 5] it speaks of these points instead, each as memory is when the token at its place has been
    learned. `imagine` asks without learning. Poses are those of `tttstream.sources.places.Places`.
    """

    def __init__(self, config: MapConfig) -> None:
        super().__init__()
        self.config = config
        self.codes = PatchCodes(config.patch, config.codes)
        self.features = PointFeatures(config.features, config.scales)
        self.signs = WorldSigns(config.where)
        self.memory = PlaceMemory(
            config.codes, self.features.count + 2, where=config.where, what=config.what, memory=config.memory,
            heads=config.heads, options=config.options,
        )  # fmt: skip

    def init_state(self, batch: int) -> Any:
        """A fresh state of `batch` streams, all zeros."""
        return self.memory.init_state(batch)

    def points(self, poses: Tensor, halves: bool = False) -> Tensor:
        """Poses [..., 2 to 5] -> the points of their patches [..., n * n, 5], in float64; with `halves` of those that
        overlap by half [..., (2 n - 1) ** 2, 5]."""
        return patch_points(complete(poses.double()), self.config.side, halves)

    def forward(
        self,
        frames: Tensor,
        poses: Tensor,
        state: Any = None,
        reset: Tensor | None = None,
        *,
        ask: Tensor | None = None,
    ) -> tuple[MapOutput, Any]:
        """See the class."""
        size = self.config.size
        if frames.dim() != 5 or tuple(frames.shape[2:]) != (3, size, size) or frames.shape[1] < 1:
            raise ShapeError(f"map: expected frames [B, T >= 1, 3, {size}, {size}], got {list(frames.shape)}")
        if poses.shape[:-1] != frames.shape[:2]:
            raise ShapeError(f"map: expected poses {[*frames.shape[:2], NUMBERS]}, got {list(poses.shape)}")
        if reset is not None and (reset.shape != frames.shape[:2] or reset.dtype != torch.bool):
            raise ShapeError(
                f"map: expected reset bool {list(frames.shape[:2])}, got {reset.dtype} {list(reset.shape)}"
            )
        points = self.points(poses)
        what = self.codes.encode(self.pixels(frames))
        ask = points if ask is None else ask
        where, asked = self.features(points), self.features(ask)
        signs = self.signs(points[..., 4]).flatten(1, 2), self.signs(ask[..., 4]).flatten(1, 2)
        tokens = what.shape[2]
        if reset is not None:  # of the first token of a frame
            reset = torch.cat([reset[..., None], reset.new_zeros(*reset.shape, tokens - 1)], dim=2).flatten(1)
        flat = (part.flatten(1, 2) for part in (what, where, asked))
        answer, state = self.memory(*flat, state, reset, signs)
        return self._output(answer.unflatten(1, (-1, tokens))), state

    def imagine(self, points: Tensor, state: Any) -> MapOutput:
        """What memory says of points [B, Q, 5] ([B, Q, …]); nothing is learned."""
        return self._output(self.memory.read(self.features(points), state, self.signs(points[..., 4])))

    @staticmethod
    def _output(answer: Tensor) -> MapOutput:
        return MapOutput(answer[..., :-2], answer[..., -2].clamp(-8.0, 8.0).exp(), answer[..., -1].sigmoid())

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames as floats 0..1 of the weights' type."""
        dtype = self.codes.mean.dtype
        return frames.to(dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(dtype)

    def fingerprint(self) -> str:
        """A hash of the configuration and of all weights: what a saved stream must match."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors into a folder. dtype: of the weights in the file, as in
        `FrameModel.save`."""
        weights.write(self, dataclasses.asdict(self.config), FORMAT, folder, dtype)


def is_map(name_or_folder: str) -> bool:
    """Whether that is the name or the folder of a map."""
    path = _folder(name_or_folder) / "config.json"
    return path.is_file() and weights.read(path.parent).get("format") == FORMAT


def load(name_or_folder: str = "map") -> MapModel:
    """A shipped map by its name, or one from a folder that `MapModel.save` wrote."""
    path = _folder(name_or_folder)
    if not is_map(name_or_folder):
        raise CheckpointError(f"there is no map {name_or_folder!r}: expected map, or the folder of one")
    values = weights.read(path)
    values.pop("format")
    known = {item.name for item in dataclasses.fields(MapConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{path / 'config.json'} has unknown keys: {', '.join(unknown)}")
    model = MapModel(MapConfig(**values))
    weights.fill(model, path)
    return model.eval()


def _folder(name_or_folder: str) -> Path:
    shipped = WEIGHTS / name_or_folder
    return shipped if "/" not in name_or_folder and (shipped / "config.json").is_file() else Path(name_or_folder)
