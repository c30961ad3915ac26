"""`dooers new`: a project that runs and has a test that passes. Its files are in `skeleton/`."""

from __future__ import annotations

import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dooers.cli.target import TargetError
from dooers.cli.terminal import BEGIN, app, fail, out

__all__ = ["FILES", "make", "new"]

# Where each file of a project comes from. None is named as what it becomes where some tool, ours or git, would take it for that.
FILES = {
    "app.py": "app.py",
    "tests/conftest.py": "conftest.py",
    "tests/test_app.py": "test_app.py.in",
    "pyproject.toml": "pyproject.toml.in",
    "README.md": "README.md.in",
    ".gitignore": "gitignore",
}
# A name that is a directory and, by the rules of packages, a package too.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


@app.command(rich_help_panel=BEGIN, epilog="Example: `dooers new demo && cd demo && dooers run --open`")
def new(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The project's name, and that of its new directory here.")
    ],
) -> None:
    """Begin a project: a worker that streams, has settings and calls a tool, with tests that pass.

    It makes the directory NAME here, and touches nothing that is there.
    """
    try:
        make(name, Path.cwd())
    except TargetError as error:
        fail(str(error), 2)
    except OSError as error:
        fail(f"cannot make {name}: {error.strerror} ({error.filename})", 1)
    steps = [f"cd {name}", "pytest", "dooers run --open", "dooers check"]
    about = ["", "test the worker, without a server", "serve it, and talk to it in the browser", "see what is missing"]
    if find_spec("pytest") is None:
        steps[1:1], about[1:1] = ["pip install -e '.[dev]'"], ["install pytest"]
    lines = "\n".join(f"  {step:<26}{why}".rstrip() for step, why in zip(steps, about, strict=True))
    out().print(
        f"made {name}/: the worker is in app.py, its tests are in tests/\n\n{lines}", markup=False, soft_wrap=True
    )


def make(name: str, where: Path) -> None:
    """The project, in a new or empty directory. TargetError for a name that is none, or one that is taken."""
    from dooers import __version__

    if not _NAME.fullmatch(name):
        meant = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip("-._")[:64].strip("-._")
        raise TargetError(
            f"NAME: expected letters, digits, '-', '_' and '.', beginning and ending with a letter or digit, got {name!r}; "
            f"did you mean {meant or 'demo'!r}?"
        )
    folder = where / name
    if folder.exists() or folder.is_symlink():
        if not folder.is_dir():
            raise TargetError(f"{name} is there already, and is no directory; choose another name")
        if found := sorted(entry.name for entry in folder.iterdir()):
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise TargetError(
                f"{name} is not empty: it holds {', '.join(found[:3])}{more}; choose another name, or empty it"
            )
    skeleton = files("dooers.cli").joinpath("skeleton")
    for path, source in FILES.items():
        text = skeleton.joinpath(source).read_text(encoding="utf-8")
        if source.endswith(".in"):
            text = text.replace("@NAME@", name).replace("@VERSION@", __version__)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("x", encoding="utf-8", newline="\n") as file:  # never over what came meanwhile
            file.write(text)
