"""Names of files as text on one line that can be printed, drawn and written, for any bytes or characters in them."""

import os
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from tttstream.errors import TTTStreamError

# Controls, halves of surrogate pairs, separators of lines and paragraphs; and changes of the direction of writing.
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def shown(text: str) -> str:
    """The text as valid Unicode on one line: bytes that are no UTF-8 as \\xe9, line ends and other controls as \\n."""
    if text.isprintable():
        return text
    hidden = {sign for sign in text if sign in _TURNS or unicodedata.category(sign) in _HIDDEN}
    return "".join(_escaped(sign) if sign in hidden else sign for sign in text)


def shortened(text: str, most: int) -> str:
    """The text as `shown`, without its middle if it is longer than `most` characters."""
    whole = shown(text)
    if len(whole) <= most:
        return whole
    tail = (most - 1) // 2
    return f"{whole[: most - 1 - tail]}…{whole[len(whole) - tail :]}"


def clean(value: Any) -> Any:
    """A value for JSON in which every text is as `shown`, except that line ends are kept."""
    if isinstance(value, str):
        return "".join(_escaped(sign) if unicodedata.category(sign) == "Cs" else sign for sign in value)
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, (list, tuple)) else value


def clipped(name: str, most: int) -> str:
    """A file's name cut to at most `most` bytes, as file systems count them."""
    return name.encode("utf-8", "surrogateescape")[:most].decode("utf-8", "ignore")


def _escaped(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # Python's encoding of a byte that it could not decode
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return sign.encode("unicode_escape").decode("ascii")


def expanded(text: str, what: str, kind: type[TTTStreamError]) -> str:
    """A path with `~` replaced by the home folder, unless a file has this name.

    Raises an error of this kind for text that a shell should have replaced: an empty text (an unset variable), $NAME,
    the ~ of an unknown user.
    """
    if not text.strip():
        raise kind(f"{what} is an empty text; is it a shell variable that is not set?")
    if os.path.lexists(text):
        return text
    whole = os.path.expanduser(text)
    if re.match(r"~[\w.-]*(/|$)", whole):
        raise kind(f"{what} is {text}: there is no home folder of that name; ./{text} is a file of that name")
    variable = re.search(r"(?:^|[/\\])(\$\{?[A-Za-z_]\w*\}?)", whole)
    if variable:
        raise kind(f"{what} is {text}: {variable[1]} was not replaced; write its value")
    return whole
