"""Kinds of arguments that the programs share: paths as people and their shells write them."""

from __future__ import annotations

import argparse
from pathlib import Path

from tttstream.errors import ConfigError
from tttstream.io.names import expanded


def path(text: str) -> Path:
    """A file or folder, `~` made the home folder; refuses nothing at all, $NAME, and the `-` of pipes."""
    if text == "-":
        raise argparse.ArgumentTypeError("- stands for a pipe, and this has to be a file or folder; give its name")
    try:
        return Path(expanded(text, "it", ConfigError))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def model(text: str) -> str:
    """A model by name or folder, `~` made the home folder."""
    return str(path(text))
