"""`examples/background_job.py` with what `queued.py` makes of it."""

from __future__ import annotations

from services.queued import hurried

__all__ = ["app", "jobs"]

example = hurried("background_job")
app, jobs = example.app, example.jobs
example.again.wait = 1
jobs.worker_defaults.update(fetch_job_polling_interval=0.2, update_heartbeat_interval=0.5)
jobs.periodic(cron="* * * * * *", periodic_id="often")(example.rescue)  # each second
