"""A memory of places in front of a trunk. It stores what was observed at each place, with the delta rule.

Letters: B environments, T steps, N numbers of an encoded observation, P numbers that describe a place, K places that
are read, F features of a place, V width of a value.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.memory.matrix import MatrixState, linear
from tttstream.memory.recurrence import Token, answers

OPTIONS = ("width", "features", "sharp")
SHARP = 3.0


class PoseMemory(nn.Module):
    """Reads what was observed at K places, then learns what is observed here.

    S += beta f(p)^T ([v, 1] - f(p) S), read as f(p') S. p describes the place of the agent, p' one that is read, and v
    is a projection of the observation without its places. f(p) are random Fourier features of p, of length 1, so that
    beta = 1 stores v exactly. This is `tttstream.memory.KernelDelta` with given keys. The last number that is read is
    1 for a place that was observed, and about 0 for others. In the output, the numbers that were read replace the
    descriptions of their places. The state is all zeros at the start of an episode.

    numbers: N. at: the indices of the P numbers that describe the place of the agent, such as the Fourier features of
    `PoseObservation`. ask: the indices of the P numbers of each place that is read. width: V. features: F, an even
    number, at least twice the number of places. sharp: a larger one distinguishes closer places. Raises ConfigError for
    sizes that do not fit.
    """

    frequencies: Tensor

    def __init__(
        self,
        numbers: int,
        at: Sequence[int],
        ask: Sequence[Sequence[int]],
        *,
        width: int = 32,
        features: int = 256,
        sharp: float = SHARP,
    ) -> None:
        super().__init__()
        if width < 1 or features < 2 or features % 2 or not 0 < sharp < math.inf:
            raise ConfigError(
                "places: expected a width of at least 1, an even number of features and sharp above 0, got "
                f"{width}, {features} and {sharp}"
            )
        if not at or not ask or any(len(one) != len(at) for one in ask):
            raise ConfigError(
                f"places: the place of the agent has {len(at)} numbers, those that are read have "
                f"{', '.join(str(len(one)) for one in ask) or 'none'}"
            )
        self.at, self.ask, self.width = list(at), [list(one) for one in ask], width
        places = {*self.at, *(index for one in self.ask for index in one)}
        self.rest = [index for index in range(numbers) if index not in places]
        if not self.rest:
            raise ConfigError("places: the observation has nothing but places, so there is nothing to remember")
        self.kept = [index for index in range(numbers) if index in self.at or index not in places]
        self.value, self.rate = linear(len(self.rest), width), nn.Linear(len(self.rest), 1)
        nn.init.zeros_(self.rate.weight)
        nn.init.zeros_(self.rate.bias)  # beta = 1
        self.register_buffer("frequencies", sharp * (2 / len(at)) ** 0.5 * torch.randn(len(at), features // 2))

    @property
    def size(self) -> int:
        """The count of numbers of an output."""
        return len(self.kept) + len(self.ask) * (self.width + 1)

    def init_state(self, batch: int) -> MatrixState:
        """A fresh state of `batch` environments: all zeros."""
        keys = self.frequencies
        zeros = keys.new_zeros(batch, 1, 2 * keys.shape[1], self.width + 1, dtype=_wide(keys.dtype))
        return MatrixState(zeros, zeros[:, 0, :0, :1])

    def keys(self, places: Tensor) -> Tensor:
        """f(p) [..., F] of places [..., P]."""
        dtype = _wide(places.dtype)
        angles = places.to(dtype) @ self.frequencies.to(dtype)
        return torch.cat([angles.cos(), angles.sin()], -1) * self.frequencies.shape[1] ** -0.5

    def forward(self, x: Tensor, state: MatrixState, reset: Tensor | None) -> tuple[Tensor, MatrixState]:
        """x [B, T, N], reset [B, T] or None -> the output [B, T, size] and the next state. The output is x without the
        places that are read, then the numbers that were read."""
        rest = x[..., self.rest].to(self.value.weight.dtype)
        value = nn.functional.pad(self.value(rest), (0, 1), value=1.0).to(state.matrix.dtype)
        beta = 2 * torch.sigmoid(self.rate(rest)).to(state.matrix.dtype)
        here, asked = self.keys(x[..., self.at])[:, :, None], self.keys(x[..., self.ask])[:, :, None]
        token = Token(torch.zeros_like(here), beta[..., None] * here, value[:, :, None], read=here)
        read, matrix = answers(asked, token, state.matrix, reset)
        return torch.cat([x[..., self.kept], read.flatten(2).to(x)], -1), state._replace(matrix=matrix)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def parts(places: dict[str, Any] | None) -> list[str]:
    """The names of the parts of an observation that describe places: first the place of the agent, then the places that
    are read. An empty list without "at"."""
    if not places or "at" not in places:
        return []
    ask = places.get("ask") or places["at"]
    return [places["at"], *(ask if isinstance(ask, list | tuple) else [ask])]


def build(
    numbers: int, indices: dict[str, list[int]], places: dict[str, Any] | None, space: spaces.Space[Any]
) -> PoseMemory | None:
    """Make a memory of places for observations that are encoded as N = `numbers`. Returns None if `places` is empty.

    indices: maps the name of each part of a Dict, except pictures, to its indices in the encoded observation.
    places: "at" is the name of the part that describes the place of the agent (P numbers). "ask" is the name, or a list
    of names, of the parts that describe the places that are read (P numbers or [K, P]); by default the place of the
    agent. Other keys are options of `PoseMemory`. Parts that are not a Box are one-hot, and every value of a part has a
    key of its own. space: of the observations. Raises ConfigError for parts that do not exist or do not fit, and for
    unknown options.
    """
    if not places:
        return None
    options = {key: value for key, value in places.items() if key not in ("at", "ask")}
    if "at" not in places or set(options) - set(OPTIONS):
        raise ConfigError(f"places: expected at, maybe ask, {', '.join(OPTIONS)}, got {', '.join(map(str, places))}")
    try:
        at, *names = parts(places)
        unknown = sorted({str(one) for one in (at, *names)} - set(indices))
        if unknown:
            raise ConfigError(
                f"places: the observation has no part {', '.join(map(repr, unknown))} of numbers; it has "
                f"{', '.join(sorted(indices)) or 'none'}"
            )
        of = cast(spaces.Dict, space)
        if len({isinstance(of[one], spaces.Box) for one in (at, *names)}) > 1:
            raise ConfigError(f"places: at and ask must both be a Box or both have choices: {at}, {', '.join(names)}")
        size = len(indices[at])
        if not isinstance(of[at], spaces.Box):
            # different one-hots are then as far apart as the Fourier features of far places
            options["sharp"] = options.get("sharp", SHARP) * math.sqrt(size / 2)
        asked = [indices[one][first : first + size] for one in names for first in range(0, len(indices[one]), size)]
        return PoseMemory(numbers, indices[at], asked, **options)
    except TypeError as error:
        raise ConfigError(f"places: {places} has a value of a wrong type: {error}") from error
