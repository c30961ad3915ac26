"""`examples/background_job_redis.py` with what `queued.py` makes of it."""

from __future__ import annotations

from services.queued import misbehaving

from examples import background_job_redis

__all__ = ["app", "jobs"]

background_job_redis.AGAIN = 1
for_good = background_job_redis.worker.override(model=misbehaving)  # kept, or it ends
for_good.__enter__()
app, jobs = background_job_redis.app, background_job_redis.jobs
jobs.idle_timeout = 1000
