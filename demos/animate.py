"""Makes a small animation from the overlay of `tttstream watch`, for a web page.

tttstream watch places --model map --max-frames 1200 --seed 0 --out out/map
python demos/animate.py out/map/overlay.mp4 docs/map.webp --still docs/map.png --at 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from tttstream.sources import open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", help="an overlay.mp4")
    parser.add_argument("out", type=Path, help="an animated WebP")
    parser.add_argument("--still", type=Path, help="a PNG of one frame")
    parser.add_argument("--at", type=int, default=0, help="that frame's number")
    parser.add_argument("--every", type=int, default=8, help="take every n-th frame")
    parser.add_argument("--speed", type=float, default=4.0, help="how many times faster than the video")
    parser.add_argument("--width", type=int, default=760)
    args = parser.parse_args()
    frames: list[Image.Image] = []
    with open_source(args.video) as source:
        rate = source.fps or 30.0
        for frame in source:
            picture = Image.fromarray(frame.image)
            if args.still is not None and frame.index == args.at:
                picture.save(args.still)
            if frame.index % args.every == 0:
                height = round(picture.height * args.width / picture.width)
                frames.append(picture.resize((args.width, height), Image.Resampling.LANCZOS))
    pace = round(1000 * args.every / rate / args.speed)
    frames[0].save(args.out, save_all=True, append_images=frames[1:], duration=pace, loop=0, quality=70, method=4)
    print(f"{args.out}: {len(frames)} frames, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
