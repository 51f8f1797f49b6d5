"""When to try again, and how long to wait before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

RETRIED_STATUS = frozenset({429, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full jitter: the k-th wait is uniform in (0, min(longest_s, first_s * 2 ** k)] (k = 0, 1, …)."""

    first_s: float = 0.25
    longest_s: float = 8.0
    attempts: int = 6

    def waits(self, rng: Random) -> Iterator[float]:
        """One wait before each attempt but the first."""
        for k in range(self.attempts - 1):
            yield (1.0 - rng.random()) * min(self.longest_s, self.first_s * 2.0**k)


def retry_after_s(header: str | None, longest_s: float = 60.0) -> float | None:
    """The seconds of a Retry-After header; None for an absent or unusable one (dates are not used by this service)."""
    try:
        return min(max(float(header or ""), 0.0), longest_s)
    except ValueError:
        return None
