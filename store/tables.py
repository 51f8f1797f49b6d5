"""The tables. Rows are the truth: messages, studies and processes are rebuilt from them.

Times are seconds since 1970 by the database's clock (`clock.now()`), never a worker's. Every row of a user carries its
`workspace_id`. Rows that a worker works on (`datasets`, `jobs`, `lots`) carry the same lease columns, so that one
claim, one heartbeat and one sweep serve them all.
"""

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, MetaData, String, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from store.clock import now

# None is SQL NULL, never the JSON word null: `IS NULL` then means what it says.
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Id = String(40)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: Json, list[Any]: Json}  # noqa: RUF012


class Leased:
    """Who works on this row, under which fence, and until when. `fence` rises with every claim."""

    owner: Mapped[str | None] = mapped_column(String(80))
    fence: Mapped[int] = mapped_column(default=0, server_default="0")
    lease_until: Mapped[float | None] = mapped_column(index=True)
    attempt: Mapped[int] = mapped_column(default=0, server_default="0")
    not_before: Mapped[float] = mapped_column(default=0.0, server_default="0")
    woken_at: Mapped[float] = mapped_column(default=0.0, server_default="0")


class WorkspaceRow(Base):
    __tablename__ = "workspaces"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(server_default=now())


class ApiKeyRow(Base):
    """Only the SHA-256 of a key's secret is kept; `prefix` finds the row."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(server_default=now())
    revoked_at: Mapped[float | None]


class DatasetRow(Leased, Base):
    __tablename__ = "datasets"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str] = mapped_column(String(200))
    task: Mapped[str] = mapped_column(String(40))
    state: Mapped[str] = mapped_column(String(20))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)  # of the upload
    sha256: Mapped[str | None] = mapped_column(String(64))  # of the upload
    content_hash: Mapped[str | None] = mapped_column(String(64))
    upload_blob: Mapped[str | None] = mapped_column(String(200))  # until it is prepared
    items_blob: Mapped[str | None] = mapped_column(String(200))  # the prepared archive
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)  # e.g. split fractions, seed
    summary: Mapped[dict[str, Any] | None]  # Manifest without items and findings
    findings: Mapped[list[Any] | None]
    error: Mapped[dict[str, Any] | None]  # {"code", "detail", …} of a rejection
    n_test_looks: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[float] = mapped_column(server_default=now())
    updated_at: Mapped[float] = mapped_column(server_default=now())
    __table_args__ = (Index(None, "workspace_id", "created_at", "id"), Index(None, "state"))


class UploadRow(Base):
    """A resumable upload (tus). `offset` is committed after the bytes are flushed."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    length: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int] = mapped_column(BigInteger, default=0)
    upload_metadata: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sha256: Mapped[str | None] = mapped_column(String(64))
    locked_until: Mapped[float] = mapped_column(default=0.0)
    expires_at: Mapped[float] = mapped_column(index=True)
    finished: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[float] = mapped_column(server_default=now())


class SourceRow(Base):
    """Weights that a user registered for a named backbone."""

    __tablename__ = "sources"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str] = mapped_column(String(200))
    backbone: Mapped[str] = mapped_column(String(80))
    blob: Mapped[str] = mapped_column(String(200))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    n_classes: Mapped[int] = mapped_column(default=0)
    classes: Mapped[list[Any]] = mapped_column(default=list)
    licence: Mapped[str] = mapped_column(String(200), default="unknown")
    created_at: Mapped[float] = mapped_column(server_default=now())
    deleted_at: Mapped[float | None]
    __table_args__ = (Index(None, "workspace_id", "created_at", "id"),)


