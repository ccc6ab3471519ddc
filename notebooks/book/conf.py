"""The book: README, notebooks as they are committed, the report's pages, the API of `lib`.

Its pages are files of the project, where they lie, so that a link means the same here and in the
repository. `make book` builds it into `build/book`.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # autodoc imports lib from here
# MathJax in one file, fonts included: formulas need no internet
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg-full.js"

project = "Why networks memorise"
html_title = project
root_doc = "README"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
include_patterns = [
    "README.md",
    "results/findings.md",
    "notebooks/**.ipynb",
    "notebooks/**.md",
    "results/report/**.md",
    "tests/FAULTS.md",
]
# folders that are not looked through; what other pages quote
exclude_patterns = [".*", "build", "data", "results/report/headline.md", "results/report/matrix.md"]
exclude_patterns += ["results/lite", "results/paper", "results/quick", "results/own"]

html_theme = "furo"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static", str(MATHJAX)]
html_css_files = ["wide.css"]

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # else every page would load them from a CDN
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
mathjax_path = MATHJAX.name

default_role = "code"  # docstrings write `name`
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False


API = ("penalties", "networks", "measures", "data", "runs", "watching")


def contents() -> dict[str, list[str]]:
    """The sidebar's pages by caption."""
    return {
        "Notebooks": notebooks("notebooks/*.ipynb"),
        "For courses": ["/notebooks/glossary", "/notebooks/book/lecturers"],
        "Solutions": notebooks("notebooks/solutions/*.ipynb"),
        "Results": ["/results/findings", "/results/report/report", "/tests/FAULTS"],
        "Code": [f"/notebooks/book/api/{page}" for page in API],
    }


def notebooks(pattern: str) -> list[str]:
    """Entries of a contents' list: each notebook's number and title."""
    entries = []
    for path in sorted(ROOT.glob(pattern)):
        title = nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix("# ")
        name = path.relative_to(ROOT).with_suffix("")
        entries.append(f"{path.name[:2]} {title} </{name}>")
    return entries


def toctree(entries: list[str], caption: str = "") -> str:
    """A list of pages for the sidebar, which does not show on the page."""
    options = [":hidden:", ":glob:", *([f":caption: {caption}"] if caption else [])]
    return "\n".join(["", "", "```{toctree}", *options, "", *entries, "```", ""])


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The contents stand on README and report, which have no sign of it in the repository."""
    if docname == root_doc:
        source[0] += "".join(
            toctree(pages, caption) for caption, pages in contents().items() if pages
        )
    if docname == "results/report/report":
        claims = [
            f"/results/report/claims/{letter}{digits}"
            for letter in "AS"
            for digits in "? ??".split()
        ]
        source[0] += toctree(claims)


def add_index(app: Sphinx, exception: Exception | None) -> None:
    """A server looks for index.html."""
    if exception is None:
        shutil.copy(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_index)
