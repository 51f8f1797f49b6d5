"""How fast does the command answer and the API start, and what does an idle API cost?"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import ROOT, api
from benchmarks.table import Figure, quantile

ROUNDS = 9
IDLE_S = 20.0
MIB = 2**20
SPY = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, file=sys.stderr))
sys.argv = ["graft", "--help"]
from graft.cli import main
main()
"""


def measure() -> list[Figure]:
    help_s = [_help_s() for _ in range(ROUNDS)]
    spied = subprocess.run([sys.executable, "-c", SPY], cwd=ROOT, capture_output=True, text=True, check=True)
    torch_in_help = spied.stderr.strip().endswith("True")
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(5):
            with api(Path(folder) / str(number)) as service:
                starts.append(service.start_s)
                if number < 4:
                    continue
                time.sleep(2)  # let the start-up work end before idling is measured
                before = service.process.cpu_s()
                time.sleep(IDLE_S)
                idle = (service.process.cpu_s() - before) / IDLE_S
                rss = service.process.rss_bytes()
                torch_in_api = service.process.maps("libtorch")
    return [
        Figure("graft --help, median", quantile(help_s, 0.5), "s", ("<=", 0.3)),
        Figure("graft --help imports torch", float(torch_in_help), "0/1", ("<=", 0)),
        Figure("API start to first answer, median", quantile(starts, 0.5), "s", ("<=", 2.0)),
        Figure("API holds torch", float(torch_in_api), "0/1", ("<=", 0)),
        Figure("API idle", 100 * idle, "% of a core", ("<=", 1.0)),
        Figure("API resident memory, idle", rss / MIB, "MiB"),
    ]


def _help_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "graft", "--help"], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - began
