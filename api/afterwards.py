"""What follows a commit: ring a handler's bell, free bytes that nobody needs. What is lost, the sweep repairs."""

from collections.abc import Iterable
from functools import partial

from sqlalchemy.orm import Session

from api.site import Site
from store.session import after_commit


def wake(session: Session, site: Site, handler: str, row_id: str) -> None:
    after_commit(session, partial(site.doorbell.wake, handler, row_id))


def free(session: Session, site: Site, keys: Iterable[str]) -> None:
    for key in keys:
        after_commit(session, partial(site.blobs.delete, key))
