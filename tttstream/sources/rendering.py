"""Parts of the embedded cameras: smooth movements, changing light, sensor noise, and drawing of objects."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.sources.photographs import Floats, Pixels


class Waves(NamedTuple):
    """A smooth endless movement: a sum of sines, each row (amplitude, radians per frame, phase)."""

    rows: NDArray[np.float64]

    def at(self, t: float) -> float:
        """The value at frame t."""
        amplitude, speed, phase = self.rows
        return float(np.sum(amplitude * np.sin(speed * t + phase)))

    def along(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """The values at frames t [N] -> [N]."""
        amplitude, speed, phase = self.rows[:, :, None]
        return np.asarray(np.sum(amplitude * np.sin(speed * t + phase), axis=0))


def draw_waves(rng: np.random.Generator, amplitudes: tuple[float, ...], periods: tuple[float, ...]) -> Waves:
    """Sines of about these amplitudes and periods in frames, at random phases."""
    count = len(amplitudes)
    speeds = 2 * np.pi / (np.array(periods) * rng.uniform(0.75, 1.3, count))
    return Waves(
        np.stack([np.array(amplitudes) * rng.uniform(0.7, 1.0, count), speeds, rng.uniform(0, 2 * np.pi, count)])
    )


class Lamp:
    """Changing light on pictures [side, side, 3]: brightness, colour temperature, a bright side, dark corners."""

    def __init__(self, side: int) -> None:
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
        self._x, self._y, self._vignette = x, y, (1.06 - 0.13 * (x * x + y * y)).astype(np.float32)

    def shine(self, picture: Floats, *, gain: float, warmth: float, side_x: float, side_y: float) -> None:
        """Change the light of a picture in place; every number is a share of the brightness, 0 for none."""
        light = self._vignette + side_x * self._x + side_y * self._y
        light *= 1 + gain
        picture *= light[..., None]
        picture *= np.array([1 + warmth, 1, 1 - warmth], np.float32)


def exposed(picture: Floats, rng: np.random.Generator) -> Pixels:
    """A picture in 0..255 as uint8 with sensor noise, which is added in place."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    noise *= np.sqrt(1.5 + 0.05 * picture)  # reading noise and photon noise, variance in grey levels squared
    picture += noise
    picture += 0.5
    np.clip(picture, 0, 255, out=picture)
    return picture.astype(np.uint8)


def warped(texture: Pixels | Floats, matrix: NDArray[np.float64], side: int, border: int) -> Floats:
    """The view of a camera on a texture, [side, side, channels]: `matrix` [3, 3] maps its pixels to those of the
    texture."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(texture, matrix, (side, side), flags=flags, borderMode=border).astype(np.float32)
