import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from domain.errors import Invalid
from intake.limits import Limits
from intake.model_file import check_safetensors


def entry(start: int = 0, stop: int = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def model(header: Any, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    tensors = {"a.weight": np.zeros((2, 3), np.float32), "b": np.ones(4, np.int64), "scalar": np.array(3, np.float16)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert check_safetensors(tmp_path / "m.safetensors") == {
        "a.weight": {"dtype": "F32", "shape": [2, 3]},
        "b": {"dtype": "I64", "shape": [4]},
        "scalar": {"dtype": "F16", "shape": []},
    }


def test_real_weights_are_read(real_zips: Path) -> None:
    found = check_safetensors(real_zips / "weights/mobilenet_v2_in1k.safetensors")
    assert found["classifier.1.weight"]["shape"] == [1000, 1280]


def pickled_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"short", (2**62).to_bytes(8, "little") + bytes(100), (17 * 1024**2).to_bytes(8, "little") + bytes(100),
        b"\x80\x04cos\nsystem\n(S'true'\ntR.", pickled_zip(),
        model(b"[1, 2]"), model(b"{"), model(b"\xff\xfe{}"), model(b'{"a":' * 100_000), model(b'{"a": NaN}'),
        model({}), model({"__metadata__": {"format": "pt"}}, b""), model({"__metadata__": {"n": 1}, "a": entry()}),
        model(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2)),
        model({"a": entry()}, bytes(9)), model({"a": entry()}, bytes(7)), model({"a": entry(1, 9)}, bytes(9)),
        model({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), model({"a": entry(), "b": entry(12, 20)}, bytes(20)),
        model({"a": entry(), "b": entry()}), model({"a": entry(8, 0)}), model({"a": entry(0, 4)}, bytes(4)),
        model({"a": entry(dtype="object")}), model({"a": entry(dtype=["F32"])}), model({"a": entry(shape=[-1, -2])}),
        model({"a": entry(shape=[2.0])}), model({"a": entry(shape=[True, 2])}), model({"a": entry(shape="2")}),
        model({"a": entry(shape=[1] * 100 + [2])}), model({"a": entry(shape=[2**64, 0])}), model({"a": 3}),
        model({"a": entry() | {"more": 1}}), model({"a\0": entry()}),
        model(b'{"\\ud800": %b}' % json.dumps(entry()).encode()),
    ],
)  # fmt: skip
def test_48_anything_else_is_unsafe(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(Invalid) as caught:
        check_safetensors(path)
    assert caught.value.code == "model_format_unsafe"


def test_pickle_is_called_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(pickled_zip())
    with pytest.raises(Invalid, match="pickle"):
        check_safetensors(tmp_path / "m.safetensors")


def test_number_of_tensors_is_limited(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(model({str(i): entry(i * 8, i * 8 + 8) for i in range(11)}, bytes(88)))
    assert len(check_safetensors(tmp_path / "m", Limits())) == 11
    with pytest.raises(Invalid, match="11 tensors"):
        check_safetensors(tmp_path / "m", Limits(max_tensors=10))
