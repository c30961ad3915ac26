"""An adapter whose library is not there says what to install: its module may be named otherwise, and be somebody else's on PyPI."""

from __future__ import annotations

import importlib
import re
import sys

import pytest

LIBRARIES = {
    "ag_ui": "ag_ui",
    "anthropic": "anthropic",
    "google": "google.genai",
    "langchain": "langchain_core",
    "langgraph": "langchain_core",
    "openai": "openai",
    "openai_agents": "agents",
    "opentelemetry": "opentelemetry",
    "pydantic_ai": "pydantic_ai",
}


@pytest.mark.parametrize("adapter", LIBRARIES)
def test_without_its_library_it_says_what_to_install(adapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module(f"dooers_contrib.{adapter}")
    for name in list(sys.modules):
        if f"{name}.".startswith(f"{LIBRARIES[adapter]}."):
            monkeypatch.setitem(sys.modules, name, None)
        elif name in (f"dooers_contrib.{adapter}", "dooers_contrib.langchain"):
            monkeypatch.delitem(sys.modules, name)
    told = f"pip install 'dooers-workers-server[{adapter.replace('_', '-')}]'"
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(told)}$"):
        importlib.import_module(f"dooers_contrib.{adapter}")
