"""From an observation of any gymnasium space to numbers: one-hot choices, scaled numbers, pictures through a CNN.

Letters: * any leading sizes (steps T, environments B), N numbers of an observation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream_agents.errors import ObservationError, SpaceError

SMALLEST_PICTURE = 5  # pixels; a Box with a smaller side is read as plain numbers
UNBOUNDED = 1e6  # a range wider than this says nothing about where the numbers lie


class Choices(nn.Module):
    """Discrete, MultiDiscrete and MultiBinary: x [*, shape] -> [*, size], a one-hot for each component."""

    value: Tensor
    owner: Tensor

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        counts, first, self.shape = choices(space)
        self.sizes = counts.tolist()
        self.size = int(counts.sum())
        value = np.concatenate([np.arange(n) + start for n, start in zip(counts, first, strict=True)])
        self.register_buffer("value", torch.as_tensor(value), persistent=False)
        self.register_buffer("owner", torch.as_tensor(np.repeat(np.arange(len(counts)), counts)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        flat = x.reshape(*x.shape[: x.dim() - len(self.shape)], len(self.sizes))
        return (flat[..., self.owner] == self.value).to(torch.get_default_dtype())

    def fault(self, x: Tensor) -> str | None:
        """What is wrong with x, if anything: a value that is none of the choices has no one-hot."""
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
        self.exact = middle, half  # for numbers that come in float64, which may lie close together far from zero
        self.register_buffer("middle", middle.float(), persistent=False)
        self.register_buffer("reach", half.float(), persistent=False)
        self.register_buffer("bounded", bounded, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        dtype = torch.get_default_dtype()
        flat, (middle, reach) = x.reshape(*x.shape[: x.dim() - len(self.shape)], self.size), (self.middle, self.reach)
        if x.dtype == torch.float64:
            middle, reach = (edge.to(x.device) for edge in self.exact)
        else:
            flat = flat.to(dtype)
        return torch.where(self.bounded, (flat - middle) / reach, flat.sign() * flat.abs().log1p()).to(dtype)

    def fault(self, x: Tensor) -> str | None:
        """What is wrong with x, if anything."""
        return None if not x.is_floating_point() or bool(x.isfinite().all()) else "NaN or infinity"


class Picture(nn.Module):
    """Image Box [H, W, C], [C, H, W] or [H, W]: x [*, shape] -> [*, size] through convolutions of stride 2."""

    def __init__(self, space: spaces.Box, width: int = 32) -> None:
        super().__init__()
        self.numbers, self.shape = Numbers(space), space.shape
        self.last = len(self.shape) == 3 and channels_last(self.shape)
        channels = 1 if len(self.shape) == 2 else self.shape[2] if self.last else self.shape[0]
        height, across = self.shape[:2] if self.last or len(self.shape) == 2 else self.shape[1:]
        layers: list[nn.Module] = []
        while not layers or max(height, across) > 4:
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GELU()]
            channels, height, across = width, -(-height // 2), -(-across // 2)
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.size = channels * height * across

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        leading = x.shape[: x.dim() - len(self.shape)]
        pixels = self.numbers(x).reshape(-1, *(self.shape if len(self.shape) == 3 else (1, *self.shape)))
        pixels = (pixels.movedim(-1, 1) if self.last else pixels).to(next(self.layers.parameters()).dtype)
        return self.layers(pixels).reshape(*leading, self.size)

    def fault(self, x: Tensor) -> str | None:
        """What is wrong with x, if anything."""
        return self.numbers.fault(x)


Part = Choices | Numbers | Picture


class Encoder(nn.Module):
    """Observations of a space as numbers: `encoder(encoder.tensors(obs, leading))` gives [*, N], N = `size`."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.paths = [path for path, _ in leaves(space)]
        modules = [part(path, leaf) for path, leaf in leaves(space)]
        self.parts = nn.ModuleList(modules)
        if not modules:
            raise SpaceError("cannot see an empty observation space")
        self.size = sum(module.size for module in modules)

    def tensors(self, obs: Any, leading: int, check: bool = True) -> list[Tensor]:
        """The observation's parts as tensors on the encoder's device, their shapes checked.

        leading: how many sizes come before the space's own. check: also look at the values.
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
                raise ObservationError(f"{name(path)}: expected one or more of them, got {list(x.shape)}")
            if out and x.shape[:leading] != out[0].shape[:leading]:
                raise ObservationError(f"{name(path)}: has {list(x.shape[:leading])} rows, others have another number")
            fault = module.fault(x) if check else None
            if fault:
                row = next((i for i, one in enumerate(x) if module.fault(one)), None) if leading else None
                raise ObservationError(f"{name(path)} holds {fault}", row)
            out.append(x)
        return out

    def forward(self, obs: list[Tensor]) -> Tensor:
        """obs: what `tensors` gave -> [*, N]."""
        return torch.cat([module(x) for module, x in zip(self.parts, obs, strict=True)], dim=-1)


def tensor(x: Any, device: torch.device, path: tuple[str | int, ...]) -> Tensor:
    """A part of an observation as a tensor."""
    if isinstance(x, np.ndarray) and any(stride < 0 for stride in x.strides):
        x = np.ascontiguousarray(x)  # torch knows no steps backwards
    try:
        return torch.as_tensor(x, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ObservationError(f"{name(path)}: expected numbers, got {type(x).__name__}") from error


def choices(space: spaces.Space[Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], tuple[int, ...]]:
    """(number of choices, first choice) of each component, and the shape of a sample."""
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


def part(path: tuple[str | int, ...], space: spaces.Space[Any]) -> Part:
    """The module that reads one part of an observation."""
    if isinstance(space, spaces.Box):
        return Picture(space) if is_picture(space) else Numbers(space)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Choices(space)
    raise SpaceError(
        f"{name(path)}: cannot see a {type(space).__name__}; expected Box, Discrete, MultiDiscrete, MultiBinary, "
        "or a Dict or Tuple of them: leave that part out with an observation wrapper"
    )


def channels_last(shape: tuple[int, ...]) -> bool:
    """Whether a picture is [H, W, C] and not [C, H, W]: two equal sides are its height and width, else the channels are
    the fewer."""
    first, second, third = shape
    if (first == second) != (second == third):
        return first == second
    return third < first


def is_picture(space: spaces.Box) -> bool:
    """Three axes with two long sides, or a matrix of bytes with two sides of at least 16."""
    if len(space.shape) == 3:
        return sorted(space.shape)[1] >= SMALLEST_PICTURE and sorted(space.shape)[0] <= 64
    return len(space.shape) == 2 and space.dtype == np.uint8 and min(space.shape) >= 16


def pick(obs: Any, path: tuple[str | int, ...]) -> Any:
    """The part of an observation at a path."""
    for key in path:
        try:
            obs = obs[key]
        except (KeyError, IndexError, TypeError) as error:
            raise ObservationError(f"{name(path)}: no such part in a {type(obs).__name__}") from error
    return obs


def name(path: tuple[str | int, ...]) -> str:
    """How a message names a part."""
    return "observation" + "".join(f"[{key!r}]" for key in path)
