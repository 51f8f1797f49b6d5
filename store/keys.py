"""API keys `graft_<prefix>.<secret>`: 256 random bits, of which only the SHA-256 is stored."""

import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from domain.errors import Invalid, NotFound
from domain.ids import new_id
from store.clock import now
from store.inserts import insert
from store.session import reading, transaction
from store.settings import Settings
from store.tables import ApiKeyRow, WorkspaceRow

FIRST_WORKSPACE = "ws_default"
_KEY = re.compile(r"graft_([0-9a-z]{8,16})\.([A-Za-z0-9_-]{32,128})", re.ASCII)
_NOBODY = "0" * 64


def create_key(session: Session, workspace_id: str, name: str) -> tuple[ApiKeyRow, str]:
    """A new key of a workspace; the plain text is shown once and stored nowhere."""
    plaintext = new_plaintext()
    return _add(session, workspace_id, name, plaintext), plaintext


def new_plaintext() -> str:
    return f"graft_{secrets.token_hex(6)}.{secrets.token_urlsafe(32)}"


def find_key(session: Session, plaintext: str) -> ApiKeyRow | None:
    """The key this text is, unless revoked. An unknown prefix takes the same way as a wrong secret."""
    match = _KEY.fullmatch(plaintext)
    if match is None:
        return None
    row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.prefix == match[1]))
    same = hmac.compare_digest(_hash(match[2]), _NOBODY if row is None else row.secret_sha256)
    return row if same and row is not None and row.revoked_at is None else None


def list_keys(session: Session, workspace_id: str) -> list[ApiKeyRow]:
    """The keys of a workspace that are good for something, oldest first."""
    query = select(ApiKeyRow).where(ApiKeyRow.workspace_id == workspace_id, ApiKeyRow.revoked_at.is_(None))
    return list(session.scalars(query.order_by(ApiKeyRow.created_at, ApiKeyRow.id)))


def revoke_key(session: Session, workspace_id: str, key_id: str) -> None:
    mine = (ApiKeyRow.id == key_id, ApiKeyRow.workspace_id == workspace_id, ApiKeyRow.revoked_at.is_(None))
    if session.scalar(update(ApiKeyRow).where(*mine).values(revoked_at=now()).returning(ApiKeyRow.id)) is None:
        raise NotFound("key_not_found", "there is no such key in this workspace")


def ensure_first_key(engine: Engine, settings: Settings) -> str | None:
    """The first workspace and a key to enter it by, created where missing; any number of processes may do so at once.

    Embedded: the key lies in `home/key`, readable by its owner alone, and is returned.
    Distributed: it is the setting `bootstrap_key`; None if there is none.
    """
    if settings.embedded:
        plaintext: str | None = settings.bootstrap_key or read_key_file(settings.home) or new_plaintext()
    else:
        plaintext = settings.bootstrap_key
    if plaintext is not None:
        _check(plaintext)
    with reading(engine) as session:
        known = session.get(WorkspaceRow, FIRST_WORKSPACE) is not None
        if known and (plaintext is None or find_key(session, plaintext) is not None):
            return plaintext
    if plaintext is not None and settings.embedded and settings.bootstrap_key is None:
        plaintext = _keep_key_file(settings.home, plaintext)
    with transaction(engine) as session:
        first = insert(session, WorkspaceRow).values(id=FIRST_WORKSPACE, name="default")
        session.execute(first.on_conflict_do_nothing())
        if plaintext is not None and find_key(session, plaintext) is None:
            _add(session, FIRST_WORKSPACE, "first key", plaintext)
    return plaintext


def read_key_file(home: Path) -> str | None:
    """The key of an embedded installation, if it has one."""
    try:
        return (home / "key").read_text("ascii").strip() or None
    except FileNotFoundError:
        return None


def _keep_key_file(home: Path, plaintext: str) -> str:
    """Write the key file, or return the key of whoever wrote it first. It appears whole, with its mode."""
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".key.{secrets.token_hex(4)}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(plaintext + "\n")
        file.flush()
        os.fsync(descriptor)
    try:
        (home / "key").hardlink_to(partial)  # unlike a rename, fails if the file is there
    except FileExistsError:
        return read_key_file(home) or plaintext
    finally:
        partial.unlink()
    return plaintext


def _add(session: Session, workspace_id: str, name: str, plaintext: str) -> ApiKeyRow:
    prefix, secret = _check(plaintext)
    row = {
        "id": new_id("key"), "workspace_id": workspace_id, "name": name,
        "prefix": prefix, "secret_sha256": _hash(secret),
    }  # fmt: skip
    session.execute(insert(session, ApiKeyRow).values(row).on_conflict_do_nothing())
    added = session.scalar(select(ApiKeyRow).where(ApiKeyRow.prefix == prefix))
    if added is None or added.secret_sha256 != row["secret_sha256"] or added.revoked_at is not None:
        raise Invalid("bad_key", f"the prefix {prefix} is taken by another or a revoked key")
    return added


def _check(plaintext: str) -> tuple[str, str]:
    match = _KEY.fullmatch(plaintext)
    if match is None:
        detail = "a key is graft_<8 to 16 of 0-9a-z>.<32 to 128 of A-Za-z0-9_->"
        raise Invalid("bad_key", detail)
    return match[1], match[2]


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("ascii")).hexdigest()
