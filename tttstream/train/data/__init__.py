"""Video data for training: indices of data sets on disk, lanes of segments, and the LightningDataModule."""

from tttstream.train.data.batch import Batch
from tttstream.train.data.clips import Clip, Decoder, Reader, Shot, VideoClip
from tttstream.train.data.datasets import HMDB51, UCF101, ClassFolders, Davis, Kinetics, SomethingSomething
from tttstream.train.data.digits import DigitsClip
from tttstream.train.data.generated import PlacesClip, WalkClip
from tttstream.train.data.images import ImagesClip
from tttstream.train.data.indices import Index, MovingDigits, PlacesWorlds, Videos, Walks
from tttstream.train.data.lanes import Schedule, Window
from tttstream.train.data.loader import LaneLoader
from tttstream.train.data.mixture import Mixture
from tttstream.train.data.module import BadVideoWarning, VideoData
from tttstream.train.data.pathlist import PathList
from tttstream.train.data.robots import LeRobotEpisodes, RosBags
from tttstream.train.data.shards import Shards
from tttstream.train.data.transforms import fitted
from tttstream.train.data.video import Decord, PyAV

__all__ = [
    "HMDB51",
    "UCF101",
    "BadVideoWarning",
    "Batch",
    "ClassFolders",
    "Clip",
    "Davis",
    "Decoder",
    "Decord",
    "DigitsClip",
    "ImagesClip",
    "Index",
    "Kinetics",
    "LaneLoader",
    "LeRobotEpisodes",
    "Mixture",
    "MovingDigits",
    "PathList",
    "PlacesClip",
    "PlacesWorlds",
    "PyAV",
    "Reader",
    "RosBags",
    "Schedule",
    "Shards",
    "Shot",
    "SomethingSomething",
    "VideoClip",
    "VideoData",
    "Videos",
    "WalkClip",
    "Walks",
    "Window",
    "fitted",
]
