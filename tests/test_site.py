"""The documentation as a site: built without a warning, with every page in its navigation; links lead somewhere, and it needs no net.

Links to other sites are not followed here. `python -m sphinx -b linkcheck docs build/links` does, on a machine that has a net.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.async_api import async_playwright
from snippets import ROOT, Block, blocks
from sphinx.util.inventory import InventoryFile
from tables import WRITE
from test_docstrings import BLOCKS, SETUPS
from test_readme import OF_THEIR_OWN, PROGRAMS

DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))]
MODULES = ["dooers", "dooers.client", "dooers.testing"]
CONTRIB = ROOT / "contrib" / "dooers_contrib"
CONF = runpy.run_path(str(DOCS / "conf.py"))


class Page(HTMLParser):
    """What a built page links to, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


class Site:
    """A built site, its pages by their paths, and what the build had to say."""

    def __init__(self, root: Path, told: str) -> None:
        self.root, self.told = root, told
        self.pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "--keep-going",
        "-d",
        str(root / "trees"),
        "docs",
        str(root / "html"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if not (root / "html" / "objects.inv").exists():
        pytest.fail(f"the build was given up: {done.stderr[-1000:]}", pytrace=False)
    return Site(root / "html", done.stdout + done.stderr)


# ---------------------------------------------------------------- the build


def test_the_build_has_nothing_to_complain_about(site: Site) -> None:
    assert site.told == ""


def test_every_page_is_in_the_navigation_once_and_nothing_else_is() -> None:
    named = Counter(re.sub(r".*<(.+)>", r"\1", entry) for entries in CONF["NAVIGATION"].values() for entry in entries)
    there = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert there - set(named) == set(), "docs/conf.py: put these into NAVIGATION, where one would read them"
    assert set(named) - there == set(), "docs/conf.py: NAVIGATION names pages that there are not"
    assert named.total() == len(named)


def test_the_readme_leads_to_every_page() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in DOCS.glob("*.md")} - {"docs/changelog.md"}
    assert pages - set(links(ROOT / "README.md")) == set(), "README.md: its table has no link to these"


@pytest.mark.parametrize(
    "module",
    [*MODULES, *(f"dooers_contrib.{p.stem}" for p in sorted(CONTRIB.glob("[a-z]*.py")) if p.stem not in CONF["INNER"])],
)
def test_every_public_name_has_its_place_in_the_reference(module: str, site: Site) -> None:
    inventory = InventoryFile.loads((site.root / "objects.inv").read_bytes(), uri="").data
    known = {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}
    # The same may have two names, and is found under one of them.
    ways = {
        id(getattr(import_module(other), name))
        for other in MODULES
        for name in import_module(other).__all__
        if f"{other}.{name}" in known
    }
    missing = [
        name
        for name in import_module(module).__all__
        if f"{module}.{name}" not in known and id(getattr(import_module(module), name)) not in ways
    ]
    assert missing == [], "docs/reference/ has no place for these"


# ---------------------------------------------------------------- links


def test_every_link_within_the_site_leads_to_something(site: Site) -> None:
    faults = []
    for path, page in site.pages.items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target not in site.pages and not target.is_file():
                faults.append(f"{path.relative_to(site.root)}: {link}: no such file")
            elif parts.fragment and target in site.pages and unquote(parts.fragment) not in site.pages[target].ids:
                faults.append(f"{path.relative_to(site.root)}: {link}: no such anchor")
    assert faults == []


def test_every_link_works_where_the_pages_are_read_as_files() -> None:
    """On GitHub, README.md and CHANGELOG.md too: what is linked is there, with that heading."""
    faults = []
    for page in (*PAGES, "CHANGELOG.md"):
        for link in links(ROOT / page):
            parts = urlsplit(link)
            target = ((ROOT / page).parent / parts.path).resolve() if parts.path else ROOT / page
            if parts.scheme:
                continue
            if not target.exists():
                faults.append(f"{page}: {link}: no such file")
            elif parts.fragment and (target.suffix != ".md" or parts.fragment not in anchors(target)):
                faults.append(f"{page}: {link}: no such heading")
    assert faults == []


