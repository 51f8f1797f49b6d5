"""Settings: read once at the edge from `GRAFT_` variables, frozen, strict. Functions take the value they need."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from domain.errors import Invalid

PREFIX = "GRAFT_"
GIB = 1024**3
# Read by the client or by the tests, not by a server; a shell may well hold both kinds.
FOREIGN = {"GRAFT_URL", "GRAFT_API_KEY", "GRAFT_HOME", "GRAFT_WORKERS"}


class Settings(BaseSettings):
    """Only settings differ between the two run modes: without URLs everything lies in `home` and needs no server."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(default_factory=lambda: Path.home() / ".graft", validate_default=True)
    database_url: str | None = Field(default=None, repr=False)  # None: SQLite in home
    redis_url: str | None = Field(default=None, repr=False)  # None: the local doorbell in home
    blob_url: str | None = None  # None: home/blobs; or s3://bucket/prefix
    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    cache_dir: Path | None = None  # None: home/cache
    weights_dir: Path | None = None  # <backbone>.safetensors files; None: cache/weights
    bootstrap_key: str | None = Field(default=None, repr=False)  # first API key of a distributed installation

    host: str = "127.0.0.1"
    port: int = Field(default=8321, ge=0, le=65535)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()  # Host headers to answer; empty: every host
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    lease_s: float = Field(default=60.0, gt=0)
    heartbeat_s: float = Field(default=10.0, gt=0)
    sweep_s: float = Field(default=5.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    # Trials that the probe expects to be shorter are asked for one ahead per worker: no gap, at one result's cost in
    # what the sampler knows. 0 never asks ahead.
    ask_ahead_below_s: float = Field(default=30.0, ge=0)
    # Jobs that ask for it may learn from the past jobs of every workspace, which then shows in what they try first.
    pool_history: bool = False

    max_upload_bytes: int = Field(default=20 * GIB, gt=0)
    max_files: int = Field(default=200_000, gt=0)  # in one upload
    min_free_bytes: int = Field(default=GIB, ge=0)  # uploads are refused when less is left on the disk
    max_cache_bytes: int = Field(default=50 * GIB, gt=0)
    upload_ttl_s: float = Field(default=86_400.0, gt=0)

    device: str = "auto"
    n_threads: int = Field(default=0, ge=0)  # of a trial; 0: chosen by the worker
    max_threads: int = Field(default=1, ge=1)  # that it may choose on a CPU, where a probe finds them faster
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compiling: Literal["auto", "eager"] = "auto"  # auto: stages are compiled on an accelerator, where that is faster
    device_memory_bytes: int | None = Field(default=None, gt=0)  # a worker's share of its device; None: all there is

    @field_validator("home", "cache_dir", "weights_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _beats_fit(self) -> Self:
        if self.heartbeat_s > self.lease_s / 2:
            raise ValueError(f"two heartbeats must fit into one lease: {self.heartbeat_s=}, {self.lease_s=}")
        return self

    @property
    def embedded(self) -> bool:
        """No broker: API and workers run on this machine and share `home`."""
        return self.redis_url is None

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'graft.db'}"

    @property
    def cache(self) -> Path:
        return self.cache_dir or self.home / "cache"

    @property
    def weights(self) -> Path:
        return self.weights_dir or self.cache / "weights"


def load() -> Settings:
    """The settings of this process; Invalid("bad_settings") names what is wrong and what is legal."""
    legal = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    given = {name.upper() for name in os.environ if name.upper().startswith(PREFIX)}
    unknown = sorted(name for name in given - legal - FOREIGN if not name.startswith("GRAFT_TEST_"))
    if unknown:
        detail = f"no setting is called {', '.join(unknown)}; there are {', '.join(sorted(legal))}"
        raise Invalid("bad_settings", detail, unknown=unknown, legal=sorted(legal))
    try:
        return Settings()
    except ValidationError as error:
        # Inputs stay out of the message: a URL may hold a password.
        wrong = "; ".join(f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise Invalid("bad_settings", wrong) from None
