"""Control groups of Linux: a command under a limit of memory, the page cache of the files it touches included."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SAMPLED_S = 0.1
LIMIT, PEAK, ANON = 0, 1, 2
NAMES = {  # of files, and of a line of memory.stat, by the version of control groups
    1: ("memory.limit_in_bytes", "memory.max_usage_in_bytes", "rss"),
    2: ("memory.max", "memory.peak", "anon"),
}


@dataclass
class Group:
    """A group of processes that were started in it."""

    folder: Path
    version: int
    anon_bytes: int = 0  # at its peak: memory that is not the contents of a file

    @property
    def peak_bytes(self) -> int:
        """Page cache included, which the kernel lets grow up to the limit."""
        return int((self.folder / NAMES[self.version][PEAK]).read_text())

    def run(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> str:
        """What the command prints; it is in the group before its first instruction."""
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs")]
        process = subprocess.Popen([*enter, *command], cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)
        sampler = threading.Thread(target=self._sample, args=(process,))
        sampler.start()
        printed, _ = process.communicate()
        sampler.join()
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; -9 is the limit of the group")
        return printed

    def _sample(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            lines = (line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
            self.anon_bytes = max(self.anon_bytes, int(dict(lines)[NAMES[self.version][ANON]]))
            time.sleep(SAMPLED_S)


@contextmanager
def group(name: str, limit_bytes: int) -> Iterator[Group]:
    """A group within this process's own, so that what holds for this process holds there too."""
    version, own = _own()
    made = Group(own / f"{name}-{os.getpid()}", version)
    try:
        made.folder.mkdir()
    except OSError as error:
        raise SystemExit(f"no control group can be made here: {error}") from None
    try:
        limit = made.folder / NAMES[version][LIMIT]
        if not limit.exists():
            raise SystemExit(f"no memory controller in {own}: its cgroup.subtree_control does not name memory")
        limit.write_text(str(limit_bytes))
        yield made
    finally:
        made.folder.rmdir()


def _own() -> tuple[int, Path]:
    """The version of control groups that limits memory here, and the folder of this process's own."""
    groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for _, controllers, path in groups:
        if "memory" in controllers.split(","):
            for _, where, kind, options, *_ in mounts:
                if kind == "cgroup" and "memory" in options.split(","):
                    return 1, Path(where + path)
    for number, _, path in groups:
        unified = next((mount[1] for mount in mounts if mount[2] == "cgroup2"), None)
        if number == "0" and unified is not None:
            return 2, Path(unified + path)
    raise SystemExit("there are no control groups here: memory cannot be limited")
