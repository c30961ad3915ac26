"""How the documentation becomes a site: `python -m sphinx -W --keep-going docs build/site`, then open build/site/index.html.

Sphinx with MyST reads the pages as they are on GitHub. What is here makes up for where the two differ: the order of the pages, links
into the repository, docstrings in Markdown. Nothing is fetched, neither by the build nor by who reads the site. `tests/test_site.py`
builds it.
"""

from __future__ import annotations

import inspect
import pydoc
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import attrs
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "contrib")]

import dooers  # noqa: E402  only now it is the one of this checkout

log = logging.getLogger(__name__)

# The pages in the order in which they are read, by what one wants to do. A page that is not there is left out.
NAVIGATION = {
    "Start": ["quickstart", "concepts", "examples"],
    "Write": ["handlers", "injection", "settings", "memory", "dispatch", "streaming"],
    "Connect": ["models", "channels", "front-ends", "client", "hosts", "background", "wire"],
    "Run": [
        "configuration",
        "stores",
        "migrations",
        "scaling",
        "security",
        "Survival <survival>",
        "deployment",
        "command-line",
        "playground",
    ],
    "Test": ["testing"],
    "Move": ["migrating", "The classic API <classic-api>", "decorator-api"],
    "Reference": [
        "reference/worker",
        "reference/handler",
        "reference/sending",
        "reference/models",
        "reference/settings",
        "reference/errors",
        "reference/analytics",
        "reference/client",
        "reference/testing",
        "reference/contrib",
    ],
    "Inside": ["architecture", "benchmarks", "changelog"],
}

# Modules of contrib that adapters are made of, and that no author of a worker imports.
INNER = {"attachments", "body", "channel", "door", "jwks", "progress", "redis_connection", "telling"}

project = "dooers"
version = release = dooers.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 4  # as GitHub does, so that one link fits both
suppress_warnings = ["misc.highlighting_failure"]  # the classic API's page says `reason?` for what may be left out
nitpicky = True  # a name in a signature that leads nowhere is a fault

default_role = "code"
autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
# By name: written out, these are a page of alternatives.
ALIASES = {name for name in dooers.__all__ if not isinstance(getattr(dooers, name), type)}
autodoc_type_aliases = {name: f"dooers.{name}" for name in ALIASES} | {
    "ResponseStreamEvent": "openai.ResponseStreamEvent"
}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
add_module_names = False
maximum_signature_line_length = 100

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"dooers {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_show_search_summary = False  # it would fetch the pages it found, which a browser does not do from the disk
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options: dict[str, object] = {"top_of_page_buttons": []}

linkcheck_anchors = False
linkcheck_ignore = ["repository/"]  # pages of this site that are made last


# ---------------------------------------------------------------- pages: their order, and links that leave docs/


def on_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A page as Sphinx wants it. On GitHub it is read as it stands in the file."""
    if name == "changelog":
        source[0] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    if name == "reference/contrib":
        source[0] += "".join(contrib())
    if name == "index":
        source[0] += "".join(toctree(app.env.found_docs))
    source[0] = re.sub(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)", lambda found: into_repository(name, found), source[0])


def toctree(there: set[str]) -> Iterator[str]:
    for caption, names in NAVIGATION.items():
        found = [name for name in names if name.split("<")[-1].strip(">") in there]
        if found:
            yield "\n\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(found) + "\n```\n"


def contrib() -> Iterator[str]:
    """The adapters, each with what it lets one import; constants and types by their names alone, as they have no docstrings."""
    for path in sorted((ROOT / "contrib" / "dooers_contrib").glob("[a-z]*.py")):
        module = f"dooers_contrib.{path.stem}"
        if path.stem not in INNER:
            try:
                adapter = import_module(module)
            except ImportError as error:
                log.warning("%s cannot be imported here: %s", module, error, type="site", subtype="contrib")
                continue
            named = {name: getattr(adapter, name) for name in adapter.__all__}
            plain = [name for name, value in named.items() if getattr(value, "__name__", None) != name]
            data = "".join(f"\n.. autodata:: {module}.{name}\n   :no-value:\n" for name in plain)
            yield f"\n\n## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n{data}```\n"


def into_repository(page: str, link: re.Match[str]) -> str:
    """Where a link that climbs leads on the site: out of docs/, to the page that has it, else to its text."""
    target = (ROOT / "docs" / page).parent / ".." / link[1]
    if target.resolve().is_relative_to(ROOT / "docs"):
        return link[0]
    path, anchor = target.resolve().relative_to(ROOT).as_posix(), link[2] or ""
    if path in PAGES:
        return f"]({PAGES[path]}{anchor})"
    if not target.is_file():
        log.warning("%s is no file of the repository", path, location=page, type="site", subtype="repository")
    return f"](repository:{path})"


# What has a page of its own here.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "examples": "examples.md"}
myst_url_schemes = {"http": None, "https": None, "mailto": None, "repository": {"url": "repository/{{path}}.html"}}


def sources(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for the text of every file that some page links to."""
    linked = {
        node["refuri"].removeprefix("repository/").removesuffix(".html")
        for name in app.env.found_docs
        for node in app.env.get_doctree(name).findall(nodes.reference)
        if node.get("refuri", "").startswith("repository/")
    }
    for path in sorted(linked):
        if (ROOT / path).is_file():
            text = (ROOT / path).read_text(encoding="utf-8")
            code = app.builder.highlighter.highlight_block(text, Path(path).suffix.lstrip(".") or "text")  # type: ignore[attr-defined]
            yield f"repository/{path}", {"title": path, "body": f"<h1>{path}</h1>{code}"}, "page.html"


