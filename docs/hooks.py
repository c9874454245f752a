"""What the site needs beyond mkdocs.yml: pages from other folders, links to them, and lists of parameters.

A README beside the code reads well in the repository and is a page of the site too. Links in all pages are written for
the repository; here they are turned into links of the site.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

LOG = logging.getLogger("mkdocs.plugins.tttstream")
ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "agents/README.md",
    "configs/README.md",
    "kernels/README.md",
    "tttstream/train/data/README.md",
)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
OUTSIDE = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=[\"'](?:https?:)?//[^>]*>")
PARAMETER = re.compile(r"(?m)^(\*{0,2}\w+(?:, \*{0,2}\w+)*): ")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every page of results: a new table needs no line in mkdocs.yml."""
    pages = sorted((ROOT / "docs" / "results").glob("*.md"), key=lambda page: (page.stem != "index", page.stem))
    for entry in config.nav or []:
        if "Results" in entry:
            entry["Results"] = [f"results/{page.name}" for page in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside docs/, under the paths that they have in the repository."""
    for path in ELSEWHERE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the repository's links into the site's."""
    place = page.file.src_uri
    source = place if place in ELSEWHERE else f"docs/{place}"

    def turned(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups(default="")
        text = LINK.sub(turned, text)
        if "://" in target or target.startswith("mailto:"):
            return f"{picture}[{text}]({target}{anchor})"
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", source, target)
        if path in ELSEWHERE:
            found = path
        elif path.startswith("docs/"):
            found = path.removeprefix("docs/")
        else:
            return text  # a file of the repository that is no page
        return f"{picture}[{text}]({posixpath.relpath(found, posixpath.dirname(place) or '.')}{anchor})"

    pieces = re.split(r"(?ms)(^```.*?^```$)", markdown)
    return "".join(piece if piece.startswith("```") else LINK.sub(turned, piece) for piece in pieces)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse pages that would fetch something from elsewhere when they are read."""
    for found in OUTSIDE.findall(output):
        LOG.warning("%s fetches something from elsewhere: %s", page.file.src_uri, found)
    return output


class ParameterLists(Extension):
    """Lines `name: what it is` of a docstring, outside a section, become a list."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object that was read from source."""
        if obj.docstring is None:
            return
        names = {parameter.name for parameter in obj.parameters} if obj.is_function or obj.is_class else set()
        names |= {name for name, member in obj.members.items() if not member.is_alias and member.is_attribute}
        obj.docstring.value = listed(obj.docstring.value, names)


def listed(text: str, names: set[str]) -> str:
    """A docstring with its paragraphs of `name: what it is` as lists. names: what may also stand inside a line."""

    def broken(match: re.Match[str]) -> str:
        return f"\n{match[1]}: " if match[1] in names else match[0]

    paragraphs = text.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if PARAMETER.match(paragraph) and not paragraph.startswith(("Args:", "Returns:", "Raises:", "Note:")):
            paragraphs[number] = PARAMETER.sub(r"- **\1**: ", re.sub(r"(?<=[.;:]) (\w+): ", broken, paragraph))
    return "\n\n".join(paragraphs)
