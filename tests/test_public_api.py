"""What `import dooers` promises: its names, sorted and complete, and a docstring on each."""

from __future__ import annotations

import ast
import inspect
import types
from importlib import import_module
from pathlib import Path

import pytest

import dooers

ROOT = Path(dooers.__file__).parent


def test_all_is_sorted_and_holds_every_public_name() -> None:
    public = [
        name
        for name, value in vars(dooers).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert dooers.__all__ == sorted(public)


def test_star_import_works() -> None:
    namespace: dict[str, object] = {}
    exec("from dooers import *", namespace)
    assert set(dooers.__all__) <= namespace.keys()


@pytest.mark.parametrize("name", dooers.__all__)
def test_a_public_name_has_a_docstring(name: str) -> None:
    value = getattr(dooers, name)
    if inspect.isclass(value):
        assert value.__doc__, name
        for method, member in vars(value).items():
            if inspect.isfunction(member) and not method.startswith("_"):
                assert member.__doc__, f"{name}.{method}"


CONTRIB = [f"dooers_contrib.{path.stem}" for path in (ROOT.parent / "contrib" / "dooers_contrib").glob("[a-z]*.py")]


@pytest.mark.parametrize("name", ["dooers.client", "dooers.testing", *sorted(CONTRIB)])
def test_what_else_can_be_imported_has_docstrings_too(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert inspect.getdoc(value), f"{name}.{public}"


@pytest.mark.parametrize("path", sorted(p.stem for p in ROOT.glob("*.py") if not p.stem.startswith("__")))
def test_a_module_says_what_it_is_and_declares_its_names(path: str) -> None:
    tree = ast.parse((ROOT / f"{path}.py").read_text())
    assert ast.get_docstring(tree), path
    if path in ("cli", "chat"):
        return
    module = import_module(f"dooers.{path}")
    assert list(module.__all__) == sorted(module.__all__, key=_as_ruff), path
    for name in module.__all__:
        assert hasattr(module, name), f"{path}.{name}"


def _as_ruff(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: the order the linter keeps `__all__` in."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_version_is_the_distributions() -> None:
    project = (ROOT.parent / "pyproject.toml").read_text()
    assert f'version = "{dooers.__version__}"' in project
    assert f"## {dooers.__version__}" in (ROOT.parent / "CHANGELOG.md").read_text()
