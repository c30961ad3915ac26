"""dependency-injector without its wiring, which nobody here uses: `containers` and `providers`, for whoever here needs them.

The library imports its wiring with them, and that imports all of FastAPI where it is installed: a third of the time that `import dooers`
took. Who wires in a program of their own gets the real thing, then.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

__all__ = ["containers", "providers"]

_WIRING = "dependency_injector.wiring"


def _imported_later() -> ModuleType:
    """What stands where the wiring would be, and has it imported when somebody wires after all."""
    later = ModuleType(_WIRING)
    for name in ("wire", "unwire"):
        setattr(
            later, name, lambda *given, _name=name, **named: getattr(import_module(_WIRING), _name)(*given, **named)
        )
    return later


_IS_LATER = _WIRING not in sys.modules
if _IS_LATER:
    sys.modules[_WIRING] = _imported_later()
from dependency_injector import containers, providers  # noqa: E402

if _IS_LATER:
    del sys.modules[_WIRING]
