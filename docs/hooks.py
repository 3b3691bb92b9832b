"""The documents that lie outside of docs/ become pages of the site, and links among all of them lead to pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    **{
        name: name
        for name in (
            "ARCHITECTURE.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "benchmarks/README.md",
            "examples/jetson.md",
            "models/README.md",
        )
    },
}
"""Document, from the repository's top -> page, from the site's top."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def _page_of(document: str) -> str | None:
    """The page, or the picture, that a file of the repository is on the site; None where it is none."""
    if document.startswith("docs/"):
        return document.removeprefix("docs/")
    return OUTSIDE.get(document)


def linked(text: str, document: str, page: str) -> str:
    """The text of a document with its links made those of the site; of a file that is no page its name stays."""
    here, there = posixpath.dirname(document), posixpath.dirname(page)

    def mended(found: re.Match[str]) -> str:
        mark, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        file = posixpath.normpath(posixpath.join(here, target))
        to = _page_of(file)
        if to is None:
            if not (ROOT / file).exists():
                return found[0]  # the strict build tells of it
            return label
        return f"{mark}[{label}]({posixpath.relpath(to, there or '.')}{anchor})"

    return LINK.sub(mended, text)


def on_files(files: Files, *, config: Any) -> Files:
    """README and the others beside it, as pages."""
    for document, page in OUTSIDE.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=linked(text, document, page)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Links of the documents in docs/ that lead out of it."""
    source = page.file.src_uri
    return markdown if source in OUTSIDE.values() else linked(markdown, f"docs/{source}", source)
