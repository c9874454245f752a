"""`tttstream export`: from a checkpoint to the model folder that `tttstream watch --model` takes."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The checkpoint and the folder."""
    parser.add_argument("checkpoint", metavar="CKPT", type=Path, help="a checkpoint that `tttstream fit` wrote")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where config.json and model.safetensors go")


def run(args: argparse.Namespace) -> int:
    """Write the folder."""
    from tttstream.classifier import Classifier
    from tttstream.masks import MixtureModel
    from tttstream.outputs import saving
    from tttstream.train.export import read

    model = read(args.checkpoint)
    with saving(args.folder):
        model.save(args.folder)
    masks = isinstance(model, MixtureModel)
    what = "VIDEO" if masks or isinstance(model, Classifier) else "walk"
    first = " --first-mask MASK.png" if masks else ""
    print(f"the model is in {args.folder}: `tttstream watch {what} --model {args.folder}{first}` watches with it")
    return 0
