from random import Random

from hypothesis import given
from hypothesis import strategies as st

from graft.retry import Backoff, retry_after_s


@given(st.integers(1, 12), st.floats(0.01, 5), st.floats(0.01, 60), st.integers())
def test_waits_stay_below_a_doubling_ceiling(attempts: int, first_s: float, longest_s: float, seed: int) -> None:
    waits = list(Backoff(first_s, longest_s, attempts).waits(Random(seed)))
    assert len(waits) == attempts - 1
    assert all(0 < wait <= min(longest_s, first_s * 2**k) for k, wait in enumerate(waits))


def test_retry_after_is_seconds_or_nothing() -> None:
    assert retry_after_s("2.5") == 2.5
    assert retry_after_s("-1") == 0
    assert retry_after_s("86400") == 60
    assert retry_after_s("Wed, 21 Oct 2026 07:28:00 GMT") is None
    assert retry_after_s(None) is None