class JobRow(Leased, Base):
    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    name: Mapped[str] = mapped_column(String(200))
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"), index=True)
    state: Mapped[str] = mapped_column(String(20))
    spec: Mapped[dict[str, Any]]  # domain.job.JobSpec
    estimate: Mapped[dict[str, Any] | None]  # of the probe: s_per_trial, memory_bytes, disk_bytes, device
    result: Mapped[dict[str, Any] | None]  # domain.job.JobResult
    best_trial_id: Mapped[str | None] = mapped_column(Id)
    stopped_by: Mapped[str | None] = mapped_column(String(20))  # a part of the budget, user, or failures
    cancel: Mapped[str | None] = mapped_column(String(10))  # keep | discard, as asked
    error: Mapped[dict[str, Any] | None]
    bundle_blob: Mapped[str | None] = mapped_column(String(200))
    n_events: Mapped[int] = mapped_column(default=0, server_default="0")
    cost_s: Mapped[float] = mapped_column(default=0.0, server_default="0")
    created_at: Mapped[float] = mapped_column(server_default=now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    paused_s: Mapped[float] = mapped_column(default=0.0, server_default="0")  # wall time spent PAUSED
    paused_at: Mapped[float | None]
    __table_args__ = (Index(None, "workspace_id", "created_at", "id"), Index(None, "state"))


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    created_at: Mapped[float] = mapped_column(server_default=now())


class LotRow(Leased, Base):
    __tablename__ = "lots"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    state: Mapped[str] = mapped_column(String(20))
    created_at: Mapped[float] = mapped_column(server_default=now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (Index(None, "state", "not_before"),)


class TrialRow(Base):
    __tablename__ = "trials"
    id: Mapped[str] = mapped_column(Id, primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    lot_id: Mapped[str] = mapped_column(ForeignKey("lots.id"), index=True)
    number: Mapped[int]
    anchor: Mapped[str | None] = mapped_column(String(40))  # its name, for a fixed recipe run first
    state: Mapped[str] = mapped_column(String(20))
    values: Mapped[dict[str, Any]]  # searched values by path, as the sampler proposed them
    recipe: Mapped[dict[str, Any]]  # domain.recipe.Recipe
    attrs: Mapped[dict[str, Any]] = mapped_column(default=dict)  # trial attributes of the sampler
    value: Mapped[float | None]  # the objective on val
    metrics: Mapped[dict[str, Any] | None]  # on val
    test: Mapped[dict[str, Any] | None]  # numbers on test, for the winner and the anchors of a finished job
    error: Mapped[dict[str, Any] | None]
    cost_s: Mapped[float] = mapped_column(default=0.0, server_default="0")
    peak_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    share: Mapped[float] = mapped_column(default=0.0, server_default="0")
    checkpoint_blob: Mapped[str | None] = mapped_column(String(200))
    predictions_blob: Mapped[str | None] = mapped_column(String(200))  # on val
    resume_blob: Mapped[str | None] = mapped_column(String(200))
    created_at: Mapped[float] = mapped_column(server_default=now())
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    __table_args__ = (UniqueConstraint("job_id", "number"),)


class ReportRow(Base):
    """One point of a trial's curve."""

    __tablename__ = "reports"
    trial_id: Mapped[str] = mapped_column(ForeignKey("trials.id"), primary_key=True)
    fold: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    share: Mapped[float]
    value: Mapped[float | None]
    terms: Mapped[dict[str, Any]]
    cost_s: Mapped[float]


class EventRow(Base):
    """Written in the transaction of the change it tells; `seq` counts from 1 within a job."""

    __tablename__ = "events"
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    body: Mapped[dict[str, Any]]
    at: Mapped[float] = mapped_column(server_default=now())


class BlobRow(Base):
    __tablename__ = "blobs"
    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    workspace_id: Mapped[str] = mapped_column(ForeignKey("workspaces.id"))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(server_default=now())


class BlobRefRow(Base):
    """Who needs a blob: it goes with its last reference."""

    __tablename__ = "blob_refs"
    key: Mapped[str] = mapped_column(ForeignKey("blobs.key"), primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, primary_key=True, index=True)  # a dataset, source, trial or job


class WorkerRow(Base):
    """A worker that said it is alive, and what it found on its machine."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    queues: Mapped[list[Any]]
    facts: Mapped[dict[str, Any]]  # device, precision, n_threads, memory_bytes, …
    started_at: Mapped[float] = mapped_column(server_default=now())
    seen_at: Mapped[float] = mapped_column(index=True)


class TurnRow(Base):
    """A named turn that one process at a time may take, such as the sweep."""

    __tablename__ = "turns"
    name: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str | None] = mapped_column(String(80))
    until: Mapped[float] = mapped_column(default=0.0)
