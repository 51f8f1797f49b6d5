import collections
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from graft.convert import convert, unwrap, write
from graft.errors import GraftError


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def equal(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    found = load_file(path)
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model_state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
    ],
)
def test_weights_come_out_as_they_went_in(net: nn.Module, tmp_path: Path, wrap: Any) -> None:
    torch.save(wrap(net.state_dict()), tmp_path / "in.pth")
    said = write(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert equal(tmp_path / "out.safetensors", net.state_dict())
    assert "9 tensors, 139 numbers" in said  # (4 * 3 * 9 + 4) + (4 * 4 + 1) + (4 * 2 + 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_a_child_does_the_work(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pth")
    assert "9 tensors" in convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert equal(tmp_path / "out.safetensors", net.state_dict())


def test_shared_and_strided_tensors_become_whole_ones(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    state = {"a": shared, "b": shared, "c": shared.T, "d": shared[1:], "half": shared.half()}
    torch.save(state, tmp_path / "in.pth")
    write(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert equal(tmp_path / "out.safetensors", state)


class Harmful:
    """What a hostile file would do when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_objects_are_refused_and_never_run(net: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": net.state_dict(), "x": Harmful(tmp_path / "ran")}, tmp_path / "in.pth")
    with pytest.raises(GraftError, match=r"torch\.save\(model\.state_dict\(\)"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"weight": torch.zeros(2), "epoch": 3}, "1 entries that are no tensors"),
        ([torch.zeros(2)], "no state dict"),
        ({}, "no state dict"),
        ({"weight": torch.zeros(2).to_sparse()}, "sparse or quantized"),
        (collections.OrderedDict({0: torch.zeros(2)}), "no tensors"),
    ],
)
def test_what_is_no_state_dict_is_refused_in_one_line(content: Any, why: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(GraftError, match=why) as caught:
        write(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    for content in (b"", b"hello", struct.pack("<Q", len(header)) + header + b"\0" * 4, b"PK\x03\x04" + b"\0" * 40):
        (tmp_path / "in.pth").write_bytes(content)
        with pytest.raises(GraftError, match=r"in\.pth"):
            write(tmp_path / "in.pth", tmp_path / "out.safetensors")


def test_nothing_is_written_over(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "in.pth")
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(GraftError, match="exists already"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    with pytest.raises(GraftError, match="does not exist"):
        convert(tmp_path / "no.pth", tmp_path / "new.safetensors")


def test_wrappers_come_off_only_where_they_wrap() -> None:
    assert unwrap({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert unwrap({"model": {"a": 1}, "optimizer": {}}) == {"a": 1}
