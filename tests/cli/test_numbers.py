"""Whole numbers as people write them: in digits and in scientific notation, for every option that counts."""

from __future__ import annotations

import argparse

import pytest

from tttstream.cli.numbers import plain, whole
from tttstream.cli.watch import add_arguments


@pytest.mark.parametrize(
    ("text", "number"),
    [("16", 16), ("1e6", 1_000_000), ("1E+3", 1000), ("2.5e3", 2500), ("-1e2", -100), ("1_000", 1000), (" 7.0 ", 7),
     ("9007199254740993e0", 9_007_199_254_740_993)],
)  # fmt: skip
def test_a_whole_number(text: str, number: int) -> None:
    assert whole(text) == number


@pytest.mark.parametrize("text", ["", "1.5", "1e-3", "2.55e1", "inf", "nan", "1e999999999", "many", "0x10", "1e", "e6"])
def test_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="expected a whole number"):
        whole(text)


def test_watch_counts_so() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["walk", "--max-frames", "1e2", "--size=1.28e2", "--seed", "1e1"])
    assert (args.max_frames, args.size, args.seed) == (100, 128, 10)


def test_the_words_of_the_training_commands() -> None:
    """Lightning's parser accepts digits only; words that are no whole numbers are unchanged."""
    given = ["fit", "--trainer.max_steps=1e3", "--seed_everything", "1e1", "--lr=1e-3", "--x=1.5e0", "a1e3", "out/1e3"]
    assert plain(given) == [
        "fit", "--trainer.max_steps=1000", "--seed_everything", "10", "--lr=1e-3", "--x=1.5e0", "a1e3", "out/1e3"
    ]  # fmt: skip
