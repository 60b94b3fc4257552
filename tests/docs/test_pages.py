"""The pages hang together: nothing is missing, and nothing points nowhere."""

import re
from pathlib import Path

import pytest

import sitq
import sitq.testing
from tests.docs.blocks import PAGES, blocks
from tests.specs import tables
from tests.support import ROOT

DOCS = ROOT / "docs"
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def links(page: Path) -> list[str]:
    """Returns where the links and pictures of a page point to."""
    return LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))


OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md", *ROOT.glob("*_v1.md"), *ROOT.glob("openspec/*.md")]
"""Pages without code that is run."""


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: f"{page.parent.name}/{page.name}")
def test_links_lead_somewhere(page: Path) -> None:
    """Each link to a file, and to a heading in it, finds it."""
    for link in links(page):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def test_the_navigation_has_every_page() -> None:
    """No page is left out, and none is listed that is not there."""
    nav = (
        (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2].partition("\nmarkdown_extensions:")[0]
    )
    assert sorted(re.findall(r"\S+\.md", nav)) == sorted(page.name for page in DOCS.glob("*.md"))


def test_the_reference_has_every_public_name() -> None:
    """What can be imported from sitq and sitq.testing stands in the API reference, each under its own name."""
    listed = re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    public = {f"sitq.{name}" for name in sitq.__all__} | {f"sitq.testing.{name}" for name in sitq.testing.__all__}
    assert public <= set(listed)
    assert len(listed) == len(set(listed))


def test_every_example_is_listed() -> None:
    """The examples' page names each program of the folder."""
    listed = {link for link in links(ROOT / "examples" / "README.md") if link.endswith(".py")}
    assert listed == {path.name for path in (ROOT / "examples").glob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_fetches_nothing_from_elsewhere(page: Path) -> None:
    """Pictures and scripts are the site's own, and diagrams need no library from a network; links may lead out."""
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"!\[[^\]]*\]\(\w+:|<(?:script|link|img|iframe)\b|^```mermaid", text, re.MULTILINE)
    assert "\n  font: false" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("picture", sorted((DOCS / "assets").glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_used_and_can_be_read_aloud(picture: Path) -> None:
    """A page shows it, with a text for whoever does not see it."""
    shown = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    found = re.findall(rf"!\[([^\]]+)\]\(assets/{re.escape(picture.name)}\)", shown)
    assert found
    assert all(len(text) > 20 for text in found)


def test_the_two_commands_stand_on_the_first_screen() -> None:
    """A reader of the README sees within thirty lines what to type."""
    first = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30]
    assert "pip install uv && uv run playground.py" in first
    assert "pip install uv && uv run pytest" in first


def test_every_lifespan_lets_its_server_end() -> None:
    """A worker that lives inside of a service, in a page or an example, has a shutdown_timeout."""
    codes = [block.code for page in PAGES for block in blocks(page) if block.language == "python"]
    codes += [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    found = [re.findall(r"Worker\([^\n]*", code) for code in codes if "lifespan" in code]
    workers = [worker for each in found for worker in each if "AsyncIterator" not in worker]
    assert len(workers) >= 5
    assert [worker for worker in workers if "shutdown_timeout=" not in worker] == []


def test_the_page_on_workers_names_every_logger() -> None:
    """Whoever configures logging finds there each name that SPEC_v1.md lists, and with it the code has."""
    named = set(re.findall(r"`(sitq(?:\.\w+)+)`", (DOCS / "workers.md").read_text(encoding="utf-8")))
    assert {row["logger"] for row in tables((ROOT / "SPEC_v1.md").read_text(encoding="utf-8"))["Loggers"]} <= named
