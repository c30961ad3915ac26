"""`examples/background_job_redis.py` with what `queued.py` makes of it."""

from __future__ import annotations

from services.queued import hurried

__all__ = ["app", "jobs"]

example = hurried("background_job_redis")
app, jobs = example.app, example.jobs
example.AGAIN = 1
jobs.idle_timeout = 1000
