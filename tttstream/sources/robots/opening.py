"""Opens robots' recordings by their paths; reading them needs the extra `robots`."""

from pathlib import Path

from tttstream.errors import SourceError
from tttstream.sources.base import Source
from tttstream.sources.robots.paths import is_bag, is_dataset, split


def opened(
    text: str, topic: str | None, clock: str | None, pose: str | None, tolerance: float | None, on_error: str
) -> Source | None:
    """Open the recording of a robot at a path; None if the path is no recording. See `open_source` for the options."""
    folder, number = split(text)
    if is_dataset(Path(folder)):
        # Imported here and below, because each needs other packages
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
