"""Whole numbers on a command line: 16, 1_000_000, 1e6."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

MOST = 30  # largest number of digits
SCIENTIFIC = re.compile(r"(--[\w.-]+=)?([+-]?\d+(\.\d*)?[eE]\+?\d+)")


def whole(text: str) -> int:
    """Parse a whole number, also in scientific notation. Raises ValueError for other text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"expected a whole number, got {text!r}") from error
    if not number.is_finite() or number.adjusted() > MOST or number != number.to_integral_value():
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(number)


whole.__name__ = "whole number"  # the name that argparse prints for invalid text


def plain(words: Sequence[str]) -> list[str]:
    """The words of a command line with 1e6 as 1000000, for a parser that accepts only digits."""
    return [_plain(word) for word in words]


def _plain(word: str) -> str:
    found = SCIENTIFIC.fullmatch(word)
    if found is None:
        return word
    try:
        return f"{found[1] or ''}{whole(found[2])}"
    except ValueError:
        return word
