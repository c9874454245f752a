"""Encodes pictures as JPEG, for pages and for storing many of them."""

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import FrameError
from tttstream.views.overlay import fit

QUALITY = 80


def narrowed(picture: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """A picture [H, W, 3] reduced to a width in pixels, with its aspect ratio; a narrower one is unchanged."""
    if picture.shape[1] <= width:
        return picture
    return fit(picture, max(1, round(picture.shape[0] * width / picture.shape[1])), width)


def encode(picture: NDArray[np.uint8], quality: int = QUALITY) -> bytes:
    """A picture [H, W, 3] RGB as JPEG."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise FrameError(f"a picture of {picture.shape[1]}x{picture.shape[0]} pixels cannot be made a JPEG")
    return data.tobytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """The picture [H, W, 3] RGB of a JPEG."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise FrameError(f"{len(data)} bytes are no JPEG")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
