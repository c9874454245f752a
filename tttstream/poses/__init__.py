"""Poses of frames: the meaning of their numbers, their files, and a fixed scale."""

from tttstream.poses.feed import Feed
from tttstream.poses.form import Angle, Form, Number, Part, Quaternion, Rigid
from tttstream.poses.scale import PoseScale
from tttstream.poses.track import PoseMissing, Track

__all__ = ["Angle", "Feed", "Form", "Number", "Part", "PoseMissing", "PoseScale", "Quaternion", "Rigid", "Track"]
