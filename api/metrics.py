"""What Prometheus may ask: requests by route, jobs and trials by state, the oldest waiting lot, workers alive."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import Engine

from domain.errors import GraftError
from domain.states import JobState, TrialState
from store.counts import by_state, oldest_waiting_lot_s, workers_alive
from store.session import reading
from store.tables import DatasetRow, JobRow, TrialRow

disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for every counter, which nobody asks for
_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)


class Metrics:
    """Counters of this process and gauges read from the database when they are asked for; its own registry."""

    def __init__(self, engine: Engine, *, alive_s: float) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("graft_http_requests", "Answers sent", labels, registry=self.registry)
        self._seconds = Histogram(
            "graft_http_request_seconds", "Time to the first byte of the answer", ("method", "route"), buckets=_BUCKETS,
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(_Rows(engine, alive_s))

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Rows:
    """Gauges over the tables; absent while the database does not answer, `graft_database_up` says so."""

    def __init__(self, engine: Engine, alive_s: float) -> None:
        self._engine = engine
        self._alive_s = alive_s

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("graft_database_up", "1 while the database answers")
        try:
            with reading(self._engine) as session:
                jobs, trials = by_state(session, JobRow), by_state(session, TrialRow)
                datasets = by_state(session, DatasetRow)
                age_s, alive = oldest_waiting_lot_s(session), workers_alive(session, self._alive_s)
        except GraftError:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield _states("graft_jobs", "Jobs by state", {str(s): 0 for s in JobState} | jobs)
        yield _states("graft_trials", "Trials by state", {str(s): 0 for s in TrialState} | trials)
        yield _states("graft_datasets", "Datasets by state", datasets)
        yield GaugeMetricFamily("graft_queue_age_seconds", "Age of the oldest lot that waits for a worker", value=age_s)
        yield GaugeMetricFamily("graft_workers_alive", "Workers seen within the last lease", value=alive)


def _states(name: str, what: str, counts: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, what, labels=["state"])
    for state, n in counts.items():
        family.add_metric([state], n)
    return family
