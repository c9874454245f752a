"""The meaning of the numbers of a pose, and their continuous vector."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError
from tttstream.frames import MOST_NUMBERS

Floats = NDArray[np.float64]

TURNS = {"deg": 360.0, "rad": 2 * np.pi, "turns": 1.0, "quarters": 4.0}
"""The size of a whole turn in each unit of angles."""
ORDERS = {"xyzw": (0, 1, 2, 3), "wxyz": (1, 2, 3, 0)}
"""The indices of x, y, z and w of a quaternion among its four numbers."""
UNITS = ("number", *TURNS, *ORDERS)
SPELLINGS = {"degree": "deg", "degrees": "deg", "radian": "rad", "radians": "rad", "°": "deg", "turn": "turns"}
ANGLES = {"angle", "azimuth", "bearing", "course", "dir", "direction", "heading", "orientation", "pan"}
ANGLES |= {"phi", "pitch", "psi", "roll", "rot", "rotation", "theta", "tilt", "yaw"}
NO_ANGLES = {"lat", "lon", "lng", "latitude", "longitude", "rate", "speed", "vel", "velocity"}
"""Words in names: of angles, and of other values that may be in degrees or radians."""
DIGITS = 12  # decimals of cosines, sines and rotations, so that one orientation always has the same numbers
OFF = 0.05  # tolerance of the length of a quaternion and of a rotation matrix, because files round


class Part(ABC):
    """Some of the numbers of a pose that belong together.

    name: of the part. raw: the number of input values. names: of the output values. directions: the indices of output
    values that are components of directions (in -1..1); the others are lengths or similar.
    """

    name: str
    raw: int = 1
    names: tuple[str, ...]
    directions: Sequence[int] = ()

    @property
    def text(self) -> str:
        """A description for messages."""
        return self.name

    def fault(self, raw: Floats) -> str | None:
        """The fault of finite numbers [raw]; None if there is none."""
        return None

    @abstractmethod
    def encode(self, raw: Floats) -> Floats:
        """The output values, [len(names)], a continuous function of position and orientation."""

    def between(self, early: Floats, late: Floats, share: float) -> Floats:
        """Interpolate between two vectors [raw]; share 0 is the first, 1 the second."""
        return early + share * (late - early)


class Number(Part):
    """A number that is not changed: a position, a joint, a setting."""

    def __init__(self, name: str) -> None:
        self.name, self.names = name, (name,)

    def encode(self, raw: Floats) -> Floats:
        return raw


class Angle(Part):
    """An angle, encoded as cosine and sine. unit: "deg", "rad", "turns", or "quarters" of a turn."""

    directions = range(2)

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit, self.turn = name, unit, TURNS[unit]
        self.names = (f"cos {name}", f"sin {name}")

    @property
    def text(self) -> str:
        return f"{self.name} (in {self.unit}, as cosine and sine)"

    def encode(self, raw: Floats) -> Floats:
        angle = 2 * np.pi * np.remainder(raw[0], self.turn) / self.turn
        return _rounded(np.array([np.cos(angle), np.sin(angle)]))

    def between(self, early: Floats, late: Floats, share: float) -> Floats:
        """See Part; along the shorter way."""
        half = self.turn / 2
        return early + share * (np.remainder(late - early + half, self.turn) - half)


class Quaternion(Part):
    """An orientation as a quaternion of either sign, encoded as 6 numbers: two columns of its rotation matrix.

    A quaternion and its negative are one orientation; any rule for the sign would be discontinuous. order: "xyzw" or
    "wxyz".
    """

    raw = 4
    directions = range(6)

    def __init__(self, name: str, order: str = "xyzw") -> None:
        self.name, self._order = name, list(ORDERS[order])
        self.names = _columns(name)

    @property
    def text(self) -> str:
        return f"{self.name} (a quaternion, as 6 numbers of its rotation)"

    def fault(self, raw: Floats) -> str | None:
        length = float(np.linalg.norm(raw))
        return None if abs(length - 1) <= OFF else f"the quaternion {self.name} has a length of {length:.3g}, not 1"

    def encode(self, raw: Floats) -> Floats:
        x, y, z, w = raw[self._order] / np.linalg.norm(raw)
        return _rounded(
            np.array(
                [
                    *(1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)),
                    *(2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)),
                ]
            )
        )

    def between(self, early: Floats, late: Floats, share: float) -> Floats:
        """See Part: spherical linear interpolation, the shorter way."""
        early, late = early / np.linalg.norm(early), late / np.linalg.norm(late)
        cosine = float(early @ late)
        if cosine < 0:
            late, cosine = -late, -cosine
        angle = np.arccos(min(cosine, 1.0))
        if angle < 1e-6:
            mixed = early + share * (late - early)
        else:
            mixed = (np.sin((1 - share) * angle) * early + np.sin(share * angle) * late) / np.sin(angle)
        return np.asarray(mixed / np.linalg.norm(mixed), np.float64)


class Rigid(Part):
    """The 3x4 matrix [R | t] of KITTI, row by row, encoded as t and two columns of R."""

    name = "R|t"
    raw = 12
    directions = range(3, 9)

    def __init__(self) -> None:
        self.names = ("x", "y", "z", *_columns("R"))

    @property
    def text(self) -> str:
        return "x, y, z, R (a rotation, as 6 numbers)"

    def fault(self, raw: Floats) -> str | None:
        rotation = raw.reshape(3, 4)[:, :3]
        off = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
        if off > OFF or np.linalg.det(rotation) < 0:
            return "its 3x3 part is no rotation"
        return None

    def encode(self, raw: Floats) -> Floats:
        matrix = raw.reshape(3, 4)
        return np.concatenate([matrix[:, 3], _rounded(matrix[:, :2].T.ravel())])


class Form:
    """The parts of a pose in their order.

    names: of the numbers of the vector. directions: the indices of cosines, sines and rotations. Raises SourceError for
    an empty vector, or one of more than 64 numbers.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        self.raw = sum(part.raw for part in parts)
        self.names = tuple(name for part in parts for name in part.names)
        if not 1 <= len(self.names) <= MOST_NUMBERS:
            raise SourceError(
                f"a pose of {len(self.names)} numbers: expected 1 to {MOST_NUMBERS}; choose some with --pose NAME,NAME"
            )
        starts = np.cumsum([0, *(len(part.names) for part in parts)]).tolist()
        self.directions = tuple(
            start + place for start, part in zip(starts, parts, strict=False) for place in part.directions
        )

    @property
    def text(self) -> str:
        """A description of the parts for messages."""
        return ", ".join(part.text for part in self.parts)

    def _cut(self, raw: Floats) -> list[Floats]:
        return np.split(raw, np.cumsum([part.raw for part in self.parts])[:-1])

    def fault(self, raw: Floats) -> str | None:
        """The fault of finite numbers [raw]; None if there is none."""
        faults = (part.fault(piece) for part, piece in zip(self.parts, self._cut(raw), strict=True))
        return next(filter(None, faults), None)

    def encode(self, raw: Floats) -> Floats:
        """The vector [P] of the values [raw]."""
        return np.concatenate([part.encode(piece) for part, piece in zip(self.parts, self._cut(raw), strict=True)])

    def between(self, early: Floats, late: Floats, share: float) -> Floats:
        """Interpolate between two vectors [raw]; share 0 is the first, 1 the second."""
        pieces = zip(self.parts, self._cut(early), self._cut(late), strict=True)
        return np.concatenate([part.between(a, b, share) for part, a, b in pieces])


