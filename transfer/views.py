"""Training views of packed pictures: per item a random crop, flip, brightness and contrast, straight into one batch.

What view an item gets is a function of (seed, epoch, item) alone, never of what was drawn before: a resumed trial sees
the pixels that it would have seen. Evaluation pixels, the exact centre of the canvas, are what strength 0 gives.
"""

import os
import threading
import weakref
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from domain.catalogue import Preprocessing
from intake.packs import Pack
from transfer.memory import index_of

cv2.setNumThreads(0)  # a trial has one core; cv2's own pool would fight torch's

Items = NDArray[np.int64]
MOST_CROPPED = 0.8  # strength 1 crops down to 20 % of the area
STRETCH = np.log(4 / 3)  # and stretches by up to 4:3
JITTER = 0.3  # and moves brightness and contrast by up to 30 %
MASK, ODD = (1 << 64) - 1, 0x9E3779B97F4A7C15  # of splitmix64, whose sums and products wrap around
ON_DEVICE_SHARE = 0.25  # of free accelerator memory that pictures may fill
COPIED_AT_ONCE = 256


class Draw(NamedTuple):
    """The view of each item of a batch; windows in pixels of the canvas."""

    left: NDArray[np.int64]
    top: NDArray[np.int64]
    width: NDArray[np.int64]
    height: NDArray[np.int64]
    flip: NDArray[np.bool_]
    gain: NDArray[np.float64]  # pixel -> gain * pixel + bias
    bias: NDArray[np.float64]


