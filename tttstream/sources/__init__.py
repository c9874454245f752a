"""Sources of frames: `open_source` turns a path, address, number or name into a Source."""

import errno
import glob
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from tttstream.errors import SourceError
from tttstream.sources.base import Event, Source
from tttstream.sources.listing import GENERATED, IMAGES, STDIN, inside, is_path, nothing_in, sequence, spelled
from tttstream.sources.robots.paths import is_bag, is_dataset, split

__all__ = ["Event", "Source", "open_source"]


def open_source(
    spec: str | int | os.PathLike[str],
    *,
    on_error: str = "skip",
    size: int | None = None,
    seed: int = 0,
    poses: str | os.PathLike[str] | Callable[[float], ArrayLike | None] | None = None,
    pose: str | None = None,
    pose_start: float | None = None,
    pose_tolerance: float | None = None,
    policy: str | Callable[[Any, dict[str, Any], Any], Any] | None = None,
    timeout_s: float | None = None,
    topic: str | None = None,
    clock: str | None = None,
) -> Source:
    """Open anything that yields frames.

    spec:
        a video file or URL (`tttstream.sources.video.Video`), a pipe, or "-", the standard input; an image, a folder of
        images, or frame%05d.png for images with numbers (`folder.ImageFolder`); a camera, by number ("0" or 0) or
        device, such as /dev/video0 (`camera.Camera`); "gym:ENV_ID", a gymnasium environment under random actions or a
        policy (`gym.Gym`); "walk", a generated endless camera walk (`walk.Walk`); "places", a generated endless camera
        that returns to earlier places, with poses (`places.Places`); a ROS 2 bag, `.mcap` or the folder of a rosbag2
        (`robots.bag.Bag`); an episode of a LeRobot data set, FOLDER#3, or FOLDER if there is only one
        (`robots.lerobot.LeRobot`). Use "./walk" for a file with the name "walk" or "0"; "~" is the home folder.
    on_error: "skip" skips damaged frames and counts them, "raise" raises SourceError at the first.
    size: side in pixels of the frames of `walk` and `places`, 128 unless given. Every other source yields frames at
        their own size.
    seed: of `walk`, of `places` and of the actions in an environment.
    poses: a file with the pose of each frame (`tttstream.poses.Track`); for a live source a file that grows
        (`poses.Feed`), or for a camera a callable that takes the capture time of a frame and returns its pose.
    pose: the columns of that file, or the values of an environment, that are the pose, with units: "x,y,yaw:deg"; the
        topic of a bag, "/odom", "/odom:x,y,yaw" or "/tf@base_link"; the feature of a data set, "observation.state".
    pose_start, pose_tolerance: in seconds, see Track; the tolerance of a file that grows is the age of its last line,
        1 s unless given.
    policy: for an environment, a callable (observation, info, env) -> action, or "MODULE:CALLABLE"; None acts at
        random.
    timeout_s: the longest time without data from a network address, 10 s unless given.
    topic: the images of a bag, or the camera of a data set, if there are several.
    clock: for a bag, the source of the times of messages: "header" (the default) or "log".

    Raises SourceError (or DependencyError, which names the package to install) in one line.
    """
    if on_error not in ("skip", "raise"):
        raise SourceError(f"on_error is {on_error!r}, expected 'skip' or 'raise'")
    text = spelled(spec)
    if policy is not None and not text.startswith("gym:"):
        raise SourceError(f"a policy needs an environment (gym:ENV_ID), {text} is none")
    if text.startswith("gym:"):
        from tttstream.sources.gym import Gym

        if (poses, pose_start, pose_tolerance) != (None, None, None):
            raise SourceError(
                f"the poses of {text} are its own values: name them with --pose KEY,KEY, without a file of poses"
            )
        return Gym(text.removeprefix("gym:"), seed=seed, pose=pose, policy=policy, on_error=on_error)
    own = (pose, pose_tolerance) if poses is None else (None, None)
    source = _open_recording(text, topic, clock, *own, on_error) if is_path(text) else None
    if source is not None and poses is None:
        if pose_start is not None:
            raise SourceError(f"{text} has its own poses, matched by time: leave out the start of the poses")
        return source
    if source is None and (topic, clock) != (None, None):
        raise SourceError(f"--topic and --clock are for bags and LeRobot data sets, and {text} is none")
    if poses is None and (pose, pose_start, pose_tolerance) != (None, None, None):
        raise SourceError(f"{text}: which poses? Give the file that contains them, --poses FILE")
    if re.fullmatch("-?[0-9]+", text) or text.startswith("/dev/video"):
        return _open_camera(text, on_error, _feed(poses, pose, pose_tolerance, pose_start))
    source = source or _open(text, on_error, size, seed, timeout_s)
    if poses is None:
        return source
    try:
        if source.pose_form is not None:
            raise SourceError(f"{text} has its own poses: leave out the file of poses")
        return _posed(source, poses, pose, pose_start, pose_tolerance, on_error)
    except BaseException:
        source.close()
        raise


