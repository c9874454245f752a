"""Runs of `tttstream watch` in the tests, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tttstream.cli.main import main

QUICK = ["--size", "32"]
FILES = ["frames.jsonl", "overlay.mp4", "summary.json", "surprise.png"]
CUT_AT = 25  # a scene of the clips ends here


def watch(*words: object) -> int:
    """The exit code of a run at 32 pixels."""
    return main(["watch", *map(str, words), *QUICK])


def lines(folder: Path) -> list[dict[str, Any]]:
    """frames.jsonl without the latency, which differs between two runs."""
    rows = [json.loads(line) for line in (folder / "frames.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "latency_ms"} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    """summary.json."""
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return content
