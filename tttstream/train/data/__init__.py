"""Video data for training: indices of what people have on disk, lanes of segments, and the LightningDataModule."""

from tttstream.train.data.batch import Batch
from tttstream.train.data.clips import Clip, Decoder, Reader, Shot, VideoClip
from tttstream.train.data.digits import DigitsClip
from tttstream.train.data.generated import WalkClip
from tttstream.train.data.indices import Index, MovingDigits, Videos, Walks
from tttstream.train.data.lanes import Schedule, Window
from tttstream.train.data.loader import LaneLoader
from tttstream.train.data.module import BadVideoWarning, VideoData
from tttstream.train.data.transforms import fitted
from tttstream.train.data.video import Decord, PyAV

__all__ = [
    "BadVideoWarning",
    "Batch",
    "Clip",
    "Decoder",
    "Decord",
    "DigitsClip",
    "Index",
    "LaneLoader",
    "MovingDigits",
    "PyAV",
    "Reader",
    "Schedule",
    "Shot",
    "VideoClip",
    "VideoData",
    "Videos",
    "WalkClip",
    "Walks",
    "Window",
    "fitted",
]