# ---------------------------------------------------------------- docstrings


def on_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are in Markdown, as everything else; autodoc wants reStructuredText."""
    if what == "data" and lines and (inspect.getdoc(obj) or "").startswith(lines[0]):
        lines.clear()  # what a dict is
    parts = re.split(r"(?ms)^( *)```(\w*)\n(.*?)^ *```$", "\n".join(lines))
    text = restructured(parts[0])
    for indent, language, code, prose in zip(*(parts[start::4] for start in (1, 2, 3, 4)), strict=True):
        text += code_block(indent, language, code) + restructured(prose)
    lines[:] = text.split("\n")


def restructured(text: str) -> str:
    """What docstrings have of Markdown, beside blocks of code with fences, in the other language."""
    text = re.sub(r"(?m)(?<=\n\n)(?:^ {4}.*\n)+", lambda found: f".. code-block:: python\n\n{found[0]}", text)
    text = re.sub(r"(?m)^(`\w+`) {2,}(.+(?:\n {8,}.+)*)\n?", in_two_lines, text)  # a table of two columns
    text = re.sub(r"\[([^\]]+)\]\((https?://[^)]+)\)", r"`\1 <\2>`_", text)
    text = re.sub(r"(?m)^(?!\s*[-*] )(.*\S.*)\n(?=\s*[-*] )", r"\1\n\n", text)  # a list stands alone
    return re.sub(r"(?<![`:])`([^`<]+?) *`(?![`_])", r"``\1``", text)


def in_two_lines(found: re.Match[str]) -> str:
    told = re.sub(r"\n +", "\n    ", found[2])
    return f"{found[1]}\n    {told}\n"


def code_block(indent: str, language: str, code: str) -> str:
    body = "".join(f"    {line}\n" if line.strip() else "\n" for line in code.rstrip("\n").split("\n"))
    return f"{indent}.. code-block:: {language or 'text'}\n\n{body}"


# ---------------------------------------------------------------- names in signatures


# Whoever has one got it from the worker.
GIVEN = {
    f"dooers.{name}"
    for name in (
        "BroadcastManager",
        "ConnectionRegistry",
        "DispatchStream",
        "Persistence",
        "Repository",
        "WorkerAnalytics",
        "WorkerMemory",
        "WorkerSettings",
        "WorkerStats",
    )
}
# Nobody imports these: what a Starlette WebSocket looks like, what `worker.registered` says.
SHAPES = {"dooers.session.WebSocketLike", "dooers.registration.Registered"}


def on_unknown(app: Sphinx, env: object, node: Any, contnode: nodes.Node) -> nodes.Node:
    """What others define is shown, not linked: their inventories would have to be fetched. Names of ours have to lead somewhere."""
    name = node.get("reftarget", "")
    if name.removeprefix("dooers.") in ALIASES and node["reftype"] == "class":  # where classes stand, but no class
        domain = app.env.domains.python_domain
        return domain.resolve_xref(app.env, node["refdoc"], app.builder, "data", name, node, contnode)
    package, _, rest = name.partition(".")
    ours = package in ("dooers", "dooers_contrib") and name not in SHAPES and rest.partition(".")[0] not in INNER
    if ours and not isinstance(pydoc.locate(name), TypeVar):
        log.warning("%s is shown, and not in the reference", name, location=node["refdoc"], type="site", subtype="name")
    return contnode


def on_defaults(app: Sphinx, init: Any, is_bound: bool) -> None:
    """The defaults of an attrs class, whose `__init__` says where they are kept."""
    owner: Any = pydoc.locate(f"{init.__module__}.{init.__qualname__.removesuffix('.__init__')}")
    if init.__name__ == "__init__" and attrs.has(owner):
        found = inspect.signature(init)
        defaults = {str(one.alias): Default(one.default) for one in attrs.fields(owner)}
        parameters = [
            one.replace(default=defaults[name]) if name in defaults and one.default is not one.empty else one
            for name, one in found.parameters.items()
        ]
        init.__signature__ = found.replace(parameters=parameters)


class Default:
    """A default as one would write it, `...` where it is made anew."""

    def __init__(self, value: object) -> None:
        factory: Any = getattr(value, "factory", None)
        made: dict[Any, str] = {None: repr(value), list: "[]", dict: "{}", tuple: "()"}
        self.text = made.get(factory, "...")

    def __repr__(self) -> str:
        return self.text


def on_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """How something is made that nobody makes is not shown."""
    if name in GIVEN:
        return "", None
    return (re.sub(r"TypeAliasForwardRef\('([\w.]+)'\)", r"\1", signature), returns) if signature else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", on_page)
    app.connect("env-get-outdated", lambda *_: ["index"])  # it has the order of all pages
    app.connect("html-collect-pages", sources)
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("autodoc-before-process-signature", on_defaults, priority=900)
    app.connect("autodoc-process-signature", on_signature)
    app.connect("missing-reference", on_unknown)
