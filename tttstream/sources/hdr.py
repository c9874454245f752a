"""Tone mapping: converts pictures of high dynamic range (PQ, HLG) for a screen of standard dynamic range.

Light is measured in nits (cd/m²). Light above `PEAK` is clipped to `PEAK`; the white of the screen is `WHITE`, the
level of reference white in BT.2408. Between them the roll-off of BT.2390 (section 5.4) is applied to each of R, G and
B; then colours are converted from the primaries of the file to those of BT.709, for a screen of gamma 2.4 (BT.1886).
The result for a pixel depends only on that pixel, not on other frames or on light levels in the header.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from tttstream.errors import SourceError

Floats = NDArray[np.float32]

PQ, HLG = 16, 18  # transfer characteristics by their numbers in ITU-T H.273
PEAK, WHITE = 1000.0, 203.0
LEVELS = 65536
HLG_LUMA = (0.2627, 0.6780, 0.0593)

# Conversions to BT.709 from the primaries of a file, by their numbers in H.273 (2: unspecified, BT.2020 for HDR).
BT2020 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
P3 = ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979))
TO_BT709 = {1: np.eye(3), 2: np.array(BT2020), 9: np.array(BT2020), 12: np.array(P3)}


def tone_mapped(codes: NDArray[np.uint16], transfer: int, primaries: int) -> NDArray[np.uint8]:
    """RGB in 8 bits, [H, W, 3], from RGB codes in 16 bits. transfer, primaries: the numbers in the file.

    Raises SourceError for primaries other than those of BT.2020, BT.709 and Display P3.
    """
    if primaries not in TO_BT709:
        raise SourceError(f"HDR with the primaries of number {primaries} cannot be tone mapped; convert it to BT.2020")
    light = _screen()[_levels(_display_light(codes, transfer))]
    light = np.asarray(cv2.transform(light, TO_BT709[primaries].astype(np.float32)), np.float32)
    return np.asarray(_written()[_levels(light)])


def _display_light(codes: NDArray[np.uint16], transfer: int) -> Floats:
    """The light of the codes in the file, 1 for `PEAK`."""
    if transfer == PQ:
        return np.asarray(_pq_table()[codes])
    scene = _hlg_table()[codes]
    luminance = cv2.transform(scene, np.array([HLG_LUMA], np.float32))
    return np.asarray(scene * np.power(luminance, np.float32(0.2)).reshape(*codes.shape[:2], 1))  # BT.2100, 1000 nits


def _levels(light: Floats) -> NDArray[np.uint16]:
    """Light in 0..1 as an index into the tables, with finer steps for dark values."""
    return np.asarray(np.sqrt(light.clip(0, 1)) * (LEVELS - 1) + 0.5).astype(np.uint16)


@lru_cache(maxsize=1)
def _pq_table() -> Floats:
    return (pq_light(np.linspace(0, 1, LEVELS)) / PEAK).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _hlg_table() -> Floats:
    code = np.linspace(0, 1, LEVELS)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _screen() -> Floats:
    """For each index of light in the file, the light on the screen, 1 for `WHITE`: the roll-off of BT.2390."""
    light = np.linspace(0, 1, LEVELS) ** 2 * PEAK
    top = pq_code(PEAK)
    most = pq_code(WHITE) / top
    knee = 1.5 * most - 0.5
    code = pq_code(light) / top
    t = ((code - knee) / (1 - knee)).clip(0, 1)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return (pq_light(np.where(code < knee, code, bent) * top) / WHITE).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _written() -> NDArray[np.uint8]:
    """For each index of light on the screen, the 8-bit code."""
    return np.asarray(np.linspace(0, 1, LEVELS) ** (2 / 2.4) * 255 + 0.5).astype(np.uint8)


def pq_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """The light in nits of PQ codes in 0..1 (SMPTE ST 2084)."""
    root = np.power(code, 1 / 78.84375)
    return np.asarray(10000 * np.power((root - 0.8359375).clip(0) / (18.8515625 - 18.6875 * root), 1 / 0.1593017578125))


def pq_code(nits: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The PQ code in 0..1 of light in nits."""
    root = np.power(np.asarray(nits) / 10000, 0.1593017578125)
    return np.asarray(np.power((0.8359375 + 18.8515625 * root) / (1 + 18.6875 * root), 78.84375))
