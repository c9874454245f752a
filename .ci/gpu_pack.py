"""`make gpu-pack`: wheels and clips, below 60 MB, for a GPU machine without a network (Python 3.12, x86-64 Linux)."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

# What a machine with torch, torchvision, triton, lightning and OpenCV lacks, with what the benchmark compares with.
# There is no room for decord: the decoder PyAV, which is the default, takes its place.
WHEELS = [
    "av",
    "gymnasium",
    "farama-notifications",
    "cloudpickle",
    "jsonargparse",
    "docstring-parser",
    "typeshed-client",
    "safetensors",
    "pytest",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "pytest-timeout",
    "pytest-xdist",
    "execnet",
    "hypothesis",
    "sortedcontainers",
    "fla-core",
    "flash-linear-attention",
    "einops",
]
PLATFORMS = ("2_28", "2_27", "2_17")
MOST_MB = 60
HELD = ["car-detection", "dog", "bedroom", "carphone", "scene_cuts", "yes", "bird", "help"]
"""Videos that no recipe trains on (docs/results/novelty.md)."""


def main() -> int:
    """Fill the folder; 1 where it is too large or a wheel cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gpu-pack"))
    parser.add_argument(
        "--videos", type=Path, default=Path("../shared/videos"), help="made small where clips are absent"
    )
    parser.add_argument("--clips", type=Path, default=Path("out/small"), help="what demos/shrink.py wrote, or will")
    given = parser.parse_args()
    out, clips = given.out, given.clips
    if given.videos.is_dir() and not clips.is_dir():
        part = clips.with_name(f".{clips.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        words = [given.videos, part, "--held", *HELD, "--skip", "robustness", "masks"]
        subprocess.run([sys.executable, "demos/shrink.py", *map(str, words)], check=True)
        part.rename(clips)
    shutil.rmtree(out, ignore_errors=True)
    tags = [*(f"manylinux_{tag}_x86_64" for tag in PLATFORMS), "manylinux2014_x86_64", "manylinux2010_x86_64"]
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp"]
    words += [f"--platform={tag}" for tag in tags]
    fetched = subprocess.run([sys.executable, "-m", "pip", *words, "-d", str(out), *WHEELS], check=False)
    if fetched.returncode:
        return 1
    if clips.is_dir():
        shutil.copytree(clips, out / "clips")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(f"{out}: {size:.1f} MB of {MOST_MB}; {'with' if clips.is_dir() else 'without'} clips")
    return 0 if size < MOST_MB else 1


if __name__ == "__main__":
    sys.exit(main())
