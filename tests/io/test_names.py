"""Names of files as text: one line of valid Unicode for any bytes; and paths as users type them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tttstream.errors import SourceError
from tttstream.io.names import clean, clipped, expanded, shortened, shown

LATIN = os.fsdecode(b"caf\xe9.mp4")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("été 日本　語.mp4", "été 日本　語.mp4"),
        (LATIN, r"caf\xe9.mp4"),
        ("a\nb\tc.mp4", r"a\nb\tc.mp4"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\u2028b", r"a\u2028b"),
        ("half \ud83d", r"half \ud83d"),
        ("👩\u200d💻.mp4", "👩\u200d💻.mp4"),
    ],
)
def test_shown(name: str, said: str) -> None:
    assert shown(name) == said
    said.encode("utf-8")


def test_json_is_utf_8_for_every_reader() -> None:
    value = clean({LATIN: [LATIN, {"deep": ("a\nb", 1, None)}]})
    assert json.loads(json.dumps(value)) == {r"caf\xe9.mp4": [r"caf\xe9.mp4", {"deep": ["a\nb", 1, None]}]}
    json.dumps(value, ensure_ascii=False).encode("utf-8")


def test_cut() -> None:
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789a", 7) == "012…89a"
    assert clipped("日本語", 7) == "日本"
    assert clipped(LATIN, 100) == "caf.mp4"


def test_paths_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/x.mp4", "it", SourceError) == os.path.join(str(tmp_path), "x.mp4")
    assert expanded("a~b$5.mp4", "it", SourceError) == "a~b$5.mp4"
    for text, said in (
        ("", "empty text"),
        (" ", "empty text"),
        ("~nobody-of-this-name/x", "no home folder"),
        ("$OUT/x", r"\$OUT was not replaced"),
        ("a/${NAME}.mp4", r"\$\{NAME\} was not replaced"),
    ):
        with pytest.raises(SourceError, match=said):
            expanded(text, "it", SourceError)
    for text in ("~nobody-of-this-name", "$OUT"):  # files of the very name
        Path(text).touch()
        assert expanded(text, "it", SourceError) == text
