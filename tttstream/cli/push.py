"""`tttstream push`: uploads the folder of a trained model to a hub."""

import argparse

from tttstream.cli import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream push`."""
    add = parser.add_argument
    add("model", metavar="DIR|NAME", type=arguments.model, help="a model by name or from its folder")
    add("repository", metavar="OWNER/NAME", help="repository on the hub; created if it does not exist")
    add(
        "--card", metavar="FILE", type=arguments.path, help="markdown that becomes the README (default: card.md in DIR)"
    )
    add("--revision", metavar="BRANCH", help="the branch (default: main)")
    add("--private", action="store_true", help="create a private repository")


def run(args: argparse.Namespace) -> int:
    """Upload the model. Returns the exit code."""
    from tttstream import models

    card, folder = args.card, models.folder(args.model)
    if card is None and (folder / "card.md").is_file():
        card = folder / "card.md"
    model = models.load(folder)
    address = models.push(model, args.repository, card=card, private=args.private, revision=args.revision)
    print(f"{args.model} is at {address}: `tttstream {model.USE} --model hf:{args.repository}` shows what it does")
    return 0