def test_links_to_other_sites_are_whole_and_encrypted(site: Site) -> None:
    outside = {link for page in site.pages.values() for link in page.links if urlsplit(link).scheme}
    odd = [link for link in outside if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(:\d+)?(/[^\s<>]*)?", link)]
    assert odd == []


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links; not those in code."""
    text = prose(page.read_text(encoding="utf-8"))
    for found in re.finditer(
        r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]: (\S+)", text, re.MULTILINE
    ):
        yield found[1] or found[2]


def anchors(page: Path) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    found = Counter[str]()
    names = set()
    for heading in re.findall(r"(?m)^#{1,6}\s+(.+?)\s*#*$", fenced(page.read_text(encoding="utf-8"))):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if found[name] else name)
        found[name] += 1
    return names


def fenced(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"(?ms)^(`{3,}|~{3,}).*?^\1\s*$", "", text)


def prose(text: str) -> str:
    return re.sub(r"(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)(?!\])", "", fenced(text))


# ---------------------------------------------------------------- in a browser, without a net


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    outside = {load for page in site.pages.values() for load in page.loads if urlsplit(load).scheme not in ("", "data")}
    assert outside == set()
    for sheet in site.root.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


async def test_it_is_read_and_searched_from_the_disk(site: Site) -> None:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("this test drives a Chromium: apt-get install chromium")
    asked: list[str] = []
    faults: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page(viewport={"width": 360, "height": 780})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        for name in ("index", "wire", "configuration", "reference/worker"):
            await page.goto(f"file://{site.root}/{name}.html")
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{name} is wider than a phone"
            )
        await page.goto(f"file://{site.root}/search.html?q=idempotency_key")
        await page.locator('ul.search a[href^="reference/worker.html"]').first.wait_for()  # they come one by one
        await browser.close()
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert faults == []


# ---------------------------------------------------------------- how much of the code on the pages runs


def executed() -> set[tuple[str, int]]:
    """Where the Python blocks begin that a test runs."""
    run = {(block.page, block.line) for program in PROGRAMS for block in program}
    for page in OF_THEIR_OWN:  # whose own tests run every block: test_classic_api.py, test_testing_plugin.py
        run |= {(block.page, block.line) for block in blocks(page)}
    return run


def is_python(block: Block) -> bool:
    return block.language in ("python", "py", "python3", "pycon")


def test_every_python_block_of_every_page_is_run_and_the_page_of_examples_says_how_many() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    python = [block for block in every if is_python(block)]
    run = executed()
    assert [block.place for block in python if (block.page, block.line) not in run] == []
    lines = sum(block.text.count("\n") for block in python)
    pages = len({block.page for block in python})
    shell = [block for block in every if block.language == "sh"]
    commands = re.findall(r"(?m)(?:^|[;&|] ?|/)dooers [a-z]", "\n".join(block.text for block in shell))
    told = (
        f"**{len(python)} of {len(python)}** Python blocks are run, {lines} lines on {pages} pages, README.md among them.\n"
        f"{len(commands)} command lines of `dooers` in {len(shell)} blocks are read by the command line's own parser.\n"
        f"Of {sum(map(len, BLOCKS.values()))} blocks in docstrings {sum(len(BLOCKS[name]) for name in SETUPS)} are run, all are Python."
    )
    page = DOCS / "examples.md"
    begin = "<!-- tests/test_site.py writes this with DOOERS_TEST_WRITE_TABLES=1: begin -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    between, after = rest.split("<!-- end -->")
    if WRITE:
        page.write_text(f"{before}{begin}\n\n{told}\n\n<!-- end -->{after}", encoding="utf-8")
        between = told
    assert between.strip() == told, "run it with DOOERS_TEST_WRITE_TABLES=1"
