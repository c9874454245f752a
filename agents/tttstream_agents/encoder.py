"""Encodes observations of any gymnasium space: one-hot choices, scaled numbers, pictures through a CNN.

Letters: * any leading sizes (steps T, environments B), N numbers of an observation.
"""

import math
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream_agents.errors import ObservationError, SpaceError
from tttstream_agents.statistics import Running

SMALLEST_PICTURE = 5  # pixels; a Box with a smaller side is encoded as numbers
EXACT = 2**24  # largest whole number up to which float32 has every whole number
UNBOUNDED = 1e6  # components with a larger range are not scaled by it
MOST_CHOICES = 1_000_000  # of which a one-hot is made


class Choices(nn.Module):
    """Discrete, MultiDiscrete and MultiBinary: x [*, shape] -> [*, size], a one-hot for each component."""

    value: Tensor
    owner: Tensor

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        counts, first, self.shape = choices(space)
        self.sizes = counts.tolist()
        self.size = int(counts.sum())
        if self.size > MOST_CHOICES:
            raise SpaceError(f"{space} has {self.size} choices, more than the {MOST_CHOICES} that can be encoded")
        value = np.concatenate([np.arange(n) + start for n, start in zip(counts, first, strict=True)])
        self.register_buffer("value", torch.as_tensor(value), persistent=False)
        self.register_buffer("owner", torch.as_tensor(np.repeat(np.arange(len(counts)), counts)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(*x.shape[: x.dim() - len(self.shape)], len(self.sizes))
        return (flat[..., self.owner] == self.value).to(torch.get_default_dtype())

    def fault(self, x: Tensor) -> str | None:
        """A description of what is wrong with x, or None."""
        chosen = self(x).sum(-1)
        return None if bool((chosen == len(self.sizes)).all()) else "a value outside its choices"


class Numbers(nn.Module):
    """Box: x [*, shape] -> [*, size]; bounded components scaled to -1..1, others by sign(x) log(1 + |x|)."""

    middle: Tensor
    reach: Tensor
    bounded: Tensor

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.shape = space.shape
        self.size = math.prod(space.shape)
        low, high = (torch.as_tensor(edge.astype(np.float64)).flatten() for edge in (space.low, space.high))
        bounded = (high - low < UNBOUNDED) & (high > low)
        middle, half = torch.where(bounded, (low + high) / 2, 0), torch.where(bounded, (high - low) / 2, 1)
        self.exact = middle, half  # for values that may be large and close together
        self.large = bool((torch.where(bounded, middle.abs() + half, 0) > EXACT).any())
        self.register_buffer("middle", middle.float(), persistent=False)
        self.register_buffer("reach", half.float(), persistent=False)
        self.register_buffer("bounded", bounded, persistent=False)

    def flat(self, x: Tensor) -> Tensor:
        """x [*, shape] -> [*, size]."""
        return x.reshape(*x.shape[: x.dim() - len(self.shape)], self.size)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.get_default_dtype()
        flat, middle, reach = self.flat(x), self.middle, self.reach
        if x.dtype == torch.float64 or (self.large and not x.is_floating_point()):
            flat, middle, reach = flat.double(), *(edge.to(x.device) for edge in self.exact)
        else:
            flat = flat.to(dtype)
        return torch.where(self.bounded, (flat - middle) / reach, flat.sign() * flat.abs().log1p()).to(dtype)

    def fault(self, x: Tensor) -> str | None:
        """A description of what is wrong with x, or None."""
        return None if not x.is_floating_point() or bool(x.isfinite().all()) else "NaN or infinity"


class Normalised(Numbers):
    """Box: x [*, shape] -> [*, size], scaled by the running mean and deviation. See `Running`."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space)
        self.statistics = Running(self.size)

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.statistics(self.flat(x))
        return normal

    def update(self, x: Tensor) -> None:
        """Add observations [*, shape] to the statistics."""
        self.statistics.update(self.flat(x))


def strided(channels: int, height: int, width: int, features: int = 32) -> tuple[nn.Sequential, int]:
    """Build convolutions of stride 2 down to 4 x 4 cells, for any size. Returns them and their number of outputs."""
    layers: list[nn.Module] = []
    while not layers or max(height, width) > 4:
        layers += [nn.Conv2d(channels, features, 3, stride=2, padding=1), nn.GELU()]
        channels, height, width = features, -(-height // 2), -(-width // 2)
    return nn.Sequential(*layers, nn.Flatten()), channels * height * width


def nature(channels: int, height: int, width: int) -> tuple[nn.Sequential, int]:
    """Build the network of Mnih et al. (Nature 518, 2015). Returns it and its width, 512. Raises SpaceError for
    pictures of less than 36 pixels."""
    if min(height, width) < 36:
        raise SpaceError(f"cnn 'nature' needs pictures of 36 pixels or more, got {height} x {width}: use 'strided'")
    convolutions = nn.Sequential(
        nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    places = [((size - 8) // 4 + 1 - 4) // 2 + 1 - 2 for size in (height, width)]
    return nn.Sequential(*convolutions, nn.Linear(64 * places[0] * places[1], 512), nn.ReLU()), 512


class Residual(nn.Module):
    """x + two convolutions of ReLU(x), a block of IMPALA's network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[*, channels, height, width] -> the same shape."""
        return x + self.layers(x)


def impala(channels: int, height: int, width: int) -> tuple[nn.Sequential, int]:
    """Build the deep network of IMPALA (Espeholt et al., arXiv 1802.01561, figure 3). Returns it and its width, 256."""
    layers: list[nn.Module] = []
    for features in (16, 32, 32):
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Residual(features), Residual(features)]
        channels, height, width = features, -(-height // 2), -(-width // 2)
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(channels * height * width, 256), nn.ReLU()), 256


CNNS: dict[str, Callable[[int, int, int], tuple[nn.Sequential, int]]] = {
    "strided": strided, "nature": nature, "impala": impala,
}  # fmt: skip
"""Networks for pictures: (channels, height, width) -> (network, number of outputs)."""


class Picture(nn.Module):
    """Image Box [H, W, C], [C, H, W] or [H, W]: x [*, shape] -> [*, size] through a convolutional network.

    cnn: a name of `CNNS`, or "auto": nature where both sides have 64 pixels or more, else strided. Bounded pixels are
    scaled to -1..1.
    """

    def __init__(self, space: spaces.Box, cnn: str = "auto") -> None:
        super().__init__()
        self.numbers, self.shape = Numbers(space), space.shape
        self.last = len(self.shape) == 3 and channels_last(self.shape)
        channels = 1 if len(self.shape) == 2 else self.shape[2] if self.last else self.shape[0]
        height, width = self.shape[:2] if self.last or len(self.shape) == 2 else self.shape[1:]
        if cnn == "auto":
            cnn = "nature" if min(height, width) >= 64 else "strided"
        if cnn not in CNNS:
            raise SpaceError(f"there is no cnn {cnn!r}: expected auto, {', '.join(CNNS)}")
        self.layers, self.size = CNNS[cnn](channels, height, width)
        self.channels = channels
        numbers = self.numbers
        alike = bool(numbers.bounded.all()) and len(numbers.middle.unique()) == len(numbers.reach.unique()) == 1
        self.scale = (float(numbers.middle[0]), float(numbers.reach[0])) if alike else None

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.pixels(x)).reshape(*x.shape[: x.dim() - len(self.shape)], self.size)

    def pixels(self, x: Tensor) -> Tensor:
        """Scaled pictures [*, shape] -> [pictures, channels, height, width]."""
        shape = self.shape if len(self.shape) == 3 else (1, *self.shape)
        dtype = next(self.layers.parameters()).dtype
        if self.scale is not None and x.dtype != torch.float64:  # the same for all pixels: ten times faster
            pixels = (x.reshape(-1, *shape).to(dtype) - self.scale[0]) / self.scale[1]
        else:
            pixels = self.numbers(x).reshape(-1, *shape).to(dtype)
        return pixels.movedim(-1, 1) if self.last else pixels

    def fault(self, x: Tensor) -> str | None:
        """A description of what is wrong with x, or None."""
        return self.numbers.fault(x)


