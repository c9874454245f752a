"""The photographs of the source `walk`: textures of places, and objects cut out with soft masks.

They are read from the folder `skimage/data` of the installed scikit-image (without a download). Only those are used
whose documentation in `skimage.data` names a licence that allows any use:

    CC0             camera (L. Varshney), chelsea (S. van der Walt), coffee (R. Michetti), retina (M. Häggström),
                    brick and gravel (CC0Textures), grass (linolafett)
    public domain   astronaut and hubble_deep_field (NASA), rocket (SpaceX)

Not used: pictures with only "no known copyright restrictions" (coins, ihc) or without a licence (moon, page, the
motorcycle of Middlebury, the faces of LFW), one with motion blur (clock_motion), and drawings.
"""

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import DependencyError

# Grey photographs are coloured, so that they are not the only grey places.
TINTS = {
    "brick.png": (1.15, 0.82, 0.68),
    "camera.png": (1.0, 1.0, 1.04),
    "grass.png": (0.80, 1.08, 0.52),
    "gravel.png": (1.08, 1.0, 0.86),
}
COLOURED = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg")
NAMES = (*COLOURED, *TINTS)
HELD_OUT = ("astronaut.png", "chelsea.png", "coffee.png")
"""Photographs that were not used to train shipped models: the worlds of the source `places`."""
OBJECTS_FROM = ("astronaut.png", "chelsea.png", "coffee.png", "retina.jpg", "rocket.jpg", "camera.png")

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]


@lru_cache(maxsize=len(NAMES))
def photograph(name: str) -> Pixels:
    """One photograph as RGB [H, W, 3], at most 1000 pixels wide or high. Raises DependencyError without
    scikit-image."""
    try:
        import skimage
    except ImportError as error:
        raise DependencyError("the source walk shows photographs of scikit-image: pip install scikit-image") from error
    path = Path(skimage.__file__).parent / "data" / name
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise DependencyError(f"this scikit-image lacks the photograph {name}: pip install -U scikit-image")
    share = 1000 / max(image.shape)
    if share < 1:
        image = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    tint = np.array(TINTS.get(name, (1, 1, 1)), np.float32)
    return (image[..., ::-1] * tint).clip(0, 255).astype(np.uint8)


def reduced(name: str, side: int) -> Pixels:
    """A photograph, scaled so that its shorter side has `side` pixels."""
    whole = photograph(name)
    height, width = (max(side, round(length * side / min(whole.shape[:2]))) for length in whole.shape[:2])
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def place(name: str, height: int, rng: np.random.Generator) -> Pixels:
    """A part of a photograph, [height, width, 3]; `rng` draws its position, size, reflection and colour cast."""
    whole = photograph(name)
    share = rng.uniform(0.72, 1.0)
    rows, columns = int(whole.shape[0] * share), int(whole.shape[1] * share)
    top, left = rng.integers(whole.shape[0] - rows + 1), rng.integers(whole.shape[1] - columns + 1)
    piece = whole[top : top + rows, left : left + columns][:, :: rng.choice((1, -1))]
    how = cv2.INTER_AREA if rows > height else cv2.INTER_CUBIC
    image = cv2.resize(piece, (height * columns // rows, height), interpolation=how)
    cast = rng.uniform(0.88, 1.08) * rng.uniform(0.95, 1.05, 3)
    return (image * cast.astype(np.float32)).clip(0, 255).astype(np.uint8)


def cutout(side: int, rng: np.random.Generator) -> Floats:
    """An object with its shadow, [side, side, 4]: RGB in 0..255 times opacity, and opacity in 0..1.

    The object is the most vivid of several random parts, with rotated colours, under a soft, roughly round mask.
    """
    piece = max((_piece(rng) for _ in range(8)), key=lambda piece: float(piece[::4, ::4].std()))
    image = cv2.resize(piece, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    image = (image - image.mean()) * (55 / max(float(image.std()), 1.0)) + rng.uniform(95, 160)
    image = _turn_hue(image.clip(0, 255).astype(np.uint8), int(rng.integers(180))).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
    waves = [(k, rng.uniform(-0.05, 0.05), rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5)]
    stretch = rng.uniform(0.8, 1.25)

    def mask(x: Floats, y: Floats, softness: float) -> tuple[Floats, Floats]:
        angle, radius = np.arctan2(y / stretch, x * stretch), np.hypot(x * stretch, y / stretch)
        edge = 0.66 + sum(height * np.cos(k * angle + phase) for k, height, phase in waves)
        soft = ((edge - radius) / softness + 0.5).clip(0, 1)
        return soft * soft * (3 - 2 * soft), radius / edge

    solid, radius = mask(x, y, 0.14)
    shadow = 0.45 * mask(x - 0.05, y - 0.16, 0.5)[0]
    image *= (1.05 - 0.35 * radius**2 - 0.15 * y).clip(0.2, 1.2)[..., None]  # round, and lit from above
    opacity = 1 - (1 - solid) * (1 - shadow)
    return np.dstack([image.clip(0, 255) * solid[..., None], opacity]).astype(np.float32)


def _piece(rng: np.random.Generator) -> Pixels:
    image = photograph(OBJECTS_FROM[rng.integers(len(OBJECTS_FROM))])
    height, width, _ = image.shape
    piece = int(min(height, width) * rng.uniform(0.25, 0.6))
    top, left = rng.integers(height - piece + 1), rng.integers(width - piece + 1)
    return image[top : top + piece, left : left + piece]


def _turn_hue(image: Pixels, by: int) -> Pixels:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.int32)
    hsv[..., 0] = (hsv[..., 0] + by) % 180
    hsv[..., 1] = (30 + hsv[..., 1]).clip(0, 150)  # neither grey nor gaudy
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB), np.uint8)
