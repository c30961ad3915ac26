"""A crowd comes and goes for some seconds: nothing of it is left behind. (`tests/benchmarks/soak.py` does that for minutes.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from services.soaking import Crowd, served

from dooers import WorkerConfig

PEOPLE, SECONDS = 40, 6


@pytest.fixture(params=["worker_config", "postgres_config"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Where a database is that nobody else has."""
    config: WorkerConfig = request.getfixturevalue(request.param)
    names = ("type", "name", "host", "port", "user", "password")
    return {f"database_{name}": getattr(config, f"database_{name}") for name in names}


async def test_when_everybody_has_gone_nothing_of_them_is_left(options: dict[str, Any], tmp_path: Path) -> None:
    with served(tmp_path, **options) as server:
        # The first crowd fills what is kept for those who come after; the second is to add nothing to it.
        await Crowd(server.address, PEOPLE, pause=0.5, stay=3, seed=1).during(SECONDS)
        before = await server.at_rest(look=True)
        crowd = Crowd(server.address, PEOPLE, pause=0.5, stay=3, seed=2)
        await crowd.during(SECONDS)
        after = await server.at_rest(look=True)
    assert crowd.failures == []
    assert server.complaints == []
    assert crowd.done["turns"] > PEOPLE
    # PostgreSQL's writers and connections come and go with the work; they are bounded, the rest is gone.
    assert after.tasks <= before.tasks + 2
    assert after.files <= before.files + 2
    assert after.threads <= before.threads
    more = {
        name: (before.objects.get(name, 0), count)
        for name, count in after.objects.items()
        if name.startswith("dooers") and count > before.objects.get(name, 0)
    }
    assert more == {}