Part = Choices | Numbers | Picture


class Encoder(nn.Module):
    """Encodes the observations of a space as vectors. `encoder(encoder.tensors(obs, leading))` returns a tensor [*, N],
    where N is `size`. plain: parts of a Dict that `normalise` leaves as they are."""

    def __init__(
        self,
        space: spaces.Space[Any],
        cnn: str = "auto",
        normalise: bool = False,
        plain: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.space = space
        self.paths = [path for path, _ in leaves(space)]
        modules = [
            part(path, leaf, cnn, normalise and path[:1] not in [(one,) for one in plain])
            for path, leaf in leaves(space)
        ]
        self.parts = nn.ModuleList(modules)
        if not modules:
            raise SpaceError("the observation space is empty")
        self.size = sum(module.size for module in modules)

    def indices(self) -> dict[str, list[int]]:
        """Map the name of each part of a Dict, except pictures, to its indices in the encoded observation."""
        found, first = {}, 0
        for path, child in zip(self.paths, self.parts, strict=True):
            size = cast(Part, child).size
            if not isinstance(child, Picture) and len(path) == 1:
                found[str(path[0])] = list(range(first, first + size))
            first += size
        return found

    def tensors(self, obs: Any, leading: int, check: bool = True) -> list[Tensor]:
        """The parts of observations as tensors on the encoder's device, with checked shapes.

        leading: the number of dimensions before those of the space. check: also check the values.
        Raises ObservationError, which names the part.
        """
        device = next(self.buffers()).device
        out: list[Tensor] = []
        for path, child in zip(self.paths, self.parts, strict=True):
            module = cast(Part, child)
            x, shape = tensor(pick(obs, path), device, path), tuple(module.shape)
            if x.dim() != leading + len(shape) or tuple(x.shape[leading:]) != shape:
                wanted = [*["any"] * leading, *shape]
                raise ObservationError(f"{name(path)}: expected shape {wanted}, got {list(x.shape)}")
            if 0 in x.shape[:leading]:
                raise ObservationError(f"{name(path)}: expected at least one observation, got {list(x.shape)}")
            if out and x.shape[:leading] != out[0].shape[:leading]:
                raise ObservationError(f"{name(path)}: has {list(x.shape[:leading])} rows, others have another number")
            fault = module.fault(x) if check else None
            if fault:
                row = next((i for i, one in enumerate(x) if module.fault(one)), None) if leading else None
                raise ObservationError(f"{name(path)} holds {fault}", row)
            out.append(x)
        return out

    def update(self, obs: list[Tensor], valid: Tensor) -> None:
        """Add valid [*] observations to the running statistics, if there are any. obs: the result of `tensors`."""
        for module, x in zip(self.parts, obs, strict=True):
            if isinstance(module, Normalised):
                module.update(x[valid])

    def forward(self, obs: list[Tensor]) -> Tensor:
        """obs: the result of `tensors` -> [*, N]."""
        return torch.cat([module(x) for module, x in zip(self.parts, obs, strict=True)], dim=-1)


def tensor(x: Any, device: torch.device, path: tuple[str | int, ...]) -> Tensor:
    """A part of an observation as a tensor. Raises ObservationError if it has no numbers."""
    if isinstance(x, np.ndarray) and any(stride < 0 for stride in x.strides):
        x = np.ascontiguousarray(x)  # torch has no negative strides
    try:
        return torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ObservationError(f"{name(path)}: expected numbers, got {type(x).__name__}") from error


def choices(space: spaces.Space[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[int, ...]]:
    """(number of choices, first choice) of each component, and the shape of a sample. Raises SpaceError for a space
    without choices."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n]), np.array([space.start]), ()
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.flatten(), space.start.flatten(), space.shape
    if isinstance(space, spaces.MultiBinary):
        count = math.prod(space.shape)
        return np.full(count, 2), np.zeros(count, dtype=int), space.shape
    raise SpaceError(f"expected Discrete, MultiDiscrete or MultiBinary, got {space}")


def leaves(space: spaces.Space[Any], path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(path, space) of every part of a nested space."""
    if isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from leaves(inner, (*path, index))
    else:
        yield path, space


def part(path: tuple[str | int, ...], space: spaces.Space[Any], cnn: str = "auto", normalise: bool = False) -> Part:
    """The encoder of one part of an observation. normalise: scale the numbers of a Box by running statistics. Raises
    SpaceError for a space that is not supported."""
    if isinstance(space, spaces.Box):
        if is_picture(space):
            return Picture(space, cnn)
        return Normalised(space) if normalise else Numbers(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Choices(space)
    raise SpaceError(
        f"{name(path)}: cannot encode a {type(space).__name__}; expected Box, Discrete, MultiDiscrete, MultiBinary, "
        "or a Dict or Tuple of them: remove this part with an observation wrapper"
    )


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a picture is [H, W, C] and not [C, H, W]. If exactly two sides are equal, they are height and width; else
    the smaller outer side is the channels."""
    first, second, third = shape
    if (first == second) != (second == third):
        return first == second
    return third < first


def is_picture(space: spaces.Box) -> bool:
    """Whether a Box is a picture: three axes, two of them long, or a matrix of bytes with sides of at least 16."""
    if len(space.shape) == 3:
        return sorted(space.shape)[1] >= SMALLEST_PICTURE and sorted(space.shape)[0] <= 64
    return len(space.shape) == 2 and space.dtype == np.uint8 and min(space.shape) >= 16


def pick(obs: Any, path: tuple[str | int, ...]) -> Any:
    """The part of an observation at a path. Raises ObservationError if there is none."""
    for key in path:
        try:
            obs = obs[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ObservationError(f"{name(path)}: no such part in a {type(obs).__name__}") from error
    return obs


def name(path: tuple[str | int, ...]) -> str:
    """The name of a part in messages."""
    return "observation" + "".join(f"[{key!r}]" for key in path)
