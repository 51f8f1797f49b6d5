"""Memory, as the kernel counts it, and what a trial does where there is too little."""

import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.toys import go, make_order, make_recipe, write_pack
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.memory import forget_peak, held_bytes, peak_bytes
from transfer.phase import Phase
from transfer.setting import Setting

ROOT = Path(__file__).parents[3]
SIZE = 64 << 20
TRAIN = """
import json, resource, sys
from pathlib import Path
import torch
from tests.toys import go, make_order, make_recipe
from transfer.fit import Fit

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

pack, scratch, size, more = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
recipe = make_recipe("smallnet", source="scratch:smallnet", steps=2, data={"batch_size": size})
fit = Fit(make_order(recipe, pack, None, scratch), stopped=go)
before = status("VmRSS")
if more:
    limit = status("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
list(fit)
print(json.dumps({"took": status("VmHWM") - before, **fit.outcome("tr_1").model_dump(mode="json")}))
"""


def test_a_peak_is_remembered_until_it_is_forgotten() -> None:
    forget_peak("cpu")
    before = held_bytes("cpu")
    block = mmap.mmap(-1, SIZE)  # of the kernel itself: what an allocator frees it may keep
    block[:: mmap.PAGESIZE] = b"1" * (SIZE // mmap.PAGESIZE)
    assert held_bytes("cpu") - before > 0.9 * SIZE
    block.close()
    assert peak_bytes("cpu") - before > 0.9 * SIZE
    forget_peak("cpu")
    assert peak_bytes("cpu") - before < 0.5 * SIZE


def trained(pack: Path, scratch: Path, size: int, more: int = 0) -> dict[str, Any]:
    """A trial in a process of its own, which may take `more` bytes than it has before it trains."""
    command = [sys.executable, "-c", TRAIN, str(pack), str(scratch), str(size), str(more)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_a_trial_that_runs_out_of_memory_takes_its_batches_by_halves_once_and_then_fails(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", n_per_class=72, canvas=160, crop=160)  # beside these the network is nothing
    whole, half, quarter = (trained(pack, tmp_path / str(size), size)["took"] for size in (128, 64, 32))
    told = trained(pack, tmp_path / "a", 128, (whole + half) // 2)
    assert told["state"] == "COMPLETE"
    assert "half a batch at a time" in told["facts"]["remarks"][0]
    told = trained(pack, tmp_path / "b", 128, quarter)
    assert (told["state"], told["error_code"]) == ("FAILED", "out_of_memory")


def test_halves_add_up_to_the_whole(pack: Path, source: Path, tmp_path: Path) -> None:
    found = []
    for n_splits in (1, 2):
        recipe = make_recipe(steps=4, batch_norm="eval", regularizer=("l2_sp", {}), data={"batch_size": 7})
        order = make_order(recipe, pack, source, tmp_path)
        bench = Bench(Setting(order, order.trials[0], go), 0)
        bench.n_splits = n_splits
        loop = Loop(bench, Phase(trainable=bench.plan.everything), 0, 4)
        for _ in loop.train():
            pass
        found.append(({name: w.detach().clone() for name, w in loop.weights.items()}, loop.means()))
    (one, terms), (two, terms_of_halves) = found
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)
    assert terms.keys() == terms_of_halves.keys()
    for name, value in terms.items():
        assert abs(value - terms_of_halves[name]) < 1e-4