def uniforms(seed: int, epoch: int, items: Items, n: int) -> NDArray[np.float64]:
    """(B, n) numbers in [0, 1), a hash (splitmix64) of (seed, epoch, item, column)."""
    key = _mix(np.array([seed & MASK, epoch], np.uint64) * np.array([1, ODD], np.uint64)).sum()
    rows = _mix(items.astype(np.uint64)[:, None] ^ key)
    columns = np.arange(1, n + 1, dtype=np.uint64)[None] * np.uint64(ODD)
    return (_mix(rows + columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = x + np.uint64(ODD)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return mixed


def draw_views(seed: int, epoch: int, items: Items, *, canvas: int, crop: int, augmentation: float, flip: bool) -> Draw:
    """The views of a batch: area uniform in [1 - 0.8 s, 1] of the canvas, aspect log-uniform in (3/4)^s .. (4/3)^s."""
    u = uniforms(seed, epoch, items, 7)
    flips = (u[:, 4] < 0.5) if flip else np.zeros(len(items), bool)
    if augmentation == 0:
        offset = np.full(len(items), (canvas - crop) // 2)
        side = np.full(len(items), crop)
        return Draw(offset, offset, side, side, flips, np.ones(len(items)), np.zeros(len(items)))
    area = (1 - MOST_CROPPED * augmentation * u[:, 0]) * canvas * canvas
    stretch = np.exp(augmentation * STRETCH * (2 * u[:, 1] - 1) / 2)
    width = np.clip(np.rint(np.sqrt(area) * stretch), 1, canvas).astype(np.int64)
    height = np.clip(np.rint(np.sqrt(area) / stretch), 1, canvas).astype(np.int64)
    left = (u[:, 2] * (canvas - width + 1)).astype(np.int64)
    top = (u[:, 3] * (canvas - height + 1)).astype(np.int64)
    brightness = 1 + JITTER * augmentation * (2 * u[:, 5] - 1)
    contrast = 1 + JITTER * augmentation * (2 * u[:, 6] - 1)
    return Draw(left, top, width, height, flips, brightness * contrast, 127.5 * (1 - contrast))


class _File:
    """The file that canvases are mapped from, to tell the system which of them are wanted next.

    A page that is missing is otherwise read with all that the device reads ahead, megabytes for a picture of 3 kB, and
    one picture waits for the other.
    """

    def __init__(self, canvases: "np.memmap[Any, Any]") -> None:
        self._offset, self._size = canvases.offset, canvases[0].nbytes if len(canvases) else 0
        self._handle = os.open(str(canvases.filename), os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)

    def announce(self, items: Items) -> None:
        if hasattr(os, "posix_fadvise"):
            for item in items.tolist():
                at = self._offset + item * self._size
                os.posix_fadvise(self._handle, at, self._size, os.POSIX_FADV_WILLNEED)


class Pictures:
    """The pictures of a pack as batches for a network: (B, 3, R, R), normalised, on the device.

    On an accelerator the canvases lie in its memory, if they fit, and views are cut there.
    """

    def __init__(self, pack: Pack, preprocessing: Preprocessing, *, device: torch.device, channels_last: bool) -> None:
        self.canvas, self.crop = pack.canvas, pack.crop
        self.device = device
        self._channels_last = channels_last
        self._pixels = np.asarray(pack.pixels)  # a plain view: slicing a memmap object is several times slower
        # An array that was worked out from a mapped one is a memmap too, of no file.
        canvases = pack.pixels
        self._file = _File(canvases) if isinstance(canvases, np.memmap) and canvases.filename is not None else None
        std, mean = np.asarray(preprocessing.std), np.asarray(preprocessing.mean)
        scale, shift = 1 / (255 * std), -mean / std
        # One value per column of a row of interleaved pixels: whole rows at a time instead of three channels.
        self._row_scale = torch.from_numpy(np.tile(scale, self.crop).astype(np.float32)).to(device)
        self._row_shift = torch.from_numpy(np.tile(shift, self.crop).astype(np.float32)).to(device)
        self._buffer = np.empty((0, self.crop, self.crop, 3), np.uint8)
        self._scratch = np.empty((self.crop, self.crop, 3), np.uint8)
        self._resident = self._place()
        self._alone = threading.Lock()  # a thread may cut the batch after this one, in the same buffers

    def evaluation(self, items: Items) -> Tensor:
        """Evaluation pixels, normalised."""
        offset = (self.canvas - self.crop) // 2
        window = slice(offset, offset + self.crop)
        if self._resident is not None:
            rows = torch.from_numpy(items).to(self.device)
            return self._normalise(self._resident[rows][:, window, window])
        self.announce(items)
        return self._normalise(torch.from_numpy(self._pixels[items, window, window]).to(self.device))

    def training(self, items: Items, seed: int, epoch: int, *, augmentation: float, flip: bool) -> Tensor:
        """One view of each item."""
        if augmentation == 0 and not flip:
            return self.evaluation(items)
        drawn = draw_views(seed, epoch, items, canvas=self.canvas, crop=self.crop, augmentation=augmentation, flip=flip)
        self.announce(items)
        if self.device.type != "cpu":
            return self._cut_on_device(items, drawn)
        with self._alone:
            return self._normalise(torch.from_numpy(self._cut(items, drawn, jitter=augmentation > 0)))

    def announce(self, items: Items) -> None:
        """Have the canvases of these items read from the disk, where they do not lie in memory already."""
        if self._file is not None and self._resident is None:
            self._file.announce(items)

    def _cut(self, items: Items, drawn: Draw, *, jitter: bool) -> NDArray[np.uint8]:
        if len(self._buffer) < len(items):
            self._buffer = np.empty((len(items), self.crop, self.crop, 3), np.uint8)
        out, scratch, size = self._buffer[: len(items)], self._scratch, (self.crop, self.crop)
        rows = zip(items.tolist(), *(column.tolist() for column in drawn), strict=True)
        for n, (item, left, top, width, height, flip, gain, bias) in enumerate(rows):
            window = self._pixels[item, top : top + height, left : left + width]
            target = scratch if flip else out[n]
            if width == self.crop == height:
                target[:] = window
            else:
                cv2.resize(window, size, dst=target, interpolation=cv2.INTER_LINEAR)
            if flip:
                cv2.flip(scratch, 1, dst=out[n])
            if jitter:
                # Not convertScaleAbs: that takes the absolute value, so that black would turn grey.
                cv2.addWeighted(out[n], gain, out[n], 0, bias, dst=out[n])
        return out

    def _cut_on_device(self, items: Items, drawn: Draw) -> Tensor:
        if self._resident is not None:
            canvases = self._resident[torch.from_numpy(items).to(self.device)]
        else:
            canvases = torch.from_numpy(self._pixels[items]).to(self.device)
        # Affine maps from the view's [-1, 1] square to the canvas's, one per item.
        centre_x = (2 * drawn.left + drawn.width) / self.canvas - 1
        centre_y = (2 * drawn.top + drawn.height) / self.canvas - 1
        theta = np.zeros((len(items), 2, 3), np.float32)
        theta[:, 0, 0] = np.where(drawn.flip, -1, 1) * drawn.width / self.canvas
        theta[:, 1, 1] = drawn.height / self.canvas
        theta[:, 0, 2], theta[:, 1, 2] = centre_x, centre_y
        grid = functional.affine_grid(
            torch.from_numpy(theta).to(self.device), [len(items), 3, self.crop, self.crop], align_corners=False
        )
        views = functional.grid_sample(
            canvases.permute(0, 3, 1, 2).float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        jitter = (torch.from_numpy(v.astype(np.float32)).to(self.device) for v in (drawn.gain, drawn.bias))
        gain, bias = (v[:, None, None, None] for v in jitter)
        return self._normalise((views * gain + bias).clamp_(0, 255).permute(0, 2, 3, 1).contiguous())

    def _normalise(self, pixels: Tensor) -> Tensor:
        """(B, R, R, 3) in 0..255 -> (B, 3, R, R), (x / 255 - mean) / std."""
        n, side = pixels.shape[0], self.crop
        flat = pixels.reshape(n, side, side * 3).float()
        images = flat.mul_(self._row_scale).add_(self._row_shift).view(n, side, side, 3).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()

    def _place(self) -> Tensor | None:
        if self.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self.device)
        share = torch.cuda.get_per_process_memory_fraction(index_of(self.device)) * total
        left = min(free, share - torch.cuda.memory_reserved(self.device))
        if self._pixels.nbytes > ON_DEVICE_SHARE * left:
            return None
        try:
            return self._copied()
        except torch.OutOfMemoryError:  # others were faster
            return None

    def _copied(self) -> Tensor:
        """All canvases on the device, a few at a time: the host need not have room for them."""
        canvases = torch.empty(self._pixels.shape, dtype=torch.uint8, device=self.device)
        for at in range(0, len(canvases), COPIED_AT_ONCE):
            canvases[at : at + COPIED_AT_ONCE] = torch.from_numpy(self._pixels[at : at + COPIED_AT_ONCE].copy())
        return canvases
