"""Where frames come from: `open_source` turns a path, address, number or name into a Source."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tttstream.errors import SourceError
from tttstream.sources.base import Event, Source

__all__ = ["Event", "Source", "open_source"]


def open_source(
    spec: str | int | os.PathLike[str], *, on_error: str = "skip", size: int | None = None, seed: int = 0
) -> Source:
    """Open anything that yields frames.

    spec:
        a video file or URL (`tttstream.sources.video.Video`);
        an image or a folder of images (`folder.ImageFolder`);
        a camera, by number ("0" or 0) or as /dev/video0 (`camera.Camera`);
        "gym:ENV_ID", a gymnasium environment under random actions (`gym.Gym`);
        "walk", an endless camera walk that needs no file (`walk.Walk`);
        "places", an endless camera that returns to what it saw, with its pose; no file either (`places.Places`).
        A file that is called "walk" or "0" is reached as "./walk".
    on_error: "skip" passes over damaged frames and counts them, "raise" raises SourceError at the first.
    size: side in pixels of the frames of `walk` and `places`, 128 unless given. Every other source yields frames at
        their own size.
    seed: of `walk`, of `places` and of the actions in an environment.

    Raises SourceError (or DependencyError, which names the package to install) in one line.
    """
    if on_error not in ("skip", "raise"):
        raise SourceError(f"on_error is {on_error!r}, expected 'skip' or 'raise'")
    text = os.fspath(spec) if not isinstance(spec, int) else str(spec)
    if text == "walk":
        from tttstream.sources.walk import Walk

        return Walk(size=128 if size is None else size, seed=seed)
    if text == "places":
        from tttstream.sources.places import Places

        return Places(size=128 if size is None else size, seed=seed)
    if text.startswith("gym:"):
        from tttstream.sources.gym import Gym

        return Gym(text.removeprefix("gym:"), seed=seed)
    if re.fullmatch("-?[0-9]+", text) or text.startswith("/dev/video"):
        from tttstream.sources.camera import Camera

        return Camera(text if text.startswith("/") else int(text), on_error=on_error)
    if "://" not in text:
        return _open_path(text, on_error)
    from tttstream.sources.video import Video

    return Video(text, on_error=on_error)


def _open_path(text: str, on_error: str) -> Source:
    from tttstream.sources.folder import IMAGES, ImageFolder, expand

    path = Path(text)
    if not path.exists():
        hint = "give a file, a folder, a URL, a camera number, gym:ENV_ID, walk or places"
        raise SourceError(f"no such file or folder: {text!r}; {hint}")
    if path.is_dir():
        if expand([text]) != [text]:
            raise SourceError(f"{text} holds videos or folders, not images; take one of them: {expand([text])[0]}")
        return ImageFolder(path, on_error=on_error)
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{text} is empty (0 bytes)")
    if path.suffix.lower() in IMAGES:
        return ImageFolder(path, on_error=on_error)
    from tttstream.sources.video import Video

    return Video(text, on_error=on_error)
