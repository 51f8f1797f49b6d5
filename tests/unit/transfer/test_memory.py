"""Memory, as the kernel counts it, and what a trial does where there is too little."""

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.toys import go, make_order, make_recipe
from transfer.bench import Bench
from transfer.loop import Loop
from transfer.memory import forget_peak, held_bytes, is_exhausted, peak_bytes
from transfer.phase import Phase
from transfer.setting import Setting

SIZE = 64 << 20


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


def open_loop(pack: Path, source: Path, scratch: Path) -> Loop:
    recipe = make_recipe(steps=4, batch_norm="eval", regularizer=("l2_sp", {}), data={"batch_size": 7})
    order = make_order(recipe, pack, source, scratch)
    bench = Bench(Setting(order, order.trials[0], go), 0)
    return Loop(bench, Phase(trainable=bench.plan.everything), 0, 4)


def trained(loop: Loop) -> dict[str, Tensor]:
    for _ in loop.train():
        pass
    return {name: weight.detach().clone() for name, weight in loop.weights.items()}


def short_of_memory(loop: Loop, most: int) -> None:
    """The network's device has room for batches of `most`."""

    def check(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if len(given[0]) > most:
            raise torch.OutOfMemoryError("no room")

    first = next(iter(loop.net.children()))
    first.register_forward_pre_hook(check)


def test_who_runs_out_of_memory_goes_on_by_halves(pack: Path, source: Path, tmp_path: Path) -> None:
    short, halves = (open_loop(pack, source, tmp_path) for _ in range(2))
    short_of_memory(short, 4)
    halves.bench.n_splits = 2
    one, two = trained(short), trained(halves)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert short.means() == halves.means()
    assert "half a batch at a time" in short.bench.remarks[0]


def test_who_runs_out_of_memory_by_halves_too_has_failed(pack: Path, source: Path, tmp_path: Path) -> None:
    loop = open_loop(pack, source, tmp_path)
    short_of_memory(loop, 2)
    with pytest.raises(torch.OutOfMemoryError):
        trained(loop)


def test_halves_add_up_to_the_whole(pack: Path, source: Path, tmp_path: Path) -> None:
    whole, halves = (open_loop(pack, source, tmp_path) for _ in range(2))
    halves.bench.n_splits = 2
    one, two = trained(whole), trained(halves)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)
    assert whole.means() == pytest.approx(halves.means(), abs=1e-4)


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True), (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True), (RuntimeError("shapes do not match"), False),
    ],
)  # fmt: skip
def test_allocations_fail_in_several_words(error: Exception, exhausted: bool) -> None:
    assert is_exhausted(error) is exhausted
