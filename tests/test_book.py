"""The book builds without a warning, all its links lead somewhere, and it needs no internet."""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from lib import paths

pytestmark = pytest.mark.slow
# what a page loads by itself, in contrast to what a reader may follow
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
#: Modules of the core that have no page: what the documented ones call.
INTERNAL = {"bundle", "engine", "machine", "progress", "run_dir"}


class Page(HTMLParser):
    """What a page loads, where its links go, and what can be linked to on it."""

    def __init__(self, path: Path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.loads, self.links, self.anchors = [], [], set()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADED and given.get(LOADED[tag]):
            self.loads.append(given[LOADED[tag]])


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "html"
    words = [sys.executable, *"-m sphinx -q -W --keep-going -b html -c notebooks/book -d".split()]
    done = subprocess.run(
        [*words, folder.parent / "trees", ".", folder],
        cwd=paths.ROOT,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(book):
    return {path: Page(path) for path in sorted(book.rglob("*.html"))}


def elsewhere(address):
    parts = urlsplit(address)
    return bool(parts.scheme or parts.netloc)


def broken(path, address, pages):
    """Whether an address within the book leads to no file, or to no place on its page."""
    parts = urlsplit(address)
    if elsewhere(address):
        return False
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.is_file():
        return True
    fragment = unquote(parts.fragment)
    return bool(fragment) and target in pages and fragment not in pages[target].anchors


def test_every_internal_link_leads_somewhere(pages):
    for path, page in pages.items():
        assert not [a for a in page.links + page.loads if broken(path, a, pages)], path
    # and the test sees one that does not
    path = next(path for path in pages if path.name == "glossary.html")
    assert broken(path, "#no-such-word", pages) and broken(path, "no_such_page.html", pages)


def test_nothing_is_loaded_from_elsewhere(book, pages):
    for path, page in pages.items():
        assert not any(map(elsewhere, page.loads)), path
    for path in book.rglob("*.css"):
        style = path.read_text(encoding="utf-8")
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style), path


def test_formulas_come_with_what_typesets_them(book, pages):
    for notebook in sorted((paths.ROOT / "notebooks").rglob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        page = pages[book / notebook.relative_to(paths.ROOT).with_suffix(".html")]
        assert page.text.count('<div class="math notranslate') == text.count("$$") / 2, notebook
    with_formulas = [page for page in pages.values() if 'class="math' in page.text]
    loaded = [any("_static/tex-svg" in address for address in p.loads) for p in with_formulas]
    assert loaded and all(loaded)


def test_every_page_that_the_readme_links_is_in_the_book(book, pages):
    first = pages[book / "README.html"]
    assert (book / "index.html").read_text(encoding="utf-8") == first.text
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^):#]+)\.(?:ipynb|md)[)#]", readme):
        assert any(urlsplit(link).path == f"{name}.html" for link in first.links), name
    listed = {(book / urlsplit(link).path).resolve() for link in first.links}
    for pattern in ("notebooks/**/*.ipynb", "notebooks/*.md", "results/report/claims/*.md"):
        for path in paths.ROOT.glob(pattern):
            assert book / path.relative_to(paths.ROOT).with_suffix(".html") in listed, path


def test_the_public_surface_has_its_entries(book, pages):
    api = book / "notebooks" / "book" / "api"
    anchors = set().union(*(pages[path].anchors for path in pages if path.parent == api))
    core = {path.stem for path in (paths.ROOT / "lib").glob("[a-z]*.py")} | {"data"}
    assert core >= INTERNAL
    for name in sorted(core - INTERNAL):
        module = importlib.import_module(f"lib.{name}")
        found = inspect.getmembers(module, lambda v: inspect.isfunction(v) or inspect.isclass(v))
        own = [key for key, value in found if value.__module__ == module.__name__]
        public = {f"lib.{name}.{key}" for key in own if not key.startswith("_")}
        assert public and public <= anchors
    assert not [a for a in anchors for name in INTERNAL if a.startswith(f"lib.{name}.")]
