"""The `dooers` command: one module for each of its commands, `terminal.py` for what they share.

Not needed to serve in production: any ASGI server does that. What is heavy (uvicorn, the client, the stores) is imported by the command
that needs it: `--help` is asked for more often than anything else.
"""

try:
    from dooers.cli.terminal import app, main
except ModuleNotFoundError as missing:
    if missing.name not in ("rich", "typer"):
        raise
    # Whoever gets here has typed the command: a sentence helps, a traceback does not.
    raise SystemExit("pip install 'dooers-workers-server[cli]'") from None

# In the order of `dooers --help`: each registers its command.
from dooers.cli import new, run, chat, check, migrate, keys, exporting, importing  # noqa: I001
from dooers.cli.target import TargetError, load

__all__ = [
    "TargetError",
    "app",
    "chat",
    "check",
    "exporting",
    "importing",
    "keys",
    "load",
    "main",
    "migrate",
    "new",
    "run",
]
