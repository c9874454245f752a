"""Lists the files of a source that the user names: those of a folder, of a pattern, and of links to folders."""

import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tttstream.errors import SourceError
from tttstream.io.names import expanded
from tttstream.sources.robots.paths import is_bag, is_dataset

logger = logging.getLogger(__name__)

IMAGES = frozenset(
    {".bmp", ".dib", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm"}
    | {".sgi", ".tga", ".tif", ".tiff", ".webp"}
)
VIDEOS = frozenset(
    {".264", ".265", ".3g2", ".3gp", ".3gpp", ".amv", ".apng", ".asf", ".av1", ".avc", ".avi", ".avif", ".divx", ".dv"}
    | {".evo", ".f4v", ".flc", ".fli", ".flv", ".gif", ".gxf", ".h261", ".h263", ".h264", ".h265", ".hevc", ".insv"}
    | {".ivf", ".lrv", ".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mod"}
    | {".mov", ".mp2v", ".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".obu"}
    | {".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".roq", ".swf", ".tod", ".tp", ".trp", ".ts", ".vob", ".webm", ".wmv"}
    | {".wtv", ".xvid", ".y4m"}
)
UNREAD = frozenset({".arw", ".cr2", ".cr3", ".dng", ".exr", ".heic", ".heif", ".jxl", ".nef", ".orf", ".psd", ".raw"})
"""Suffixes of images that cannot be read; a folder of images reports them."""
GENERATED = {"walk": "Walk", "places": "Places"}
"""Generated sources: the name, which is also that of their module, and the class."""
STDIN = "-"


def spelled(spec: str | int | os.PathLike[str]) -> str:
    """A source as text: `file:` addresses become paths, and `~` the home folder, unless a file has this name.

    Raises SourceError for an empty source, and for a variable that the shell did not replace.
    """
    text = str(spec) if isinstance(spec, int) else os.fspath(spec)
    if text.lower().startswith("file:") and not os.path.lexists(text):
        text = url2pathname(urlsplit(text).path)
    return expanded(text, "the source", SourceError) if is_path(text) else text


def is_path(text: str) -> bool:
    """Whether a source is a file or folder, not a name in GENERATED, a camera, an environment, `-` or an address."""
    if text in (*GENERATED, STDIN) or text.startswith("gym:") or re.fullmatch("-?[0-9]+", text):
        return False
    return "://" not in text or os.path.lexists(text)


def expand(specs: Iterable[str | int | os.PathLike[str]], *, strict: bool = True) -> list[str]:
    """The single sources: a folder of videos becomes its videos, including subfolders, in natural order.

    A folder that contains videos becomes these videos; one that contains images stays (an ImageFolder); one with
    neither becomes the videos below it, or else the folders of images below it. Links to folders are followed, to each
    folder once. Folders that cannot be listed and broken links are last, so that opening them reports the reason. A
    LeRobot data set becomes its episodes, FOLDER#0 and so on. Other sources are unchanged.

    strict: raise SourceError for a folder with nothing to read; otherwise it stays, and opening it raises the error.
    """
    sources: list[str] = []
    for text in map(spelled, specs):
        if not is_path(text) or not os.path.isdir(text) or is_bag(Path(text)):
            sources.append(text)
            continue
        if is_dataset(Path(text)):
            from tttstream.sources.robots.dataset import DataSet  # here: it needs the extra `robots`

            sources += [f"{text}#{episode.number}" for episode in DataSet(Path(text)).episodes]
            continue
        found = inside([Path(text)])[0]
        if strict and not found:
            raise nothing_in(text)
        # ./0 and ./walk are files; without the dot they would be a camera and the walk
        sources += [path if is_path(path) else os.path.join(".", path) for path in found] or [text]
    return sources


def nothing_in(folder: str | os.PathLike[str]) -> SourceError:
    """The error of a folder with nothing to read."""
    return SourceError(
        f"{os.fspath(folder)} contains neither images nor videos; give a file, or a folder that contains some"
    )


def inside(tops: Sequence[Path]) -> list[list[str]]:
    """The files of each of these folders, see `expand`; a folder with several links to it counts once."""
    found: list[list[str]] = []
    left: list[Path] = []
    for top, tree in zip(tops, trees(tops), strict=True):
        if tree.folders and listed(top, IMAGES) and not listed(top, VIDEOS):
            found.append([str(top)])
            continue
        readable: list[Path] = [path for here in tree.folders for path in listed(here, VIDEOS)]
        images = {here: len(listed(here, IMAGES)) for here in tree.folders}
        if readable:
            # A single image is a cover, or a chart of `watch`
            left += [here for here, count in images.items() if count > 1]
        readable = readable or [here for here, count in images.items() if count]
        found.append([str(path) for path in (*readable, *tree.lost)])
    if left:
        more = f" and {len(left) - 1} more folders" if len(left) > 1 else ""
        logger.warning("%s%s: images are skipped if there are videos in the same folder or above", left[0], more)
    return found


class Tree(NamedTuple):
    """folders: the folder and those below it, in natural order. lost: folders that cannot be listed, and broken
    links."""

    folders: list[Path]
    lost: list[Path]


def trees(tops: Sequence[Path]) -> list[Tree]:
    """The folders below each of these, without hidden ones. Links to folders are followed, to each folder once, but not
    to folders below one of `tops`: so cycles end, and such a folder has its own name.
    """
    found = [Tree([], []) for _ in tops]
    seen: set[tuple[int, int]] = set()
    pending = list(enumerate(tops))
    linked = False
    while pending:
        links: list[tuple[int, Path]] = []
        for number, top in pending:
            tree = found[number]
            for here, names, files in os.walk(top, onerror=_noting(tree.lost)):
                identity = _identity(here)
                if linked and identity in seen:
                    names.clear()
                    continue
                seen.add(identity)
                tree.folders.append(Path(here))
                paths = {name: Path(here, name) for name in (*names, *files) if name[0] != "."}
                links += [(number, paths[name]) for name in names if name in paths and paths[name].is_symlink()]
                tree.lost.extend(p for p in paths.values() if not p.suffix and p.is_symlink() and not os.path.exists(p))
                names[:] = [name for name in names if name in paths and not paths[name].is_symlink()]
        pending, linked = sorted(links, key=lambda link: (link[0], natural(link[1]))), True
    return [Tree(sorted(tree.folders, key=natural), sorted(tree.lost, key=natural)) for tree in found]


def _noting(lost: list[Path]) -> Callable[[OSError], None]:
    return lambda error: lost.append(Path(error.filename))


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def natural(path: Path) -> list[list[tuple[str, int]]]:
    """A sorting key with 2 before 10, folder by folder."""
    return [_by_numbers(part) for part in path.parts]


def _by_numbers(name: str) -> list[tuple[str, int]]:
    return [(text.casefold(), int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def listed(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """The files in a folder with one of these suffixes, in natural order, without hidden ones. Broken links and files
    without permission are included: opening them reports the reason. Raises SourceError for a folder that cannot be
    listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise SourceError(f"{folder} cannot be listed: {error.strerror}") from error
    paths = [folder / name for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes]
    readable = (path for path in paths if os.path.isfile(path) or not os.path.exists(path))
    return sorted(readable, key=lambda path: _by_numbers(path.name))


def sequence(pattern: Path) -> list[Path]:
    """The files that match a pattern such as frame%d.png or frame%05d.png, by number; none if it is no such pattern."""
    parts = re.fullmatch(r"((?:[^%]|%%)*)%(\d*)d((?:[^%]|%%)*)", pattern.name)
    if parts is None:
        return []
    head, width, tail = parts[1].replace("%%", "%"), int(parts[2] or 0), parts[3].replace("%%", "%")
    numbered: list[tuple[int, Path]] = []
    for path in listed(pattern.parent, frozenset({Path(tail).suffix.lower() or pattern.suffix.lower()})):
        digits = path.name[len(head) : len(path.name) - len(tail)]
        if digits.isdecimal() and path.name == f"{head}{int(digits):0{width}d}{tail}":
            numbered.append((int(digits), path))
    return [path for _, path in sorted(numbered)]
