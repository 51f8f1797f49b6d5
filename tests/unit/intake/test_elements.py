import json

import pytest

from intake.elements import stream

WHOLE = {"a": 123, "items": [{"x": "ä]},"}, 12, "y", [1, 2]], "b": {"items": [3]}, "none": [], "c": 'e"nd', "d": 4.5}
MEMBERS = [
    ("a", 123), ("items", {"x": "ä]},"}), ("items", 12), ("items", "y"), ("items", [1, 2]), ("b", {"items": [3]}),
    ("none", []), ("c", "e\"nd"), ("d", 4.5),
]  # fmt: skip


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_members_however_the_text_is_cut(size: int, indent: int | None) -> None:
    text = json.dumps(WHOLE, indent=indent)
    chunks = (text[at : at + size] for at in range(0, len(text), size))
    assert list(stream(chunks, "items")) == MEMBERS


@pytest.mark.parametrize("text", ["", "[1]", '{"a"', '{"a": 1', '{"items": [1', '{"items": 1}', '{"a": }'])
def test_what_is_no_whole_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(stream(iter([text]), "items"))


def test_lists_without_elements() -> None:
    assert list(stream(iter(['{"items": []}']), "items")) == []
    assert list(stream(iter(["{}"]), "items")) == []