def _open_recording(
    text: str, topic: str | None, clock: str | None, pose: str | None, tolerance: float | None, on_error: str
) -> Source | None:
    """A recording of a robot, with its own poses if `pose` names them; None if the path is no such recording."""
    folder, number = split(text)
    if is_dataset(Path(folder)):
        # Imported here and below, because each needs other packages of the extra `robots`
        from tttstream.sources.robots.lerobot import LeRobot

        if clock is not None or tolerance is not None:
            raise SourceError(
                f"{text} is a data set, whose rows contain the poses: leave out the clock and the tolerance"
            )
        return LeRobot(folder, number, camera=topic, pose=pose, on_error=on_error)
    if not is_bag(Path(text)):
        return None
    from tttstream.sources.robots.bag import Bag, posed

    bag = Bag(text, topic=topic, clock=clock or "header", on_error=on_error)
    return bag if pose is None else posed(bag, pose, tolerance=tolerance, on_error=on_error)


def _posed(
    source: Source, poses: Any, pose: str | None, start: float | None, tolerance: float | None, on_error: str
) -> Source:
    from tttstream.poses import Track
    from tttstream.sources.posed import LivePosed, Posed

    if source.live:
        return LivePosed(source, _feed(poses, pose, tolerance, start), on_error=on_error)
    if callable(poses):
        raise SourceError(f"{source.name} is a recording: give its poses as a file; a callable is for a camera")
    return Posed(source, Track(poses, pose, start=start, tolerance=tolerance, on_error=on_error), on_error=on_error)


def _feed(poses: Any, pose: str | None, tolerance: float | None, start: float | None) -> Any:
    """The provider of a live source's poses, None if there is none."""
    from tttstream.poses import Feed

    if start is not None:
        raise SourceError(
            "a live source has no start in a file of poses: the last line of the file is the current pose"
        )
    if poses is None or callable(poses):
        return poses
    return Feed(poses, pose) if tolerance is None else Feed(poses, pose, tolerance=tolerance)


def _open(text: str, on_error: str, size: int | None, seed: int, timeout_s: float | None) -> Source:
    if text in GENERATED:
        kind = getattr(import_module(f"tttstream.sources.{text}"), GENERATED[text])
        source: Source = kind(size=128 if size is None else size, seed=seed)
        return source
    if is_path(text):
        return _open_path(text, on_error)
    if text == STDIN and (sys.stdin is None or sys.stdin.isatty()):
        raise SourceError("- is the standard input, and nothing is piped into it: `… | tttstream watch -`")
    from tttstream.sources.video import NETWORK_TIMEOUT_S, Video

    return Video(text, on_error=on_error, timeout_s=NETWORK_TIMEOUT_S if timeout_s is None else timeout_s)


def _open_camera(text: str, on_error: str, pose: Any) -> Source:
    from tttstream.sources.camera import Camera

    try:
        return Camera(text if text.startswith("/") else int(text), on_error=on_error, pose=pose)
    except SourceError as error:
        if os.path.exists(text) and not text.startswith("/"):
            raise SourceError(f"{error}; the file or folder of that name is ./{text}") from error
        raise


def _open_path(text: str, on_error: str) -> Source:
    from tttstream.sources.folder import ImageFolder

    path, text = Path(text), text.rstrip(os.sep) or text
    if not os.path.exists(path):
        return _open_sequence(path, on_error)
    if path.is_dir():
        found = inside([path])[0]
        if not found:
            raise nothing_in(path)
        if len(found) > 1 or found[0] != str(path):
            raise SourceError(f"{text} holds videos or folders, not images; take one of them: {found[0]}")
        return ImageFolder(path, on_error=on_error)
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{text} is empty (0 bytes)")
    if path.suffix.lower() in IMAGES:
        return ImageFolder(path, on_error=on_error)
    from tttstream.sources.video import Video

    return Video(text, on_error=on_error)


def _open_sequence(path: Path, on_error: str) -> Source:
    """Images with numbers in their names. Raises SourceError if the path is no such pattern, so does not exist."""
    if path.suffix.lower() in IMAGES and os.path.isdir(path.parent) and sequence(path):
        from tttstream.sources.folder import ImageFolder

        return ImageFolder(path, on_error=on_error)
    raise SourceError(f"{_absence(path)}: {str(path)!r}; {_advice(path)}")


def _absence(path: Path) -> str:
    """Why a path cannot be opened."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            return f"the link leads nowhere (to {os.readlink(path)})"
        reason = getattr(error, "errno", None)
        if reason not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    return "no such file or folder"


def _advice(path: Path) -> str:
    """Advice for a path that does not exist."""
    if "%" in path.name and re.search(r"%\d*d", path.name):
        return "frame%05d.png stands for images with numbers, and none fits; give videos one by one, or their folder"
    if glob.has_magic(str(path)) and (found := glob.glob(str(path))):
        return f"as a pattern it fits {len(found)}: leave out the quotes, or give a folder, or frame%05d.png for images"
    if re.match(r"[A-Za-z]:\\", str(path)) and os.name != "nt":
        return "this is a Windows path; give the path on this machine"
    return f"give a file, a folder, a URL, a camera number, gym:ENV_ID, {' or '.join(GENERATED)}"
