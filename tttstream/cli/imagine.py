"""`tttstream imagine`: draws the world of a saved map, or its expected pictures at the poses of a file."""

import argparse
import os
from pathlib import Path

from tttstream.cli import arguments
from tttstream.errors import ConfigError, OutputError, SourceError
from tttstream.io.names import shown

EPILOG = """\
`tttstream watch SOURCE --model map --save-state STATE` writes STATE. Without --poses, DIR/world.png shows the part of
the world that the stream visited; unknown places are dark. With --poses FILE (csv with a header, TUM or KITTI, see
docs/poses.md), one picture is drawn for each row: DIR/00000.png and so on. The poses have the units of the stream's
poses; an angle among them is the roll. DIR/familiar.csv lists how familiar each pose is, from 0 to 1.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream imagine`."""
    parser.add_argument("state", metavar="STATE", type=arguments.path, help="a saved stream of a map")
    wrote = "the model of the saved stream (default: map)"
    parser.add_argument("--model", metavar="DIR|NAME", type=arguments.model, default="map", help=wrote)
    parser.add_argument(
        "--poses", metavar="FILE", type=arguments.path, help="draw the expected pictures at these poses"
    )
    keys = "the columns of that file (x,y,yaw:deg)"
    parser.add_argument("--pose", metavar="KEYS", help=keys)
    parser.add_argument("--out", metavar="DIR", type=arguments.path, default=Path("imagined"), help="default: imagined")


def run(args: argparse.Namespace) -> int:
    """Draw the pictures. Returns the exit code."""
    import numpy as np
    from tqdm import tqdm

    from tttstream.io.outputs import OutputFile, OutputFolder, TextFile
    from tttstream.models import load_as
    from tttstream.models.map import MapModel
    from tttstream.models.map.points import Plane
    from tttstream.poses import Track
    from tttstream.streams.map import MapStream
    from tttstream.views.still import Still
    from tttstream.views.world import dimmed

    if not os.path.isfile(args.state):
        raise SourceError(f"there is no saved stream {args.state}: `watch --model map --save-state` writes one")
    if os.path.exists(args.out) and not os.path.isdir(args.out):
        raise OutputError(f"--out {args.out} is a file: give a folder")
    if args.pose is not None and args.poses is None:
        raise ConfigError("--pose: give the file that contains these columns, --poses FILE")
    stream = MapStream(load_as(MapModel, args.model), device="cpu")
    stream.load(args.state)
    track = None if args.poses is None else Track(args.poses, args.pose, start=0.0)  # numbers of frames are not used
    plane = Plane(None if track is None else track.form)
    folder, files, known = OutputFolder(args.out), list[OutputFile](), list[float]()
    try:
        if track is None:
            files.append(Still(folder.path / "world.png", dimmed(*stream.world()), claim=False))
        for number, pose in enumerate(tqdm([] if track is None else track.poses(), "poses", disable=None)):
            picture, familiar = stream.imagine(plane(pose))
            known.append(float(familiar.mean()))
            files.append(Still(folder.path / f"{number:05d}.png", picture, claim=False))
        if known:
            table = TextFile(folder.path / "familiar.csv")
            files.append(table)
            table.write("pose,familiar\n" + "".join(f"{i},{value:.4f}\n" for i, value in enumerate(known)))
        for file in files:
            file.finish()
        for file in files:
            file.publish()
        folder.release()
    except BaseException:
        for file in files:
            file.discard()
        folder.discard()
        raise
    said = f"{len(known)} pictures, mean familiarity {np.mean(known):.2f}" if known else "the world as remembered"
    names = ", ".join(file.path.name for file in files[:2]) + (", …" if files[2:] else "")
    print(shown(f"{said}: {folder.path} ({names})"))
    return 0
