"""Does a trial process hold memory that nothing of it wants any more? Then another one takes its place.

Between orders it may hold a lot: networks, starts, activations, whatever the next trial would begin with. Only once
that comes to much of the memory is everything put away that is kept on purpose; what is still held then has leaked.
"""

from torch import device as torch_device

from transfer import compiling, memory, warm

SUSPICIOUS = 1 / 4  # of the memory that the process may use
LEAKED = 1 / 16  # but no less than
LEAST_BYTES = 512 << 20  # libraries loaded since, and what an allocator cannot give back
LATEST = 3 / 4  # of the memory, to look again


class Wear:
    def __init__(self, device: str, memory_bytes: int) -> None:
        """Before the first order."""
        self._device = device
        self._rest = memory.own_bytes(device)
        self._look_at, self._latest = SUSPICIOUS * memory_bytes, LATEST * memory_bytes
        self._most = max(LEAKED * memory_bytes, LEAST_BYTES)

    def is_worn(self) -> bool:
        """Asked between orders. What looked suspicious and was no leak is looked into again at twice that."""
        held = self._held()
        if held < self._look_at:
            return False
        warm.forget()
        compiling.forget()
        memory.empty_cache(torch_device(self._device))
        self._look_at = min(2 * held, self._latest)
        return self._held() >= self._most

    def _held(self) -> int:
        return memory.own_bytes(self._device) - self._rest
