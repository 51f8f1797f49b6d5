"""The memory of this very process, as the kernel counts it."""

import mmap

from transfer.memory import forget_peak, held_bytes, peak_bytes

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
