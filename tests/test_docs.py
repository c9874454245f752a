"""The documents: every Python block runs and prints its output, every command exists, every public name has a page.

A block whose first line is `# Needs: …` needs what a reader has to bring: files for which the test makes stand-ins, or
one of `NOT_HERE`, and then only its syntax and its imports are checked.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import tttstream
import tttstream_agents
import tttstream_kernels
from tttstream.cli.main import COMMANDS, TRAINING, build_parser
from tttstream.io import presets

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = ["README.md", "CONTRIBUTING.md", "agents", "configs", "kernels", "tttstream/train/data"]
PAGES = sorted(
    [*(ROOT / "docs").rglob("*.md"), *(p if p.suffix else p / "README.md" for p in map(ROOT.joinpath, ELSEWHERE))]
)
LANGUAGES = {"python", "text", "sh", "yaml", "csv", ""}
NOT_HERE = {"a camera", "a hub", "a robot", "Ray"}
FENCE = re.compile(r"(?ms)^(?P<indent> *)```(?P<language>[\w]*)[^\n]*\n(?P<code>.*?)^ *```$")


class Block(NamedTuple):
    """A fenced block, and the text that stands right after it as what it prints."""

    line: int
    language: str
    code: str
    printed: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = list(FENCE.finditer(text))
    after: list[re.Match[str] | None] = [*found[1:], None]
    made = []
    for match, follower in zip(found, after, strict=False):
        printed = None
        if follower is not None and follower["language"] == "text" and not text[match.end() : follower.start()].strip():
            printed = follower["code"]
        line = text.count("\n", 0, match.start("code"))
        made.append(Block(line, match["language"], match["code"], printed))
    return made


def name(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def needs(code: str) -> list[str]:
    """The requirements in the first line of a block."""
    match = re.match(r"# Needs: (.+)\n", code)
    return [] if match is None else [item.strip() for item in match[1].split(",")]


def drive_mp4() -> None:
    import av
    import numpy as np

    with av.open("drive.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(10):
            picture = np.full((64, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def drive_csv() -> None:
    rows = [f"{number / 10:.2f},{number},{2 * number},{10 * number}" for number in range(10)]
    Path("drive.csv").write_text("\n".join(["time_s,x,y,yaw_deg", *rows]) + "\n")


STAND_INS = {"drive.mp4": drive_mp4, "drive.csv": drive_csv}
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


def same(printed: str, expected: str) -> bool:
    """Whether two texts agree, numbers with a decimal point to within one per cent (processors round differently)."""
    number = r"-?\d+\.\d+"
    if re.sub(number, "#", printed) != re.sub(number, "#", expected):
        return False
    pairs = zip(re.findall(number, printed), re.findall(number, expected), strict=True)
    return all(float(one) == pytest.approx(float(other), rel=0.01, abs=1e-6) for one, other in pairs)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_the_python_blocks_of_a_page(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run one after another, as a reader types them."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page):
        if block.language != "python":
            continue
        place = f"{name(page)}:{block.line}"
        code = compile("\n" * block.line + block.code, place, "exec", dont_inherit=True)
        wanted = needs(block.code)
        if not NOT_HERE.isdisjoint(wanted):
            imports = [node for node in ast.parse(block.code).body if isinstance(node, ast.Import | ast.ImportFrom)]
            if "Ray" not in wanted:
                exec(compile(ast.Module(imports, []), place, "exec", dont_inherit=True), dict(names))
            continue
        for item in wanted:
            assert item in STAND_INS, f"{place}: say in this test what stands in for {item}"
            STAND_INS[item]()
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        if block.printed is not None:
            assert same(printed.getvalue(), block.printed), f"{place} printed\n{printed.getvalue()}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_are_marked(page: Path) -> None:
    """Code stands in fences that name a language this test knows, so no Python is left out."""
    text = page.read_text("utf-8")
    assert {block.language for block in blocks(page)} <= LANGUAGES
    plain = FENCE.sub("", text)
    assert not re.search(r"(?m)^    +(from [\w.]+ import|import \w+)", plain)
    for block in blocks(page):
        if block.language == "":
            assert not re.search(r"(?m)^(from [\w.]+ import|import \w+)", block.code), block.line


def commands(page: Path) -> list[tuple[int, str]]:
    """The lines of commands in the shell blocks of a page, continued lines joined."""
    found = []
    for block in blocks(page):
        if block.language in ("sh", ""):
            lines = block.code.replace("\\\n", " ").splitlines()
            found += [(block.line, re.sub(r"\s+# .*", "", line).strip()) for line in lines]
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    """Their options are parsed; nothing runs."""
    from tttstream_agents.cli import build_parser as build_agents_parser

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for line, command in commands(page):
        if "…" in command:
            continue
        words = shlex.split(command)
        if words[:1] == ["tttstream"] and words[1] in TRAINING:
            configs = [after for word, after in pairwise(words) if word == "--config"]
            for config in configs:
                assert presets.find(config) or re.search(r"\.yaml$", config), f"{name(page)}:{line}: {config}"
        elif words[:1] == ["tttstream"]:
            assert words[1] in COMMANDS, f"{name(page)}:{line}: {command}"
            build_parser(words[1]).parse_args(words[1:])
        elif words[:1] == ["tttstream-agents"]:
            build_agents_parser().parse_args(words[1:])
        elif words[:1] == ["make"]:
            assert set(words[1:]) <= targets, f"{name(page)}:{line}: {command}"
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{name(page)}:{line}: {command}"


@pytest.mark.parametrize(
    "package", [tttstream, tttstream_kernels, tttstream_agents], ids=lambda package: package.__name__
)
def test_every_public_name_has_a_place_in_the_reference(package: Any) -> None:
    listed = re.findall(r"(?m)^::: (\S+)", "\n".join(p.read_text("utf-8") for p in (ROOT / "docs/api").glob("*.md")))
    for public in package.__all__:
        path = f"{package.__name__}.{public}"
        value = getattr(package, public)
        if isinstance(value, str | float | tuple | ModuleType):
            continue
        module = getattr(value, "__module__", None)
        assert any(entry in (path, module, package.__name__) or entry.startswith(f"{path}.") for entry in listed), path


def test_no_page_of_the_site_is_left_out() -> None:
    """Every page of docs/ is in the navigation; pages of results are added by the site itself."""
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        path = page.relative_to(ROOT / "docs").as_posix()
        assert path.startswith("results/") or f": {path}\n" in text, path


def test_the_memories_have_a_row_each() -> None:
    text = (ROOT / "docs/howto/memory.md").read_text("utf-8")
    rows = re.findall(r"(?m)^\| (`.*?) \|", text)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == {*tttstream.memory.names()}
