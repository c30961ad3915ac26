"""How smooth the page is while something goes on in it: frames a second, and tasks that held it up. Not a test."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from browser.window import Window

__all__ = ["Smoothness", "measured", "watch"]

# Frames are counted as the page is given them; a long task is one of 50 ms or more, as browsers have it.
WATCH = """() => {
  const seen = { frames: [], tasks: [], since: performance.now(), last: performance.now() };
  const next = (now) => { seen.frames.push(now - seen.last); seen.last = now; seen.id = requestAnimationFrame(next); };
  seen.id = requestAnimationFrame(next);
  seen.observer = new PerformanceObserver((list) => seen.tasks.push(...list.getEntries().map((one) => one.duration)));
  seen.observer.observe({ type: "longtask" });
  window.seen = seen;
}"""
TELL = """() => {
  const { frames, tasks, since, id, observer } = window.seen;
  tasks.push(...observer.takeRecords().map((one) => one.duration));
  observer.disconnect();
  cancelAnimationFrame(id);
  return { seconds: (performance.now() - since) / 1000, frames, tasks };
}"""


@frozen
class Smoothness:
    seconds: float
    frames: list[float]
    tasks: list[float]

    @property
    def fps(self) -> float:
        return len(self.frames) / self.seconds

    @property
    def worst(self) -> float:
        """The longest time without a frame, in milliseconds."""
        return max(self.frames, default=0.0)

    def __str__(self) -> str:
        late = sorted(self.frames)[int(len(self.frames) * 0.99)] if self.frames else 0.0
        return (
            f"{self.seconds:.1f} s, {self.fps:.0f} frames/s, 99% of frames within {late:.0f} ms, longest {self.worst:.0f} ms, "
            f"{len(self.tasks)} long tasks, longest {max(self.tasks, default=0):.0f} ms, {sum(self.tasks):.0f} ms in all"
        )


async def watch(window: Window) -> None:
    await window.page.evaluate(WATCH)


async def measured(window: Window) -> Smoothness:
    found: dict[str, Any] = await window.page.evaluate(TELL)
    return Smoothness(**found)
