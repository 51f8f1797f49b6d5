"""Bearer key -> workspace. Ids of another workspace are told apart from missing ones by nobody."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.site import SiteDep
from domain.errors import Unauthorized
from store.keys import find_key
from store.session import reading

_bearer = HTTPBearer(auto_error=False, description="A key of this installation, `graft_<prefix>.<secret>`.")
_MAX_KEY = 200


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: everything a route may touch is of this workspace."""

    workspace_id: str
    key_id: str


def find_caller(
    site: SiteDep, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None
) -> Caller:
    """The caller of a key; Unauthorized without one. Its own short transaction, so that long streams hold none."""
    if given is None:
        raise Unauthorized("unauthorized", "give a key of this installation: Authorization: Bearer <key>")
    if len(given.credentials) <= _MAX_KEY and given.credentials.isascii() and given.credentials.isprintable():
        with reading(site.engine) as session:
            row = find_key(session, given.credentials)
            if row is not None:
                return Caller(row.workspace_id, row.id)
    raise Unauthorized("unauthorized", "this is no key of this installation, or it was revoked")


CallerDep = Annotated[Caller, Depends(find_caller)]
