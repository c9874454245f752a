"""Folders of examples: one folder for each thing, with the name of the thing, and images or videos of it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tttstream.errors import SourceError
from tttstream.frames import Frame
from tttstream.sources.listing import IMAGES, UNREAD, VIDEOS, listed, trees
from tttstream.sources.robots.paths import is_bag, is_dataset

EVERY = 10  # frames of a video: consecutive ones are too similar


def holds(what: str) -> bool:
    """Whether a path is a folder of examples: it contains folders, and no images or videos beside them."""
    return _folders(what) and not any(listed(Path(what), IMAGES | VIDEOS | UNREAD))


def hint(specs: Iterable[str]) -> str:
    """For an error message: why the first of these paths that contains folders is not a folder of examples. "" if no
    path contains folders."""
    for spec in filter(_folders, specs):
        beside = listed(Path(spec), IMAGES | VIDEOS | UNREAD)[0].name
        return f" ({spec} is no folder of examples, because {beside} is beside the folders)"
    return ""


def _folders(what: str) -> bool:
    """Whether a path is a folder that contains folders, and no recording of a robot."""
    if not os.path.isdir(what) or is_bag(Path(what)) or is_dataset(Path(what)):
        return False
    return any(path.is_dir() and path.name[0] != "." for path in Path(what).iterdir())


def read(folder: str, on_error: str) -> Iterator[tuple[str, Frame]]:
    """(label, frame) for every image and for every tenth frame of every video, ordered by the names of the things.

    Raises SourceError for a thing without an image or video that can be read.
    """
    from tttstream.sources import open_source

    for thing in sorted(path for path in Path(folder).iterdir() if path.is_dir() and path.name[0] != "."):
        came, (tree,) = 0, trees([thing])
        specs = list(tree.lost)  # opening one reports the reason
        for here in tree.folders:
            images, videos = listed(here, IMAGES), listed(here, VIDEOS)
            specs += [here] if images and not videos else [*images, *videos]
        for spec in specs:
            every = EVERY if spec.suffix.lower() in VIDEOS and not spec.is_dir() else 1
            with open_source(os.path.join(".", spec), on_error=on_error) as source:  # ./0 is no camera
                for number, frame in enumerate(source):
                    if number % every == 0:
                        came += 1
                        yield thing.name, frame
        if not came:
            raise SourceError(f"{thing}: no image or video that can be read")
