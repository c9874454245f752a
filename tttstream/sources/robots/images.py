"""Decodes ROS image messages to RGB arrays: sensor_msgs/msg/Image and sensor_msgs/msg/CompressedImage."""

import re
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.sources.jpeg import is_whole

Pixels = NDArray[np.uint8]

IMAGES = frozenset({"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"})
# bytes a pixel, and the conversion to RGB
COLOURS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    # OpenCV names a mosaic after the second row's second and third pixel, ROS after the first two of the first row.
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
GREYS = {"mono16": "u2", "16UC1": "u2", "32FC1": "f4"}
"""Greys of more than 8 bits, and their numbers."""


def picture(message: Any) -> Pixels:
    """A message of IMAGES as RGB [H, W, 3]. Raises ValueError with the reason if it is invalid."""
    return raw(message) if hasattr(message, "encoding") else compressed(message)


def raw(message: Any) -> Pixels:
    """An Image: rows of `step` bytes, which begin with the pixels; `is_bigendian` is the byte order of 16 bits and
    floats. 16 bits are reduced to the upper 8; floats must be in 0..1 (depth in metres is refused). Raises ValueError
    for a message that is not valid."""
    encoding, height, width = message.encoding, int(message.height), int(message.width)
    if encoding not in COLOURS and encoding not in GREYS:
        raise ValueError(f"its encoding is {encoding!r}, expected one of {', '.join([*COLOURS, *GREYS])}")
    if height < 1 or width < 1:
        raise ValueError(f"it is {width}×{height} pixels")
    size = np.dtype(GREYS[encoding]).itemsize if encoding in GREYS else COLOURS[encoding][0]
    data, step = np.frombuffer(message.data, np.uint8), int(message.step)
    if step < width * size or data.size < step * (height - 1) + width * size:
        raise ValueError(
            f"{width}×{height} pixels of {encoding} need rows of {width * size} bytes, and it has {data.size} bytes in "
            f"rows of {step}"
        )
    padded = np.zeros(step * height, np.uint8)
    padded[: data.size] = data[: padded.size]
    rows = np.ascontiguousarray(padded.reshape(height, step)[:, : width * size])
    if encoding in GREYS:
        order = ">" if message.is_bigendian else "<"
        return eight_bits(rows.view(f"{order}{GREYS[encoding]}").reshape(height, width))
    image = rows.reshape(height, width, size) if size > 1 else rows
    code = COLOURS[encoding][1]
    if code is None:
        return image
    if size == 2 and width % 2:
        raise ValueError(f"{encoding} has pixels in pairs, and its rows have {width}")
    return np.asarray(cv2.cvtColor(image, code), np.uint8)


def compressed(message: Any) -> Pixels:
    """A CompressedImage: JPEG or PNG. Its format may be "rgb8; jpeg compressed bgr8": the last word is the order of the
    colours in the encoder's input, which the encoder reads as bgr8."""
    kind, data = str(message.format), bytes(message.data)
    if "compressedDepth" in kind:
        raise ValueError(f"its format is {kind!r}: compressed depth; give the topic of the uncompressed images")
    if data[:2] == b"\xff\xd8":
        if not is_whole(data):
            raise ValueError("its JPEG is cut off")
    elif data[:4] != b"\x89PNG":
        raise ValueError(f"its format is {kind!r} and it is neither JPEG nor PNG")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"its {kind or 'image'} cannot be decoded")
    if image.ndim == 2:
        grey = image if image.dtype == np.uint8 else None
        return eight_bits(image) if grey is None else np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    if image.dtype != np.uint8:
        image = (image.astype(np.uint16) >> 8).astype(np.uint8)
    given = re.search(r"compressed (rgba?|bgra?)(8|16)", kind)
    swapped = given is not None and given[1].startswith("rgb")
    codes: dict[tuple[int, bool], Callable[[Any], Any]] = {
        (3, False): lambda x: x[..., ::-1],
        (3, True): lambda x: x,
        (4, False): lambda x: x[..., 2::-1],
        (4, True): lambda x: x[..., :3],
    }
    return np.ascontiguousarray(codes[image.shape[2], swapped](image))


def eight_bits(values: NDArray[Any]) -> Pixels:
    """Greys of 16 bits or floats [H, W] as RGB, by the rule of image files (`sources.pages.Pages`). Raises
    ValueError for numbers that are not finite or do not fit."""
    from tttstream.sources.pages import scaled

    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise ValueError("it has numbers that are not finite")
        grey = scaled(values, 0, 1, 255)
    else:
        grey = scaled(values, 256, 65535, 1 / 256)
    return np.repeat(grey[..., None], 3, 2)
