"""The benchmark suite: what dooers does, each thing beside the bare limit that was measured in the same run. Not a test.

`PYTHONPATH=.:tests python -m benchmarks.suite --help`. `cells.py` is the table of what is measured; `docs/benchmarks.md` is what came out.
"""
