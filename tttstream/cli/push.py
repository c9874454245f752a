"""`tttstream push`: put the folder of a trained model on a hub."""

from __future__ import annotations

import argparse

from tttstream.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, where it goes, and what goes with it."""
    add = parser.add_argument
    add("model", metavar="DIR|NAME", type=arguments.model, help="a model by name or from its folder")
    add("repository", metavar="OWNER/NAME", help="where it goes; made where there is none")
    add(
        "--card", metavar="FILE", type=arguments.path, help="markdown that becomes the README (default: card.md in DIR)"
    )
    add("--revision", metavar="BRANCH", help="the branch (default: main)")
    add("--private", action="store_true", help="make the repository a private one")


def run(args: argparse.Namespace) -> int:
    """Put it there."""
    from tttstream import models

    card, folder = args.card, models.folder(args.model)
    if card is None and (folder / "card.md").is_file():
        card = folder / "card.md"
    model = models.load(folder)
    address = models.push(model, args.repository, card=card, private=args.private, revision=args.revision)
    print(f"{args.model} is at {address}: `tttstream {model.USE} --model hf:{args.repository}` shows what it does")
    return 0
