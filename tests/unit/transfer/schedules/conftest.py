"""A plan, and what the phases of a schedule are."""

import pytest

from transfer.phase import Plan


@pytest.fixture
def plan() -> Plan:
    """Three stages: a stem, and of two blocks and one."""
    return Plan(
        stages=("a", "b", "c"), new=(), steps=100, n_train=50, batch_size=16,
        children=(("a.conv", "a.norm"), ("b.0", "b.1"), ("c.0",)),
    )  # fmt: skip
