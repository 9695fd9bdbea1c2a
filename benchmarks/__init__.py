"""Benchmarks of the single-process paths, and the figures that the project promises.

`pytest benchmarks` measures with pytest-benchmark; `python -m benchmarks.figures` prints each promised
figure beside what was measured. Collective benchmarks are in `chronolog bench`.
"""
