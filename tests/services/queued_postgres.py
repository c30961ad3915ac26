"""`examples/background_job.py` with what `queued.py` makes of it."""

from __future__ import annotations

from procrastinate import RetryStrategy
from services.queued import misbehaving

from examples import background_job

__all__ = ["app", "jobs"]

background_job.again.wait = 1
for_good = background_job.worker.override(model=misbehaving)  # kept, or it ends
for_good.__enter__()
app, jobs = background_job.app, background_job.jobs
jobs.worker_defaults.update(fetch_job_polling_interval=0.2, update_heartbeat_interval=0.5)
jobs.periodic(cron="* * * * * *", periodic_id="often")(background_job.rescue)  # each second
