"""Timings and strengths, beside the peers: `python -m benchmarks`."""
