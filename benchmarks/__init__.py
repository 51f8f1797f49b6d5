"""Measurements: one file per question, each prints a table and keeps its figures in `benchmarks/out/<name>.json`."""
