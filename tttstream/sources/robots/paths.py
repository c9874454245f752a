"""Recognises the paths of robots' recordings without reading the recordings."""

import os
import re
from pathlib import Path

BAG, SQLITE = frozenset({".mcap"}), frozenset({".db3"})


def is_bag(path: Path) -> bool:
    """Whether a path is a bag: a .mcap or .db3 file, or a folder that rosbag2 wrote."""
    if path.suffix.lower() in BAG | SQLITE:
        return os.path.isfile(path)
    if not os.path.isfile(path / "metadata.yaml"):
        return False
    return any(Path(name).suffix.lower() in BAG | SQLITE for name in os.listdir(path))


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a LeRobot data set."""
    return os.path.isfile(folder / "meta" / "info.json") and os.path.isdir(folder / "data")


def split(text: str) -> tuple[str, int | None]:
    """FOLDER#3 -> (FOLDER, 3) if this is an episode of a data set; otherwise (text, None)."""
    found = re.fullmatch(r"(.+)#(\d+)", text)
    if found is None or os.path.lexists(text) or not is_dataset(Path(found[1])):
        return text, None
    return found[1], int(found[2])
