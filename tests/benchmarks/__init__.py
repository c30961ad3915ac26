"""Programs that measure, each run by hand; `docs/benchmarks.md` says which there are. Not tests."""
