"""The shipped configurations by name: `trainer/fast` is configs/trainer/fast.yaml, in a checkout and once installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

INSTALLED = ("share", "tttstream", "configs")


def folder() -> Path:
    """Where the shipped configurations lie: configs/ of a checkout, or what the wheel put beside the environment."""
    checkout = Path(__file__).resolve().parent.parent / "configs"
    if checkout.is_dir():
        return checkout
    try:
        listed = files("tttstream") or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.parts[-len(INSTALLED) - 2 : -2] == INSTALLED:
            return Path(str(file.locate())).resolve().parent.parent
    return checkout


def names(group: str = "") -> list[str]:
    """The names of all shipped configurations, or of one group."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in (root / group).rglob("*.yaml"))


def find(name: str) -> Path | None:
    """The file of a shipped configuration; None where there is none of that name."""
    path = folder() / f"{name.removesuffix('.yaml')}.yaml"
    return path if path.is_file() and folder() in path.parents else None
