"""`make gpu`: all that wants a GPU, in visits of under ten minutes each; what is done is not done again.

Every step leaves out/gpu/STEP.json with its command, exit code, seconds and number of visits, so that a machine which
is only lent for a while gets on from wherever the last one stopped. A step that failed is tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACK, CLIPS = ROOT / "gpu-pack", ROOT / "out" / "small"
SITE = PACK / "site"
"""Where the wheels of the pack are unpacked that the machine lacks; its own environment stays as it is."""
LIMIT = 590
AGAIN, TIMES = 75, 5
"""What the benchmark ends with where a row broke the CUDA context, and how often it then goes on without that row."""


class Step(NamedTuple):
    """A command, and how often it is called: each call of a resumable one goes on from the last. resume: the folder
    whose newest checkpoint is handed on."""

    name: str
    command: list[str]
    visits: int = 1
    resume: str = ""


def program(*words: str) -> list[str]:
    """The project's own program, installed or not."""
    return [sys.executable, "-m", "tttstream", *words]


def fit(name: str, *words: str) -> Step:
    """Training in visits of nine minutes."""
    folder = f"out/gpu/{name}"
    command = program("fit", "--config", "trainer/gpu", *words, f"--trainer.default_root_dir={folder}")
    return Step(name, command, 6, folder)


def steps(card: str) -> list[Step]:
    """What there is to do, the most telling first: the kernels on small and real sizes, their benchmark, training.
    card: what the GPU is called in the name of its table."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-W", "default", "--timeout", "570"]
    if "pytest_xdist" in installed():
        pytest += ["-n", "8"]  # compiling kernels takes most of the time, on one core each
    kernels = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "kernels").glob("test_*triton*.py"))
    bench = [sys.executable, "kernels/bench/run.py", "--device", "cuda", "--minutes", "8", "--resume"]
    moving = ["--config", "task/mask", "--config", "data/objects", "--model.size=112", "--data.batch_size=32"]
    if (CLIPS / "train").is_dir():
        moving += [f"--data.{part}.folders=[{CLIPS / 'train'}]" for part in ("train", "val")]
    crops = ["--config", "data/base", "--data.batch_size=64"]
    return [
        Step("test-kernels", [*pytest, "-m", "not soak", *kernels]),
        Step("bench", [*bench, "--out", f"docs/results/kernels-{card}.md"], 4),
        Step("test-rest", [*pytest, "-m", "gpu", "tests", *(f"--ignore={path}" for path in kernels)]),
        fit("base", "--config", "model/base", *crops, "--config", "task/base"),
        fit("mask", *moving),
    ]


def installed() -> set[str]:
    """What is there, the unpacked wheels included, named as wheels are."""
    found = distributions(path=[*sys.path, str(SITE)])
    return {one.metadata["Name"].replace("-", "_").lower() for one in found}


def unpack() -> None:
    """Those wheels of the pack that the machine lacks: they cost seconds, and each machine needs them anew."""
    have = installed()
    wheels = [str(path) for path in sorted(PACK.glob("*.whl")) if path.name.partition("-")[0].lower() not in have]
    if wheels:
        call(
            "wheels",
            [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", f"--target={SITE}", *wheels],
        )


def named(device: str) -> str:
    """h200 for "NVIDIA H200"."""
    return next((word for word in device.lower().split() if any(letter.isdigit() for letter in word)), "gpu")


def newest(folder: Path) -> Path | None:
    """The last checkpoint under a folder."""
    found = sorted(folder.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def run(todo: list[Step], records: Path, minutes: float) -> int:
    """Do what is not done yet within the minutes; 1 where a step failed."""
    records.mkdir(parents=True, exist_ok=True)
    begun, failed = time.monotonic(), False
    for step in todo:
        path = records / f"{step.name}.json"
        record = json.loads(path.read_text()) if path.exists() else {"visits": 0, "code": None}
        while record["visits"] < step.visits:
            if time.monotonic() - begun > 60 * minutes:
                print(f"{minutes:g} minutes have passed: call again to continue with {step.name}")
                return int(failed)
            last = newest(ROOT / step.resume) if step.resume else None
            command = [*step.command, *([f"--ckpt_path={last}"] if last else [])]
            for _ in range(TIMES):
                code, seconds = call(step.name, command)
                if code != AGAIN:
                    break
            done = record["visits"] + (code == 0)
            record = {"command": command, "code": code, "seconds": round(seconds, 1), "visits": done}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(record, indent=2) + "\n")
            part.replace(path)
            if code != 0:
                print(f"{step.name} ended with code {code}")
                failed = True
                break
    return int(failed)


def call(name: str, command: list[str]) -> tuple[int, float]:
    """(exit code, seconds); 124 where it ran out of time."""
    print(f"== {name}: {' '.join(command)}", flush=True)
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "agents"), str(SITE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    begun = time.monotonic()
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=LIMIT, check=False).returncode
    except subprocess.TimeoutExpired:
        code = 124
    return code, time.monotonic() - begun


def main() -> int:
    """2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further step after these")
    parser.add_argument("--only", nargs="+", help="only these steps")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("make gpu: torch sees no CUDA device here; run it where there is one", file=sys.stderr)
        return 2
    if (PACK / "clips").is_dir() and not CLIPS.is_dir():
        shutil.copytree(PACK / "clips", CLIPS)
    unpack()
    card = named(torch.cuda.get_device_name())
    todo = [step for step in steps(card) if not arguments.only or step.name in arguments.only]
    return run(todo, ROOT / "out" / "gpu", arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
