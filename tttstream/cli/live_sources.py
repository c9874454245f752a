"""The sources of `tttstream live`: the default, and the options of each source."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tttstream.errors import ConfigError, SourceError

INSTEAD = "places"  # the default if there is no camera


def default_source() -> str:
    """Camera 0, or the embedded source if there is none, with a line on standard error."""
    from tttstream.sources import open_source

    try:
        open_source(0).close()
    except (SourceError, ImportError) as error:
        reason = str(error).split(";")[0]
        print(f"tttstream: {reason}: showing the embedded source {INSTEAD} instead", file=sys.stderr)
        return INSTEAD
    return "0"


def options_of(args: argparse.Namespace, specs: list[str]) -> dict[str, dict[str, Any]]:
    """For each source its options among --topic, --clock and --pose. Raises ConfigError if no source accepts one of
    them."""
    from tttstream.sources.listing import is_path, spelled
    from tttstream.sources.robots.paths import is_bag, is_dataset, split

    def bag(text: str) -> bool:
        return is_path(text) and is_bag(Path(text))

    def recording(text: str) -> bool:
        return is_path(text) and (is_bag(Path(text)) or is_dataset(Path(split(text)[0])))

    def posed(text: str) -> bool:
        return text.startswith("gym:") or recording(text)

    takers: dict[str, tuple[Callable[[str], bool], str]] = {
        "topic": (recording, "ROS 2 bags and LeRobot data sets"),
        "clock": (bag, "ROS 2 bags"),
        "pose": (posed, "ROS 2 bags, LeRobot data sets and environments"),
    }
    shares: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    for name, (takes, whose) in takers.items():
        value = getattr(args, name)
        own = [] if value is None else [spec for spec in specs if takes(spelled(spec))]
        if value is not None and not own:
            raise ConfigError(f"--{name} is for {whose}, and no source here is one: leave it out")
        for spec in own:
            shares[spec][name] = value
    return shares
