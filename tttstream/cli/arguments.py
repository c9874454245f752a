"""Arguments that the commands share: paths, a source, and the options of a run over it."""

import argparse
import os
from pathlib import Path

from tttstream.cli.numbers import whole
from tttstream.errors import ConfigError, OutputError, SourceError
from tttstream.io.names import expanded

LARGEST = 4096  # largest side in pixels: a larger frame does not fit into the memory of most machines


def path(text: str) -> Path:
    """A file or folder, with `~` expanded. Refuses an empty name, $NAME, and the `-` of pipes."""
    if text == "-":
        raise argparse.ArgumentTypeError("- is a pipe: give the name of a file or folder")
    try:
        return Path(expanded(text, "it", ConfigError))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model(text: str) -> str:
    """A model by name or folder, with `~` expanded."""
    return str(path(text))


def add_run(parser: argparse.ArgumentParser, size: str) -> None:
    """Add the options of a command that reads the frames of sources and writes folders. size: the help of --size."""
    add = parser.add_argument
    add("--out", metavar="DIR", type=path, help="folder of the results")
    add("--max-frames", metavar="N", type=whole, help="end each source after N frames")
    known = "default: the size of its training, or that of --load-state"
    add("--size", metavar="PX", type=whole, help=f"{size}; {known}")
    add("--on-error", choices=("skip", "raise"), default="skip", help="skip damaged frames, or end with an error")
    rows = "the poses of the frames: csv, TUM or KITTI rows; for a camera, a growing file"
    add("--poses", metavar="FILE", help=rows)
    add_recording(parser, pose="the columns of that file, ")
    start = "clock time of that file at the first frame (default: 0)"
    add("--pose-start", metavar="N", type=float, help=start)
    add("--pose-tolerance", metavar="S", type=float, help="seconds between a frame and a row, or age of a row")
    add("--policy", metavar="MODULE:NAME", help="plays gym:ENV: a callable (observation, info, env) -> action")
    add("--no-learn", action="store_true", help="do not let the memory learn")
    add("--save-state", metavar="FILE", type=path, help="save memory and position in the source at the end")
    known = "continue with a saved memory; in the same source, from its position"
    add("--load-state", metavar="FILE", type=path, help=known)
    add("--no-overlay", action="store_true", help="do not write overlay.mp4")
    add("--show", action="store_true", help="show the overlay in a window while it runs")
    add("--seed", metavar="N", type=whole, default=0, help="of walk, actions and untrained weights (default: 0)")


def add_recording(parser: argparse.ArgumentParser, pose: str = "") -> None:
    """Add the options of robots' recordings. pose: further help for --pose."""
    add = parser.add_argument
    add("--topic", metavar="NAME", help="the images of a ROS 2 bag, or the camera of a LeRobot data set")
    add("--clock", choices=("header", "log"), help="source of the times of a bag's messages (default: header)")
    known = f"{pose}values of an environment (x,y,yaw:deg), a bag's topic, a data set's feature"
    add("--pose", metavar="KEYS", help=known)


def check_run(args: argparse.Namespace) -> None:
    """Check numbers and paths before anything is loaded. Raises ConfigError and its kin."""
    check_numbers(args)
    if args.load_state is not None and not os.path.isfile(args.load_state):
        raise SourceError(f"--load-state: there is no file {args.load_state}")
    if args.save_state is not None and os.path.isdir(args.save_state):
        raise OutputError(f"--save-state {args.save_state} is a folder: give a file")
    if args.out is not None and os.path.exists(args.out) and not os.path.isdir(args.out):
        raise OutputError(f"--out {args.out} is a file: give a folder")


def check_numbers(args: argparse.Namespace) -> None:
    """Check --size, --max-frames and --seed. Raises ConfigError."""
    if args.size is not None and not 1 <= args.size <= LARGEST:
        raise ConfigError(f"--size is {args.size}: expected a side of 1 to {LARGEST} pixels, such as 128")
    if args.max_frames is not None and args.max_frames < 1:
        raise ConfigError(f"--max-frames is {args.max_frames}: expected 1 or more")
    if not 0 <= args.seed < 2**63:
        raise ConfigError(f"--seed is {args.seed}: expected 0 or more, below 2 to the power of 63")


def out_folder(args: argparse.Namespace, default: str) -> Path | None:
    """The folder for results; None if a window replaces it."""
    out: Path | None = args.out
    return out if out is not None or args.show else Path(default)
