"""The job of `benchmarks.job` with every trial full fine-tuning to its end."""

from benchmarks.job import IN_FULL
from benchmarks.job import measure as measure_kind
from benchmarks.table import Figure


def measure() -> list[Figure]:
    return measure_kind(IN_FULL)