def declared(text: str) -> list[tuple[str, str | None]]:
    """Parse keys with units: "x, yaw:deg" gives [("x", None), ("yaw", "deg")]."""
    keys: list[tuple[str, str | None]] = []
    for word in text.split(","):
        name, colon, unit = (piece.strip() for piece in word.partition(":"))
        unit = SPELLINGS.get(unit, unit)
        if not name or (colon and unit not in UNITS):
            raise SourceError(
                f"--pose {text!r}: {word.strip()!r} is no key; expected NAME or NAME:UNIT, with UNIT one of "
                f"{', '.join(UNITS)}"
            )
        keys.append((name, unit if colon else None))
    return keys


def separated(name: str) -> str:
    """A name with underscores between its words: "yawDeg" becomes yaw_Deg."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)


def split(name: str) -> list[str]:
    """The words of a name, in small letters."""
    return [word for word in re.split(r"[^a-z0-9°]+", separated(name).lower()) if word]


def unit_of(name: str, unit: str | None = None) -> str:
    """The unit of a value, from its name if none is given.

    `yaw_deg`, `heading [rad]` are angles. Raises SourceError for the name of an angle without a unit.
    """
    words = [SPELLINGS.get(word, word) for word in split(name)]
    if unit is not None:
        return unit
    if NO_ANGLES.intersection(words):
        return "number"
    found = next((word for word in words if word in TURNS), None)
    if found is None and ANGLES.intersection(words):
        raise SourceError(
            f"{name} seems to be an angle, and in which unit is not said: give --pose …,{name}:deg or {name}:rad "
            f"(or {name}:number for a number that does not go round)"
        )
    return found or "number"


def part(name: str, unit: str, numbers: int = 1) -> list[Part]:
    """The parts for this number of values with one name and unit."""
    if unit in ORDERS:
        if numbers != 4:
            raise SourceError(f"{name}:{unit} is a quaternion of 4 numbers, and {numbers} came")
        return [Quaternion(name, unit)]
    names = [name] if numbers == 1 else [f"{name}[{place}]" for place in range(numbers)]
    return [Number(one) if unit == "number" else Angle(one, unit) for one in names]


def _columns(name: str) -> tuple[str, ...]:
    return tuple(f"{name} r{row}{column}" for column in (1, 2) for row in (1, 2, 3))


def _rounded(numbers: Floats) -> Floats:
    return np.round(numbers, DIGITS) + 0.0  # + 0.0: no negative zeros
