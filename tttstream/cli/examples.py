"""Folders of examples: one folder for each thing, with the name of the thing, and images or videos of it."""

import os
from collections.abc import Iterator
from pathlib import Path

from tttstream.errors import SourceError
from tttstream.frames import Frame

EVERY = 10  # frames of a video: consecutive ones are too similar


def holds(what: str) -> bool:
    """Whether a path is a folder of examples: it contains folders, and no files except hidden ones."""
    if not os.path.isdir(what):
        return False
    inside = [path for path in Path(what).iterdir() if not path.name.startswith(".")]
    return bool(inside) and all(path.is_dir() for path in inside)


def read(folder: str, on_error: str) -> Iterator[tuple[str, Frame]]:
    """(label, frame) for every image and for every tenth frame of every video, ordered by the names of the things.

    Raises SourceError for a thing without an image or video that can be read.
    """
    from tttstream.sources import open_source
    from tttstream.sources.listing import expand

    for thing in sorted(path for path in Path(folder).iterdir() if not path.name.startswith(".")):
        came = 0
        for spec in expand([thing]):
            with open_source(spec, on_error=on_error) as source:
                every = 1 if os.path.isdir(spec) else EVERY
                for number, frame in enumerate(source):
                    if number % every == 0:
                        came += 1
                        yield thing.name, frame
        if not came:
            raise SourceError(f"{thing}: no image or video that can be read")
