"""The shipped configurations by name: `trainer/fast` is configs/trainer/fast.yaml, in a checkout and in the package."""

import os
import site
import sysconfig
from pathlib import Path

INSTALLED = Path("share", "tttstream", "configs")


def folder() -> Path:
    """The folder of the shipped configurations: configs/ of a checkout, or share/ of the installation."""
    beside = Path(__file__).resolve().parents[2]
    bases = (beside, Path(sysconfig.get_path("data")), Path(site.getuserbase()))
    places = [beside / "configs", *(base / INSTALLED for base in bases)]
    return next((place for place in places if (place / "trainer").is_dir()), places[0])


def names(group: str = "") -> list[str]:
    """The names of all shipped configurations, or of one group."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in (root / group).rglob("*.yaml"))


def find(name: str) -> Path | None:
    """The file of a shipped configuration; None if there is none with this name."""
    root = folder()
    path = root / f"{name.removesuffix('.yaml')}.yaml"
    return path if os.path.isfile(path) and root in path.resolve().parents else None
