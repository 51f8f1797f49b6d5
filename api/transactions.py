"""One request is one transaction, committed before the answer leaves."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from api.site import SiteDep
from store.session import reading, transaction


def open_writing(site: SiteDep) -> Iterator[Session]:
    with transaction(site.engine) as session:
        yield session


def open_reading(site: SiteDep) -> Iterator[Session]:
    with reading(site.engine) as session:
        yield session


# `scope="function"`: the dependency ends, and so commits, before the answer is sent.
WriteDep = Annotated[Session, Depends(open_writing, scope="function")]
ReadDep = Annotated[Session, Depends(open_reading, scope="function")]
