"""Streams: a model, the memory's state, a clock and counters. Frames go in one at a time, and results come out."""

from tttstream.streams.map import Extent, Imagined, MapStream
from tttstream.streams.masks import MaskResult, MaskStream
from tttstream.streams.normaliser import Normaliser
from tttstream.streams.session import Session, choose_device, place
from tttstream.streams.surprise import Stream

__all__ = [
    "Extent",
    "Imagined",
    "MapStream",
    "MaskResult",
    "MaskStream",
    "Normaliser",
    "Session",
    "Stream",
    "choose_device",
    "place",
]
