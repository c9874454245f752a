"""Make videos small before training, so that decoding does not limit its speed.

python demos/shrink.py ../shared/videos out/small --held dog bedroom carphone --skip robustness
"""

import argparse
import itertools
import sys
from pathlib import Path

import av
import cv2
import numpy as np

import tttstream
from tttstream.errors import TTTStreamError


def shrink(source: Path, target: Path, side: int, most: int, skip: int = 0) -> int:
    """Write up to `most` frames of a video with this short side, without the first `skip`. Returns their number."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    count = 0
    try:
        with tttstream.open_source(str(source)) as video, av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=round(video.fps or 25), options={"crf": "12"})
            for frame in itertools.islice(video, skip, None):
                image = np.asarray(frame.image)
                scale = side / min(image.shape[:2])
                width, height = (2 * round(scale * image.shape[axis] / 2) for axis in (1, 0))
                if not count:
                    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
                small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
                count += 1
                if count == most:
                    break
            container.mux(stream.encode(None))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="a folder of videos, with those in its subfolders")
    parser.add_argument("target", type=Path, help="gets train/ and held/")
    parser.add_argument("--held", nargs="*", default=[], help="stems of videos that go to held/, all others to train/")
    parser.add_argument("--skip", nargs="*", default=[], help="names of folders to leave out")
    parser.add_argument("--side", type=int, default=144, help="short side in pixels (144)")
    parser.add_argument("--most", type=int, default=1500, help="frames taken of each (1500)")
    args = parser.parse_args()
    for path in sorted(args.source.rglob("*.*")):
        if path.suffix not in (".mp4", ".mkv", ".avi", ".mov", ".webm") or {*args.skip} & {*path.parts}:
            continue
        part = "held" if path.stem in args.held else "train"
        try:
            frames = shrink(path, args.target / part / f"{path.parent.name}-{path.stem}.mp4", args.side, args.most)
        except TTTStreamError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            print(f"{part}/{path.parent.name}-{path.stem}.mp4: {frames} frames")


if __name__ == "__main__":
    main()
