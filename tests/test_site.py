"""The site of the documents: it builds without a warning, and every link of its pages leads somewhere."""

from __future__ import annotations

import html.parser
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("mkdocs", reason="needs the extra: pip install 'sparsecc[docs]'")


class Links(html.parser.HTMLParser):
    """Where the links of a page lead, and the anchors it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors.add(given.get("id") or "")
        link = given.get("href") if tag == "a" else given.get("src") if tag in ("img", "script") else None
        if link:
            self.links.append(link)


def built(folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = built(folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_link_of_every_page_leads_somewhere(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 20
    lost = []
    for page, links in pages.items():
        for link in links.links:
            split = urlsplit(link)
            if split.scheme or split.netloc:
                continue
            target = (page.parent / unquote(split.path)).resolve() if split.path else page
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(split.fragment)
            known = pages[target].anchors if target in pages else {anchor}
            if not target.exists() or (anchor and anchor not in known):
                lost.append((page.name, link))
    assert lost == []


def test_the_api_reference_is_made_of_docstrings(site: Path) -> None:
    text = (site / "api.html").read_text(encoding="utf-8")
    for sentence in ("Compile a model for a target into a bundle", "What a compile gave", "trains on"):
        assert sentence in text
    assert (site / "index.html").read_text(encoding="utf-8").count("sparsecc compile") > 3


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not [
            src for src in Links(page).links if src.startswith(("//", "http")) and src.endswith(".js")
        ]


def test_a_link_that_leads_nowhere_stays_for_the_build_to_find() -> None:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    linked = hooks.linked
    assert linked("[a](nowhere.md)", "docs/torch.md", "torch.md") == "[a](nowhere.md)"
    assert linked("[a](../SECURITY.md#x)", "docs/torch.md", "torch.md") == "[a](SECURITY.md#x)"
    assert linked("[a](docs/torch.md)", "README.md", "index.md") == "[a](torch.md)"
    assert (
        linked("[a](../../examples/jetson.md)", "docs/tutorials/board.md", "tutorials/board.md")
        == "[a](../examples/jetson.md)"
    )
    assert linked("[the gate](examples/ci/gate.yaml)", "README.md", "index.md") == "the gate"
