"""`Client`: everything the service offers, as typed Python.

from graft import Client

with Client() as client:
    dataset = client.datasets.wait(client.datasets.upload("photos/").id)
    job = client.jobs.submit(dataset.id, trials=20)
    for event in client.jobs.events(job.id):
        ...
    client.jobs.download_bundle(job.id, "photos.zip")
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from graft.home import find
from graft.resources.datasets import Datasets
from graft.resources.jobs import Jobs, Trials
from graft.resources.keys import Keys
from graft.resources.sources import Sources
from graft.retry import Backoff
from graft.transport import Transport, real_sleep


class Client:
    """A connection to one service: `url` and `key`, else GRAFT_URL and GRAFT_API_KEY, else the embedded service of
    `home` (GRAFT_HOME or ~/.graft). NoService if there is none of these."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        home: Path | str | None = None,
        timeout_s: float = 30.0,
        backoff: Backoff | None = None,
        sleep: Callable[[float], None] = real_sleep,
    ) -> None:
        self._transport = Transport(
            find(url, key, home), backoff=backoff or Backoff(), timeout_s=timeout_s, sleep=sleep
        )
        self.datasets = Datasets(self._transport)
        self.jobs = Jobs(self._transport)
        self.trials = Trials(self._transport)
        self.sources = Sources(self._transport)
        self.keys = Keys(self._transport)

    @property
    def url(self) -> str:
        return self._transport.address.url

    def methods(self) -> dict[str, Any]:
        """The catalogue: tasks, backbones, parts with their ranges, and the default search space."""
        answer: dict[str, Any] = self._transport.send("GET", "/methods").json()
        return answer

    def workspace(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._transport.send("GET", "/workspace").json()
        return answer

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
