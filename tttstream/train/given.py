"""Checks before Lightning is imported that the data of a command is given."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tttstream.io import presets

PARTS = {"fit": "train", "validate": "val", "test": "test", "predict": "test"}
"""The part of the data that each command needs."""

OURS = ("VideoData", "tttstream.train.data.VideoData", "tttstream.train.data.module.VideoData")


def missing(part: str) -> str:
    """The message for a missing part."""
    way = f"; give data.{part}"
    return f"data: nothing is given for {part}{way if part == 'train' else f'{way}, or fractions to cut it from train'}"


def without(words: Sequence[str]) -> str | None:
    """The part that the command needs and that neither its arguments nor its configurations mention; None if unsure."""
    if any(word in ("-h", "--help") or word.startswith(("--print_config", "--help")) for word in words):
        return None
    kind, mentioned = None, set[str]()
    for name, value in _pairs(words[1:]):
        if name in ("-c", "--config"):
            data = _data(value)
        elif name in ("--data", "--data.class_path"):
            data = {"class_path": value}
        else:
            found = re.match(r"--data\.(?:init_args\.)?(\w+)", name)
            data = {found[1]: value} if found else {}
        if data is None:
            return None
        kind = data.pop("class_path", kind)
        mentioned |= {key.rstrip("+") for key, given in {**data, **(data.get("init_args") or {})}.items() if given}
    part = PARTS[words[0]]
    cut = part != "train" and {"train", "fractions"} <= mentioned
    return None if kind not in OURS or part in mentioned or cut else part


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Options and their values, of `--name value` and `--name=value` alike."""
    pairs: list[tuple[str, str]] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, given, value = word.partition("=")
        if word.startswith("-"):
            pairs.append((name, value if given else following))
    return pairs


def _data(config: str) -> dict[str, Any] | None:
    """The data of a configuration; None if unknown."""
    import yaml

    path = Path(config) if Path(config).is_file() else presets.find(config)
    if path is None:
        return None
    try:
        whole = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    data = whole.get("data", {}) if isinstance(whole, dict) else None
    if isinstance(data, str):
        return {"class_path": data}
    return dict(data) if isinstance(data, dict) and isinstance(data.get("init_args") or {}, dict) else None
