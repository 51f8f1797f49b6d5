"""A plan, and what the phases of a schedule are."""

from collections.abc import Callable, Generator

import pytest

from transfer.phase import Outcome, Phase, Plan


@pytest.fixture
def plan() -> Plan:
    """Three stages: a stem, and of two blocks and one."""
    return Plan(
        stages=("a", "b", "c"), new=(), steps=100, n_train=50, batch_size=16,
        children=(("a.conv", "a.norm"), ("b.0", "b.1"), ("c.0",)),
    )  # fmt: skip


@pytest.fixture
def carried_out() -> Callable[[Generator[Phase, Outcome, None]], list[Phase]]:
    def collect(phases: Generator[Phase, Outcome, None]) -> list[Phase]:
        found = [next(phases)]
        while True:
            try:
                found.append(phases.send(Outcome(len(found) - 1, 1, 0.5, 1.0)))
            except StopIteration:
                return found

    return collect
