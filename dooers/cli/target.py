"""What a command is about: `MODULE:NAME` to a WorkerServer or an ASGI application, or one sentence that says why there is none."""

from __future__ import annotations

import inspect
import os
import sys
import tomllib
from collections.abc import Iterable
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from dooers.cli.terminal import to_log
from dooers.server import WorkerServer

__all__ = ["TargetError", "load", "named", "worker_of"]


class TargetError(Exception):
    """What was asked for cannot be served; the text is one sentence for whoever asked."""


def load(target: str) -> Any:
    """The WorkerServer or ASGI application that `MODULE:NAME` names. TargetError, with a suggestion, where there is none."""
    name, _, attribute = target.partition(":")
    if not name or not attribute or name.endswith(".py") or "/" in name:
        meant = name.removesuffix(".py").strip("./").replace("/", ".")
        raise TargetError(
            f"expected MODULE:NAME, got {target!r}; did you mean {meant or 'app'}:{attribute or 'worker'}?"
        )
    module = _import(name, attribute)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise TargetError(f"{name} has no {attribute!r}{_instead(module, attribute)}") from None
    if not _servable(found):
        what = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise TargetError(f"{target} is {what}, not a WorkerServer or an ASGI application{_instead(module, attribute)}")
    return found


def named(target: str | None) -> str:
    """What was named, or else what the project here says that its worker is. TargetError where neither does."""
    if target is not None:
        return target
    worker: Any = None
    try:
        with Path("pyproject.toml").open("rb") as file:
            worker = tomllib.load(file)
        for name in ("tool", "dooers", "worker"):
            worker = worker.get(name) if isinstance(worker, dict) else None
    except FileNotFoundError:
        pass
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise TargetError(f"pyproject.toml cannot be read: {error}") from None
    if not isinstance(worker, str):
        raise TargetError(
            'expected MODULE:NAME, e.g. app:worker; or name it once in pyproject.toml, as [tool.dooers] worker = "app:worker"'
        )
    return worker


def worker_of(target: str | None) -> WorkerServer:
    """The worker that a command is about: looked for in the current directory first."""
    target = named(target)
    sys.path.insert(0, str(Path.cwd()))
    to_log()
    with redirect_stdout(sys.stderr):  # what a module says while it is imported is no answer of ours
        worker = load(target)
    if not isinstance(worker, WorkerServer):
        raise TargetError(f"{target} is an ASGI application; expected the WorkerServer itself")
    return worker


def _import(name: str, attribute: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if name != absent and not name.startswith(f"{absent}."):
            raise TargetError(f"{name} needs the module {absent!r}, which is not installed") from None
        near = get_close_matches(absent.rpartition(".")[2], _modules_beside(absent), 1)
        if near:
            meant = ".".join([*absent.split(".")[:-1], near[0]]) + name.removeprefix(absent)
            raise TargetError(f"there is no module {absent!r}; did you mean {meant}:{attribute}?") from None
        raise TargetError(f"there is no module {absent!r} here; run this in the directory that holds it") from None
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {type(error).__name__}: {error}{_where(error)}") from None


def _modules_beside(name: str) -> set[str]:
    """The names of modules that could have been meant: those next to the one that is missing."""
    parent = name.rpartition(".")[0]
    folders: Iterable[str] = getattr(import_module(parent), "__path__", ()) if parent else [os.getcwd()]
    return {
        entry.stem
        for folder in folders
        for entry in Path(folder).iterdir()
        if entry.suffix == ".py" or (entry.is_dir() and any(entry.glob("*.py")))
    }


def _where(error: BaseException) -> str:
    """The place of an error: where Python says it lies in a text, else the deepest line that ran, of those that lie in a file."""
    if isinstance(error, SyntaxError):
        return ""  # says so itself
    lines = [line for line in extract_tb(error.__traceback__) if not line.filename.startswith("<")]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


def _instead(module: ModuleType, attribute: str) -> str:
    """The name in the module that was probably meant: one like it, else the first that can be served."""
    known = [name for name, value in vars(module).items() if _servable(value)]
    near = get_close_matches(attribute, known, 1) or known
    return f"; did you mean {module.__name__}:{near[0]}?" if near else ""


def _servable(value: Any) -> bool:
    """A WorkerServer, or something to be awaited with (scope, receive, send). Handlers are generators, and so are neither."""
    if isinstance(value, WorkerServer):
        return True
    if isinstance(value, type) or not callable(value):
        return False
    called = value if inspect.isfunction(value) else type(value).__call__
    if not inspect.iscoroutinefunction(called):
        return False
    try:
        inspect.signature(value).bind(None, None, None)
    except (TypeError, ValueError):
        return False
    return True
