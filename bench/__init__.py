"""Benchmarks: each is `python -m bench.NAME`, and writes `bench/results/NAME.json`."""
